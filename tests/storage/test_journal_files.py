"""A journal in several files, compressed or not: the history is whole, wherever a rotation was killed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ottod.core.past import Past
from ottod.core.resume import restore
from ottod.errors import StorageError
from ottod.protocol import journal as j
from ottod.storage.journal import Journal, read_journal
from ottod.storage.journal_files import MIN_ENDED_BYTES, compress_ended, compress_file, full_name
from ottod.storage.journal_history import read_history

KEY = 77
OPENED = j.SessionOpened(session="s-1", incarnation=1, agent="a", model="m", cwd="/", task="the task")


def entries(count: int) -> list[j.JournalEntry]:
    """Messages that wait, with text that compresses."""
    return [OPENED, *(j.InputAccepted(number=n, text=f"message {n} " * 20) for n in range(1, count))]


def write(path: Path, wanted: list[j.JournalEntry], *, rotate_at: tuple[int, ...] = ()) -> None:
    """Appends all, and rotates behind the entries with these numbers."""
    journal, past = Journal.open(path, session_key=KEY, create=True), Past()
    for number, entry in enumerate(wanted):
        journal.append(entry)
        past.take(entry)
        if number in rotate_at:
            journal.rotate(past.snapshot())
    journal.sync()
    journal.close()


def test_the_history_of_several_files_is_whole(tmp_path: Path) -> None:
    """Plain and compressed; the newest file alone amounts to the same."""
    path, wanted = tmp_path / "journal", entries(12)
    write(path, wanted, rotate_at=(3, 4, 8))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["journal", *(f"journal.{n:06d}" for n in range(3))]
    assert read_history(tmp_path).entries == tuple(wanted)
    assert restore(read_journal(path)) == restore(wanted)
    compress_file(full_name(path, 1))
    assert read_history(tmp_path).entries == tuple(wanted)
    compress_ended(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal", *(f"journal.{n:06d}.zst" for n in range(3))]
    history = read_history(tmp_path)
    assert history.entries == tuple(wanted) and not history.incomplete
    full_name(path, 1).with_name("journal.000001.zst").unlink()
    lame = read_history(tmp_path)
    assert "journal.000001" in lame.incomplete and restore(lame.entries) == restore(wanted)


def test_the_journal_goes_on_in_the_next_file(tmp_path: Path) -> None:
    """Opened again, appended to, torn at its end: as with any other file."""
    path, wanted = tmp_path / "journal", entries(6)
    write(path, wanted[:4], rotate_at=(2,))
    with path.open("ab") as file:
        file.write(b"torn")
    journal = Journal.open(path, session_key=KEY, create=False)
    assert journal.number == 1 and journal.recovery.dropped_bytes == 4
    assert restore(journal.entries) == restore(wanted[:4])
    for entry in wanted[4:]:
        journal.append(entry)
    journal.close()
    assert read_history(tmp_path).entries == tuple(wanted)


@pytest.mark.parametrize("point", ["made", "written", "linked", "renamed", "durable"])
def test_a_rotation_killed_anywhere_loses_nothing(tmp_path: Path, point: str) -> None:
    """Before the rename it never happened; after it the next file is the journal. Either can be rotated again."""
    path, wanted = tmp_path / "journal", entries(6)
    child = os.fork()
    if child == 0:
        try:
            journal, past = Journal.open(path, session_key=KEY, create=True), Past()
            for entry in wanted[:4]:
                journal.append(entry)
                past.take(entry)
            journal.rotate(past.snapshot(), at=lambda reached: os._exit(9) if reached == point else None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert read_history(tmp_path).entries == tuple(wanted[:4]), "also before anybody opens it"
    journal = Journal.open(path, session_key=KEY, create=True)
    happened = point in ("renamed", "durable")
    assert journal.number == happened and not journal.recovery.is_repaired
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal", *(["journal.000000"] if happened else [])]
    past = Past()
    for entry in journal.entries:
        past.take(entry)
    for entry in wanted[4:]:
        journal.append(entry)
        past.take(entry)
    journal.rotate(past.snapshot())
    journal.close()
    assert read_history(tmp_path).entries == tuple(wanted)
    assert restore(read_journal(path)) == restore(wanted)


def test_a_rotation_without_room_leaves_the_journal(tmp_path: Path) -> None:
    """A snapshot that is too large for one entry, or a name that is taken: refused, and the old file goes on."""
    path = tmp_path / "journal"
    journal = Journal.open(path, session_key=KEY, create=True)
    journal.append(OPENED)
    with pytest.raises(StorageError) as caught:
        journal.rotate(j.Snapshot(text="x" * (17 * 1024 * 1024)))
    assert caught.value.code == "entry_too_large"
    full_name(path, 0).mkdir()
    with pytest.raises(StorageError):
        journal.rotate(j.Snapshot())
    assert journal.append(j.SessionUnpaused()) == 1
    journal.close()
    assert read_journal(path) == [OPENED, j.SessionUnpaused()]


def test_a_next_file_without_its_beginning_is_an_error(tmp_path: Path) -> None:
    """Never a fresh start: without the snapshot nobody knows what the session was. The file stays as it is."""
    path = tmp_path / "journal"
    write(path, entries(4), rotate_at=(2,))
    whole = path.read_bytes()
    for data, said in (
        (whole[:60], "lost what it begins with"),
        (whole[:60] + b"!" + whole[61:], "damaged at byte 32, record 0,"),
    ):
        path.write_bytes(data)
        with pytest.raises(StorageError, match=said) as caught:
            Journal.open(path, session_key=KEY, create=True)
        assert caught.value.code == "journal_damaged" and path.read_bytes() == data


def test_a_compressed_file_cut_or_flipped_anywhere_is_an_error(tmp_path: Path) -> None:
    """Every byte and every bit: the same entries or an error, never others and never fewer."""
    path, wanted = tmp_path / "journal", entries(5)
    write(path, wanted)
    packed = compress_file(path)
    data = packed.read_bytes()
    assert not path.exists() and read_journal(path) == wanted
    for length in range(len(data)):
        packed.write_bytes(data[:length])
        with pytest.raises(StorageError):
            read_journal(path)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        packed.write_bytes(damaged)
        try:
            found = read_journal(path)
        except StorageError:
            continue
        assert found == wanted, bit
    packed.write_bytes(data + b"\0")
    with pytest.raises(StorageError):
        read_journal(path)


def test_the_original_counts_while_both_are_there(tmp_path: Path) -> None:
    """A compression that was killed, before or after its rename, loses nothing and is done again."""
    path, wanted = tmp_path / "journal", entries(4)
    write(path, wanted)
    path.with_name("journal.zst").write_bytes(b"half of it")
    path.with_name("journal.zst.new").write_bytes(b"less")
    assert read_journal(path) == wanted
    compress_file(path)
    assert read_journal(path) == wanted and sorted(p.name for p in tmp_path.iterdir()) == ["journal.zst"]


def test_small_journals_are_left_as_they_are(tmp_path: Path) -> None:
    """Nothing would be gained by compressing them."""
    path = tmp_path / "journal"
    write(path, entries(3))
    compress_ended(tmp_path)
    assert path.exists()
    write(path, entries(200))
    assert path.stat().st_size > MIN_ENDED_BYTES
    compress_ended(tmp_path)
    assert not path.exists() and len(read_history(tmp_path).entries) == 203


@pytest.mark.parametrize("point", ["made", "written", "linked"])
def test_a_rotation_that_fails_leaves_nothing_behind(tmp_path: Path, point: str) -> None:
    """No room at some point of it: the file goes on, nothing takes up room, and the next one succeeds."""
    path = tmp_path / "journal"
    journal = Journal.open(path, session_key=KEY, create=True)
    journal.append(j.SessionPaused(reason="x"))

    def full(now: str) -> None:
        if now == point:
            raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(StorageError, match="cannot rotate"):
        journal.rotate(j.Snapshot(), at=full)
    assert [each.name for each in tmp_path.iterdir()] == ["journal"]
    journal.append(j.SessionUnpaused())
    assert len(read_journal(path)) == 2
    journal.rotate(j.Snapshot())
    assert journal.number == 1 and len(read_history(tmp_path).entries) == 2
    journal.close()
