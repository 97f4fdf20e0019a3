"""The journal: what was appended comes back, whatever happens to the file's end."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.errors import Failure, RefusedError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.model import ModelResponse, Text, ToolCall, ToolResult
from ottod.protocol.usage import Usage
from ottod.storage.journal import FILE_HEADER, MAX_ENTRY_BYTES, Journal, read_journal

KEY = 1234
ENTRIES: list[j.JournalEntry] = [
    j.SessionOpened(session="s-0000000014", incarnation=1, agent="coder", model="m", cwd="/w", task="Fix it"),
    j.UserSaid(text="Grüße", turn=1),
    j.ModelCalled(turn=1, step=1, model="m", request_digest="d"),
    j.ModelResponded(
        turn=1,
        step=1,
        response=ModelResponse(
            blocks=(Text(text="yes"), ToolCall(call="c1", tool="grep", arguments='{"p":1}')),
            stop="tool_calls",
            usage=Usage(input_tokens=5, usd_micros=2),
        ),
    ),
    j.ToolIntended(turn=1, step=1, call="c1", tool="grep", arguments="{}", idempotent=True, idempotency_key="k"),
    j.ToolResolved(turn=1, step=1, call="c1", result=ToolResult(call="c1", tool="grep", text="3 hits")),
    j.Checkpoint(name="turn-1", turn=1, last_seq=17),
    j.TurnEnded(turn=1, outcome="failed", failure=Failure(code="cut", message="the stream broke")),
    j.SessionClosed(cause=Cause(kind="failed")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def write(path: Path, entries: list[j.JournalEntry]) -> list[int]:
    """Appends and returns the file's length before each entry and at the end."""
    lengths = []
    journal = Journal.open(path, session_key=KEY, create=True)
    for entry in entries:
        lengths.append(path.stat().st_size)
        journal.append(entry)
    journal.sync()
    lengths.append(path.stat().st_size)
    journal.close()
    return lengths


def test_entries_come_back_as_they_went_in(path: Path) -> None:
    """Every kind, in order, with indexes from 0; the report says that all is well."""
    journal = Journal.open(path, session_key=KEY, create=True)
    assert journal.entries == [] and not journal.recovery.is_repaired
    assert [journal.append(entry) for entry in ENTRIES] == list(range(len(ENTRIES)))
    journal.sync()
    assert journal.last_sync_ns > 0
    journal.close()
    journal.close()
    journal = Journal.open(path, session_key=KEY, create=False)
    assert journal.entries == ENTRIES == read_journal(path)
    assert not journal.recovery.is_repaired and "intact" in journal.recovery.describe()
    assert journal.append(ENTRIES[0]) == len(ENTRIES)
    journal.close()
    assert read_journal(path) == [*ENTRIES, ENTRIES[0]]


def test_truncated_at_every_byte(path: Path) -> None:
    """The longest whole prefix is kept, the rest is reported and kept aside, and writing goes on behind it."""
    lengths = write(path, ENTRIES)
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        assert read_journal(path) == ENTRIES[: sum(end <= length for end in lengths[1:])]
        journal = Journal.open(path, session_key=KEY, create=True)
        kept = sum(end <= length for end in lengths[1:])
        assert journal.entries == ENTRIES[:kept]
        whole = length in lengths
        assert journal.recovery.is_repaired == bool(not whole and length), length
        if not whole and length:
            start = max((end for end in lengths if end <= length), default=0)
            assert journal.recovery.dropped_bytes == length - start
            assert Path(journal.recovery.aside).read_bytes() == data[:length]
            assert str(length - start) in journal.recovery.describe()
            Path(journal.recovery.aside).unlink()
        assert journal.append(ENTRIES[1]) == kept
        journal.close()
        assert read_journal(path) == [*ENTRIES[:kept], ENTRIES[1]]


@pytest.mark.parametrize("which", [0, 3, len(ENTRIES) - 2])
def test_every_bit_of_a_record_with_others_behind_it_flipped(path: Path, which: int) -> None:
    """A tail is not torn in its middle: an error that names the place, and the file is left as it is."""
    lengths = write(path, ENTRIES)
    data = path.read_bytes()
    for bit in range(8 * lengths[which], 8 * lengths[which + 1]):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for look in (read_journal, lambda path: Journal.open(path, session_key=KEY, create=True)):
            with pytest.raises(StorageError, match=f"at byte {lengths[which]}, record {which},") as caught:
                look(path)
            assert caught.value.code == "journal_damaged" and caught.value.mend
        assert path.read_bytes() == bytes(damaged) and len(list(path.parent.iterdir())) == 1


