"""Damage: whatever happens to the file, the ring opens, keeps the good records and says what is missing."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ottod.errors import StorageError
from ottod.ids import session_id
from ottod.storage.ring import Ring
from ottod.storage.ring_file import open_ring_file
from ottod.storage.ring_format import SUPERBLOCK_BYTES, Superblock, pack_superblock
from ottod.storage.ring_recovery import RingRecovery
from tests.storage.ring_model import BOOT, Written, append, judge, open_ring, read_all

SIZE_BYTES, SEGMENT_BYTES = 4096, 1024
LOUD, SOFT = 7, 8
SLICES = 8


class Sample:
    """The bytes of a ring that was killed: two sessions, four segments, one of them evicted once."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "sample.wal"
        ring = self.open(self.path)
        self.written: list[Written] = []
        for i in range(24):
            self.written += append(ring, SOFT if i % 6 == 0 else LOUD, count=2, payload_bytes=100)
        self.head = ring.head_offset
        self.kept = read_all(ring).events
        self.records = {
            (track.session_key, offset): (position, size)
            for track in ring._tracks.values()
            for segment in track.segments
            for offset, position, size in zip(segment.offsets, segment.positions, [140] * 99, strict=False)
        }
        self.segments = [s for t in ring._tracks.values() for s in t.segments]
        ring.close(clean=False)
        self.bytes = self.path.read_bytes()
        assert len(self.bytes) == SUPERBLOCK_BYTES + SIZE_BYTES

    def open(self, path: Path, *, boot_id: str = BOOT, min_next_offset: int = 1) -> Ring:
        return Ring.open(
            path, boot_id=boot_id, size_bytes=SIZE_BYTES, segment_bytes=SEGMENT_BYTES, min_next_offset=min_next_offset
        )

    def reopened(
        self, path: Path, data: bytes, *, boot_id: str = BOOT, goes_on: bool = True
    ) -> tuple[RingRecovery, list[Written]]:
        """Opens the damaged bytes and checks every promise that holds after any damage.

        If it `goes_on`, one more event is appended, and all of it is there when the ring is opened again.
        """
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        ring = self.open(path, boot_id=boot_id, min_next_offset=self.head)
        told = read_all(ring)
        judge(ring, self.written, told)
        for key in (LOUD, SOFT):
            judge(ring, self.written, read_all(ring, key=key, max_bytes=300), key=key)
        assert ring.head_offset >= self.head, "an offset that was given is never given again"
        recovery = ring.recovery
        if len(told.events) < len(self.kept):
            assert not recovery.is_intact and recovery.describe(), "a loss is said"
        if not goes_on:
            ring.close(clean=False)
            return recovery, told.events
        extra = append(ring, LOUD, first_seq=1000)
        after = read_all(ring).events
        assert after[-1:] == extra
        ring.close(clean=False)
        again = self.open(path, boot_id=boot_id, min_next_offset=self.head)
        assert again.recovery.is_intact, "damage is repaired, not found again"
        judge(again, self.written + extra, read_all(again))
        assert read_all(again).events == after
        again.close(clean=False)
        return recovery, told.events


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path)


@pytest.mark.parametrize("part", range(SLICES))
def test_truncated_at_every_byte(sample: Sample, tmp_path: Path, part: int) -> None:
    """A file of any length recovers to the last good record of each session and says how much was missing."""
    path = tmp_path / "ring.wal"
    for length in range(part, len(sample.bytes), SLICES):
        recovery, events = sample.reopened(path, sample.bytes[:length], goes_on=length % 16 == 0)
        if recovery.moved_aside:
            assert length < 376, "one copy of the superblock is enough"
            Path(recovery.moved_aside).unlink()
            continue
        assert recovery.missing_bytes == len(sample.bytes) - length
        whole = [
            w
            for (k, offset), (at, size) in sample.records.items()
            if at + size <= length
            for w in (offset, offset + 1)
        ]
        assert sorted(whole) == [e.offset for e in events]


