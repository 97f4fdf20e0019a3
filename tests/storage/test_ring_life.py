"""The ring in real life: a process killed in the middle, a sync beside the appends, offsets reserved in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ottod.errors import StorageError
from ottod.storage.ring import Ring
from ottod.storage.ring_durability import RESERVED_OFFSETS
from ottod.storage.ring_format import read_superblock
from tests.storage.ring_model import BOOT, Written, append, judge, open_ring, read_all

WRITER = """
import sys
from tests.storage.ring_model import append, open_ring
ring = open_ring(sys.argv[1], size_bytes=1 << 20, segment_bytes=1 << 14)
print("ready", flush=True)
n = 0
while True:
    n += 1
    for event in append(ring, n % 7 + 1, count=2, payload_bytes=150):
        sys.stdout.write(f"{event.offset} {event.key} {event.seq}\\n")
    sys.stdout.flush()
"""


def test_killed_in_the_middle_everything_delivered_is_there(tmp_path: Path) -> None:
    """kill -9, three times over: each event whose offset was given is in the ring, and no offset is given twice."""
    path = tmp_path / "ring.wal"
    written: list[Written] = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(400)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().split("\n")
        process.stdout.close()
        process.wait(timeout=30)
        # The last line may have been cut by the kill.
        events = [Written(*map(int, line.split())) for line in lines if len(line.split()) == 3][:-1]
        assert not written or events[0].offset > written[-1].offset
        written += events
        ring = open_ring(path, size_bytes=1 << 20, segment_bytes=1 << 14)
        assert ring.recovery.is_intact, ring.recovery.describe()
        told = set(read_all(ring).events)
        assert told >= set(written), "well below the ring's size, nothing was evicted"
        # What was appended and never said is known only now.
        written = sorted(told)
        ring.close(clean=False)


def test_syncing_beside_appends(tmp_path: Path) -> None:
    """A thread syncs as fast as it can while the loop's thread appends: every mark on disk is true."""
    ring = open_ring(tmp_path / "ring.wal", size_bytes=1 << 16, segment_bytes=1 << 12)
    done = threading.Event()
    marks: list[int] = []

    def sync() -> None:
        while not done.is_set():
            marks.append(ring.sync())

    thread = threading.Thread(target=sync)
    thread.start()
    written = [w for n in range(3000) for w in append(ring, n % 5 + 1, count=3, payload_bytes=60)]
    # A slow disk may still be at its first.
    give_up_at = time.monotonic() + 60
    while len(marks) < 2 and time.monotonic() < give_up_at:
        time.sleep(0.001)
    done.set()
    thread.join(30)
    assert marks == sorted(marks) and len(marks) > 1
    judge(ring, written, read_all(ring))
    ring.close()
    ring = open_ring(tmp_path / "ring.wal", size_bytes=1 << 16, segment_bytes=1 << 12, boot_id="the next boot")
    assert ring.recovery.is_intact
    judge(ring, written, read_all(ring))
    ring.close()


@pytest.mark.parametrize("is_synced", [False, True])
def test_offsets_are_reserved_before_they_are_given(tmp_path: Path, is_synced: bool) -> None:
    """The limit in the file is ahead of the head at all times, whether or not somebody syncs."""
    path = tmp_path / "ring.wal"
    ring = Ring.open(path, boot_id=BOOT, size_bytes=1 << 16, segment_bytes=1 << 13)
    while ring.head_offset < 3 * RESERVED_OFFSETS:
        append(ring, 1, count=4096, payload_bytes=5000)
        with path.open("rb") as file:
            superblock = read_superblock(file.read(4096))
        assert superblock is not None and superblock.offset_limit >= ring.head_offset
        if is_synced and ring.head_offset % 7 == 0:
            ring.sync()
    ring.close(clean=False)
    ring = Ring.open(path, boot_id="the next boot", size_bytes=1 << 16, segment_bytes=1 << 13)
    assert ring.head_offset > 3 * RESERVED_OFFSETS
    ring.close()


def test_after_a_failed_sync_every_sync_fails_and_the_next_start_assumes_a_loss(tmp_path: Path) -> None:
    """A descriptor that cannot be synced stands in for a failing disk."""
    ring = open_ring(tmp_path / "ring.wal")
    append(ring, 1)
    good = os.dup(ring._file.fd)
    read_end, write_end = os.pipe()
    os.dup2(write_end, ring._file.fd)
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot sync") as caught:
            ring.sync()
        assert caught.value.mend
    written = append(ring, 1)
    assert read_all(ring).events[-1:] == written, "the ring itself goes on"
    os.dup2(good, ring._file.fd)
    with pytest.raises(StorageError, match="cannot sync"):
        ring.close()
    for fd in (good, read_end, write_end):
        os.close(fd)
    ring = open_ring(tmp_path / "ring.wal", boot_id="the next boot")
    assert not ring.recovery.is_intact
    ring.close()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """Opening, failing to open and closing leave no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    path = tmp_path / "ring.wal"
    for _ in range(3):
        ring = open_ring(path)
        with pytest.raises(StorageError):
            open_ring(path)
        ring.close()
        with pytest.raises(StorageError):
            open_ring(path, size_bytes=1 << 14)
    path.write_bytes(b"")
    open_ring(path).close()
    assert len(os.listdir("/proc/self/fd")) == before