def test_several_damaged_records_do_not_hide_those_behind_them(path: Path) -> None:
    """A block of the disk is larger than a record."""
    lengths = write(path, ENTRIES)
    data = path.read_bytes()
    path.write_bytes(data[: lengths[1]] + bytes(lengths[-2] - lengths[1]) + data[lengths[-2] :])
    with pytest.raises(StorageError, match=f"goes on at byte {lengths[-2]}"):
        read_journal(path)


def test_every_bit_of_the_last_record_flipped(path: Path) -> None:
    """Everything before the record is kept, the rest is dropped, said and put aside."""
    which = len(ENTRIES) - 1
    lengths = write(path, ENTRIES)
    data = path.read_bytes()
    for bit in range(8 * lengths[which], 8 * lengths[which + 1]):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_journal(path) == ENTRIES[:which]
        journal = Journal.open(path, session_key=KEY, create=False)
        assert journal.entries == ENTRIES[:which]
        assert journal.recovery.dropped_bytes == len(data) - lengths[which]
        journal.close()
        assert path.read_bytes() == data[: lengths[which]]
        Path(journal.recovery.aside).unlink()


def test_every_bit_of_the_file_header_flipped(path: Path) -> None:
    """A damaged header is an error with a mend, never a fresh start; the file is left as it is."""
    write(path, ENTRIES)
    data = path.read_bytes()
    for bit in range(8 * FILE_HEADER.size):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(StorageError) as caught:
            Journal.open(path, session_key=KEY, create=True)
        assert caught.value.mend
        with pytest.raises(StorageError):
            read_journal(path)
        assert path.read_bytes() == bytes(damaged)


@pytest.mark.parametrize("zeros", [1, 3, 4, 15, 16, 17, 1206, 8192])
def test_trailing_zeros_are_a_torn_tail(path: Path, zeros: int) -> None:
    """As some file systems leave them after a crash."""
    write(path, ENTRIES)
    with path.open("ab") as file:
        file.write(bytes(zeros))
    journal = Journal.open(path, session_key=KEY, create=False)
    assert journal.entries == ENTRIES and journal.recovery.dropped_bytes == zeros
    journal.close()
    assert read_journal(path) == ENTRIES


def test_originals_are_kept_apart_by_number(path: Path) -> None:
    """Two repairs leave two copies."""
    asides = []
    for _ in range(3):
        write(path, ENTRIES[:1])
        with path.open("ab") as file:
            file.write(b"garbage")
        journal = Journal.open(path, session_key=KEY, create=False)
        asides.append(journal.recovery.aside)
        journal.close()
    assert [Path(a).name for a in asides] == ["journal.broken", "journal.broken-2", "journal.broken-3"]
    assert all(Path(a).stat().st_mode & 0o777 == 0o600 for a in asides)


@pytest.mark.parametrize("left", [None, 0, 20, FILE_HEADER.size, FILE_HEADER.size + 20])
def test_a_journal_that_holds_nothing_is_refused_when_it_was_expected_to_hold_something(
    path: Path, left: int | None
) -> None:
    """Never a fresh start, and what there is stays as it is."""
    write(path, ENTRIES[:1])
    if left is None:
        path.unlink()
    else:
        os.truncate(path, left)
    with pytest.raises(StorageError) as caught:
        Journal.open(path, session_key=KEY, create=False)
    assert caught.value.code == "journal_lost" and caught.value.mend
    assert (path.stat().st_size if path.exists() else None) == left
    assert len(list(path.parent.iterdir())) == (left is not None)


def test_files_that_are_no_journal_of_this_session_are_refused(path: Path) -> None:
    """Missing, another session's, another version's, something else: errors, and nothing is changed."""
    with pytest.raises(StorageError, match="No such file"):
        Journal.open(path, session_key=KEY, create=False)
    assert not path.exists()
    write(path, ENTRIES)
    with pytest.raises(StorageError, match="another session"):
        Journal.open(path, session_key=KEY + 1, create=False)
    for data in (b"hello", b"x" * 500, bytes(500)):
        path.write_bytes(data)
        with pytest.raises(StorageError) as caught:
            Journal.open(path, session_key=KEY, create=True)
        assert caught.value.mend and path.read_bytes() == data


def test_a_symlink_is_not_followed(path: Path, tmp_path: Path) -> None:
    """A sandboxed program must not be able to point the journal elsewhere."""
    target = tmp_path / "target"
    write(target, ENTRIES)
    path.symlink_to(target)
    with pytest.raises(StorageError):
        Journal.open(path, session_key=KEY, create=True)


