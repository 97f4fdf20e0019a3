"""Sessions that have wholly left the ring: how far they had got outlives root, and only what is certain does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ottod.storage.ring import Ring
from ottod.storage.ring_format import DEPARTURE_SLOTS, DEPARTURES_AT
from tests.storage.ring_model import append, open_ring

SEGMENTS = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ring.wal"


def crowded(path: Path, sessions: int) -> Ring:
    """A ring in which that many sessions have said three things each, one after the other."""
    ring = open_ring(path)
    for key in range(1, sessions + 1):
        append(ring, key, count=3)
    return ring


def test_a_departed_sessions_last_seq_outlives_root(path: Path) -> None:
    """Root is killed: the next one knows the seqs of all that had left, as long as there are slots for them."""
    crowded(path, SEGMENTS + 5).close(clean=False)
    ring = open_ring(path)
    assert [ring.last_seq(key) for key in range(1, SEGMENTS + 6)] == [3] * (SEGMENTS + 5)
    assert ring.is_same_boot and len(ring.sessions()) == SEGMENTS
    append(ring, 1)
    assert ring.last_seq(1) == 4
    ring.close()


def test_the_newest_departure_counts(path: Path) -> None:
    """A session that came back and left again is remembered as it was the last time."""
    ring = crowded(path, SEGMENTS + 1)
    append(ring, 1, count=2)
    for key in range(100, 100 + SEGMENTS):
        append(ring, key)
    ring.close(clean=False)
    ring = open_ring(path)
    assert ring.last_seq(1) == 5
    ring.close()


def test_the_oldest_departures_are_forgotten(path: Path) -> None:
    """The slots are used in turn; of what does not fit any more nothing is said, rather than something old."""
    sessions = SEGMENTS + DEPARTURE_SLOTS + 10
    crowded(path, sessions).close(clean=False)
    ring = open_ring(path)
    known = [key for key in range(1, sessions + 1) if ring.last_seq(key)]
    assert known == list(range(11, sessions + 1))
    ring.close()


def test_another_boot_knows_nothing_of_departures(path: Path) -> None:
    """They are never synced: after a power failure they may be older than what was said since."""
    crowded(path, SEGMENTS + 1).close(clean=False)
    ring = open_ring(path, boot_id="another")
    assert ring.last_seq(1) == 0 and not ring.is_same_boot
    ring.close(clean=False)


def test_a_damaged_slot_is_no_departure(path: Path) -> None:
    """Whatever single byte of it is wrong: the session is unknown then, and nothing else suffers."""
    crowded(path, SEGMENTS + 2).close(clean=False)
    for byte in range(32):
        data = bytearray(path.read_bytes())
        data[DEPARTURES_AT + byte] ^= 0x40
        damaged = path.with_name(f"damaged-{byte}.wal")
        damaged.write_bytes(data)
        ring = open_ring(damaged)
        assert (ring.last_seq(1), ring.last_seq(2)) == (0, 3), byte
        ring.close()