@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_every_bit_of_a_record_flipped(sample: Sample, tmp_path: Path, which: str) -> None:
    """The session's segment ends before the record, everything else is intact, and the report names both."""
    mine = sorted((at, offset) for (key, offset), (at, _) in sample.records.items() if key == LOUD)
    at, offset = {"first": mine[0], "middle": mine[len(mine) // 2], "last": max(mine, key=lambda m: m[1])}[which]
    segment = next(s for s in sample.segments if s.base <= at < s.base + SEGMENT_BYTES)
    doomed = {
        (e.offset, e.key)
        for e in sample.kept
        if e.key == LOUD and segment.first_offset <= e.offset <= segment.last_offset and e.offset >= offset
    }
    for bit in range(140 * 8):
        data = bytearray(sample.bytes)
        data[at + bit // 8] ^= 1 << bit % 8
        recovery, events = sample.reopened(tmp_path / "ring.wal", bytes(data), goes_on=bit % 8 == 0)
        assert {(e.offset, e.key) for e in sample.kept} - {(e.offset, e.key) for e in events} == doomed
        assert [(t.session, t.position) for t in recovery.torn] == [(session_id(LOUD), at)]
        assert f"{session_id(LOUD)} is damaged after byte {at}" in recovery.describe()


def test_every_bit_of_a_segment_header_flipped(sample: Sample, tmp_path: Path) -> None:
    """One damaged copy of a segment's header costs nothing."""
    for bit in range(128 * 8):
        data = bytearray(sample.bytes)
        data[SUPERBLOCK_BYTES + bit // 8] ^= 1 << bit % 8
        _, events = sample.reopened(tmp_path / "ring.wal", bytes(data))
        assert events == sample.kept


def test_both_copies_of_a_segment_header_gone(sample: Sample, tmp_path: Path) -> None:
    """Nobody knows whose the segment was, so every session's readers are told that something may be missing."""
    data = bytearray(sample.bytes)
    data[SUPERBLOCK_BYTES + 20] ^= 4
    data[SUPERBLOCK_BYTES + 64 + 20] ^= 4
    recovery, _ = sample.reopened(tmp_path / "ring.wal", bytes(data))
    assert [(t.segment, t.session) for t in recovery.torn] == [(0, "")]


def test_every_byte_of_the_superblock_damaged(sample: Sample, tmp_path: Path) -> None:
    """No single damage to the superblock costs an event or makes an offset come back."""
    for position in [*range(376), *range(512, 888), *range(1024, 1048)]:
        data = bytearray(sample.bytes)
        data[position] ^= 1 << position % 8
        _, events = sample.reopened(tmp_path / "ring.wal", bytes(data))
        assert events == sample.kept
        sample.reopened(tmp_path / "ring.wal", bytes(data), boot_id="another boot")


def test_both_superblocks_gone(sample: Sample, tmp_path: Path) -> None:
    """The file is kept under another name, the new ring begins beyond every old offset and reports the loss."""
    path = tmp_path / "ring.wal"
    data = bytearray(sample.bytes)
    data[20] ^= 1
    data[512 + 20] ^= 1
    path.write_bytes(data)
    for number in ("", "-2"):
        ring = sample.open(path)
        assert ring.recovery.moved_aside == f"{path}.broken{number}"
        assert Path(ring.recovery.moved_aside).read_bytes() == bytes(data)
        assert "unreadable" in ring.recovery.describe()
        assert ring.head_offset > sample.head
        judge(ring, sample.written, read_all(ring))
        judge(ring, sample.written, read_all(ring, key=SOFT), key=SOFT)
        append(ring, LOUD)
        ring.close()
        path.write_bytes(data)


class BadDisk:
    """Reads, but for one sector."""

    def __init__(self, sector: int) -> None:
        self.sector = range(sector * 512, (sector + 1) * 512)

    def pread(self, fd: int, length: int, at: int) -> bytes:
        if length and at < self.sector.stop and at + length > self.sector.start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(fd, length, at)


@pytest.mark.parametrize("sector", range((SUPERBLOCK_BYTES + SIZE_BYTES) // 512))
def test_a_sector_that_cannot_be_read(sample: Sample, tmp_path: Path, sector: int) -> None:
    """The ring is put aside, whichever sector it is: in a mapping, a look at it would be the end of the process.

    The new ring begins beyond every offset that the rest still shows.
    """
    path = tmp_path / "ring.wal"
    path.write_bytes(sample.bytes)
    file, image = open_ring_file(
        path,
        size_bytes=SIZE_BYTES,
        segment_bytes=SEGMENT_BYTES,
        boot_id=BOOT,
        min_next_offset=1,
        pread=BadDisk(sector).pread,
    )
    file.close()
    assert image.recovery.moved_aside == f"{path}.broken" and not image.tracks
    assert Path(image.recovery.moved_aside).read_bytes() == sample.bytes
    assert image.next_offset > sample.head
    sample.open(path).close()


def test_a_file_that_is_gone_is_reported_when_offsets_were_given(tmp_path: Path) -> None:
    """`min_next_offset` keeps offsets from coming back and makes the loss a gap."""
    ring = Ring.open(tmp_path / "ring.wal", boot_id=BOOT, size_bytes=4096, segment_bytes=1024, min_next_offset=500)
    assert ring.head_offset == 500 and not ring.recovery.is_intact
    (gap,) = read_all(ring).gaps
    assert (gap.first, gap.last, gap.reason) == (1, 499, "lost")
    ring.close()


def test_another_version_is_refused(tmp_path: Path) -> None:
    """A ring of a newer format is not touched."""
    path = tmp_path / "ring.wal"
    open_ring(path).close()
    data = bytearray(path.read_bytes())
    for counter in (0, 1):
        at, copy = pack_superblock(Superblock(size_bytes=8192, segment_bytes=1024, counter=counter))
        body = copy[12:]
        body = (2).to_bytes(4, "little") + body[4:]
        data[at : at + len(copy)] = copy[:8] + zlib.crc32(body).to_bytes(4, "little") + body
    path.write_bytes(data)
    with pytest.raises(StorageError, match="another version") as caught:
        open_ring(path)
    assert caught.value.mend and path.read_bytes() == bytes(data)


def test_a_file_that_is_too_long_is_refused(sample: Sample, tmp_path: Path) -> None:
    """Bytes that nobody accounts for are not overwritten."""
    path = tmp_path / "ring.wal"
    path.write_bytes(sample.bytes + b"x")
    with pytest.raises(StorageError, match="bytes"):
        sample.open(path)


def test_the_same_boot_continues_and_another_declares_the_loss(sample: Sample, tmp_path: Path) -> None:
    """After a kill the page cache is intact; after a power failure the unsynced rest is one lost interval."""
    path = tmp_path / "ring.wal"
    path.write_bytes(sample.bytes)
    ring = sample.open(path)
    assert ring.recovery.is_intact and ring.head_offset == sample.head
    ring.close(clean=False)
    path.write_bytes(sample.bytes)
    ring = sample.open(path, boot_id="the next boot")
    assert ring.recovery.lost is not None and not ring.recovery.is_intact
    assert ring.recovery.lost[1] == ring.head_offset - 1
    assert "are lost" in ring.recovery.describe()
    judge(ring, sample.written, read_all(ring))
    ring.close()
    ring = sample.open(path, boot_id="one more boot")
    assert ring.recovery.is_intact, "a clean end needs no sync to vouch for it"
    judge(ring, sample.written, read_all(ring))
    ring.close()


def test_after_a_power_failure_everything_synced_is_there(tmp_path: Path) -> None:
    """What `sync` vouched for survives the loss of everything that came later."""
    path = tmp_path / "ring.wal"
    ring = open_ring(path)
    written = [w for _ in range(4) for w in append(ring, LOUD)]
    ring.sync()
    data = path.read_bytes()
    later = [w for _ in range(4) for w in append(ring, SOFT)]
    ring.close(clean=False)
    path.write_bytes(data)
    ring = open_ring(path, boot_id="the next boot")
    told = read_all(ring)
    assert told.events == written
    judge(ring, written + later, told)
    assert ring.head_offset > later[-1].offset
    ring.close()


def test_many_power_failures_are_all_remembered(tmp_path: Path) -> None:
    """The list of lost intervals is bounded; beyond the bound old history is given up, never the truth."""
    path = tmp_path / "ring.wal"
    ring = open_ring(path)
    written: list[Written] = []
    for boot in range(40):
        written += append(ring, LOUD, first_seq=boot + 1) + append(ring, boot + 100)
        ring.sync()
        written += append(ring, SOFT, first_seq=boot + 1)
        ring.close(clean=False)
        ring = open_ring(path, boot_id=f"boot {boot}")
        judge(ring, written, read_all(ring))
        judge(ring, written, read_all(ring, key=LOUD, max_bytes=1), key=LOUD)
    ring.close()


def test_a_full_disk_is_a_clean_error_at_creation(tmp_path: Path) -> None:
    """All space is taken at the start; what cannot be had is refused then, and nothing is left behind."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "from ottod.storage.ring import Ring\n"
        "from ottod.errors import StorageError\n"
        "try:\n"
        "    Ring.open(sys.argv[1], boot_id='b', size_bytes=1 << 20)\n"
        "except StorageError as error:\n"
        "    print(error.message, '|', error.mend)\n"
        "    sys.exit(7)\n"
    )
    path = tmp_path / "ring.wal"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr
    assert os.strerror(errno.EFBIG) in done.stdout and "free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 16


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_a_clean_error(tmp_path: Path) -> None:
    """And so is one that does not exist."""
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission"):
        open_ring(tmp_path / "ring.wal")
    tmp_path.chmod(0o700)


def test_a_missing_directory_is_a_clean_error(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(StorageError, match=r"nowhere/ring\.wal"):
        open_ring(tmp_path / "nowhere" / "ring.wal")