def test_a_second_writer_is_refused_and_a_child_does_not_inherit_the_lock(path: Path) -> None:
    """The lock is held while the journal is open, and its descriptor closes on exec."""
    journal = Journal.open(path, session_key=KEY, create=True)
    with pytest.raises(RefusedError, match="another process"):
        Journal.open(path, session_key=KEY, create=True)
    assert fcntl.fcntl(journal._fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        journal.close()
        Journal.open(path, session_key=KEY, create=True).close()
        child.communicate(b"\n", timeout=30)
    assert child.returncode == 0


def test_a_reader_sees_whole_entries_while_the_writer_writes(path: Path) -> None:
    """Also when the last record is only half there."""
    journal = Journal.open(path, session_key=KEY, create=True)
    journal.append(ENTRIES[0])
    assert read_journal(path) == ENTRIES[:1]
    journal.append(ENTRIES[1])
    half = path.stat().st_size - 3
    journal.close()
    os.truncate(path, half)
    assert read_journal(path) == ENTRIES[:1]
    path.write_bytes(path.read_bytes()[:10])
    assert read_journal(path) == []


def test_an_entry_beyond_the_bound_is_refused_and_harms_nothing(path: Path) -> None:
    """16 MiB is the most; the next entry goes where it would have gone."""
    journal = Journal.open(path, session_key=KEY, create=True)
    with pytest.raises(StorageError, match="exceeds"):
        journal.append(j.UserSaid(text="x" * MAX_ENTRY_BYTES, turn=1))
    big = j.UserSaid(text="x" * (MAX_ENTRY_BYTES - 100), turn=1)
    assert journal.append(big) == 0
    journal.close()
    assert read_journal(path) == [big]


def test_after_a_failed_sync_nothing_may_be_appended(path: Path) -> None:
    """A descriptor that cannot be synced (a pipe's end stands in for a failing disk) poisons the journal."""
    journal = Journal.open(path, session_key=KEY, create=True)
    journal.append(ENTRIES[0])
    read_end, write_end = os.pipe()
    os.dup2(write_end, journal._fd)
    with pytest.raises(StorageError, match="cannot sync"):
        journal.sync()
    for call in (journal.sync, lambda: journal.append(ENTRIES[1])):
        with pytest.raises(StorageError, match="cannot sync"):
            call()
    journal.close()
    for fd in (read_end, write_end):
        os.close(fd)
    assert read_journal(path) == ENTRIES[:1]


FULL_DISK = """
import resource, sys
from ottod.errors import StorageError
from ottod.protocol.journal import UserSaid
from ottod.storage.journal import Journal

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
journal = Journal.open(sys.argv[1], session_key=1234, create=True)
written = 0
try:
    while True:
        journal.append(UserSaid(text="x" * 997, turn=written))
        written += 1
except StorageError as error:
    assert error.mend
try:
    journal.append(UserSaid(text="small", turn=0))
except StorageError:
    print(written)
"""


def test_a_full_disk_poisons_the_journal_and_loses_nothing_written(path: Path) -> None:
    """A write that did not fit leaves a torn tail, which the next opening cuts off and reports."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    written = int(done.stdout)
    assert written > 90
    journal = Journal.open(path, session_key=KEY, create=False)
    assert len(journal.entries) == written and journal.recovery.dropped_bytes > 0
    journal.close()


texts = st.text(max_size=200)
entries = st.lists(
    st.builds(j.UserSaid, text=texts, turn=st.integers(1, 99))
    | st.builds(j.Checkpoint, name=texts, turn=st.integers(1, 99), last_seq=st.integers(0, 1 << 60))
    | st.sampled_from(ENTRIES),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rounds=st.lists(st.tuples(entries, st.binary(max_size=64), st.integers(0, 80)), min_size=1, max_size=4))
def test_any_history_of_crashes_keeps_a_prefix_of_each_round(
    rounds: list[tuple[list[j.JournalEntry], bytes, int]],
) -> None:
    """Against a list: each crash cuts some bytes off and leaves some garbage; what is whole stays, in order."""
    with tempfile.TemporaryDirectory(prefix="journal-") as directory:
        path = Path(directory) / "journal"
        expected: list[j.JournalEntry] = []
        for batch, garbage, cut in rounds:
            ends = [path.stat().st_size if path.exists() else FILE_HEADER.size]
            journal = Journal.open(path, session_key=KEY, create=True)
            assert journal.entries == expected
            ends = [path.stat().st_size]
            for entry in batch:
                journal.append(entry)
                ends.append(path.stat().st_size)
            journal.close()
            length = max(ends[-1] - cut, ends[0])
            os.truncate(path, length)
            with path.open("ab") as file:
                file.write(garbage)
            expected += batch[: sum(end <= length for end in ends[1:])]
            assert read_journal(path) == expected
