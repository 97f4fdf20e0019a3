"""The ring against a naive model, and its promises one by one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ottod.errors import LocalProtocolError, RefusedError, StorageError
from ottod.ids import session_id
from ottod.protocol.events import Gap
from ottod.protocol.records import build_record, check_sealed, join_entries, parse_unsealed
from ottod.storage.ring import Ring
from tests.storage.ring_model import SEGMENT_BYTES, append, judge, open_ring, read_all, record

CHATTY, QUIET, OTHER = 11, 22, 33


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ring.wal"


def test_append_returns_the_record_as_it_is_in_the_file(path: Path) -> None:
    """The sealed bytes are valid, carry the offset given, and are what a reader gets."""
    ring = open_ring(path)
    raw = record(CHATTY, 1, count=3, payload_bytes=50)
    first, sealed = ring.append(raw, parse_unsealed(raw))
    header = check_sealed(sealed, 0, len(sealed))
    assert first == 1 and header is not None
    assert (header.first_offset, header.last_offset, header.last_seq) == (1, 3, 3)
    assert ring.read(0).items == (sealed,)
    assert ring.append(memoryview(record(CHATTY, 4)), parse_unsealed(record(CHATTY, 4)))[0] == 4
    ring.close()


def test_offsets_start_at_one_and_grow_by_one_per_event(path: Path) -> None:
    """Offsets are dense over all sessions."""
    ring = open_ring(path)
    offsets = [w.offset for key, n in ((1, 2), (2, 1), (1, 3)) for w in append(ring, key, count=n)]
    assert offsets == [1, 2, 3, 4, 5, 6]
    assert ring.head_offset == 7 and ring.tail_offset == 1
    assert ring.last_seq(1) == 5 and ring.last_seq(2) == 1 and ring.last_seq(3) == 0
    ring.close()


def test_a_chatty_session_does_not_evict_a_quiet_ones_history(path: Path) -> None:
    """One session writes a hundred times the ring; all of the other's events are still there, and no gap."""
    ring = open_ring(path)
    quiet = [w for _ in range(3) for w in append(ring, QUIET, payload_bytes=200)]
    written = list(quiet)
    total = 0
    while total < 100 * 8 * SEGMENT_BYTES:
        written += append(ring, CHATTY, payload_bytes=300)
        total += 340
    told = read_all(ring, key=QUIET)
    assert told.events == quiet and told.gaps == []
    spans = {span.session_key: span for span in ring.sessions()}
    assert spans[QUIET].segments == 1 and spans[CHATTY].segments == 7
    judge(ring, written, read_all(ring))
    ring.close()


def test_the_gap_of_an_evicted_prefix_is_exact(path: Path) -> None:
    """The gap runs from the cursor to the session's last evicted event and names the next seq to be had."""
    ring = open_ring(path)
    written = [w for _ in range(60) for w in append(ring, CHATTY, payload_bytes=200)]
    told = read_all(ring, 5, key=CHATTY)
    first_kept = told.events[0]
    assert told.gaps == [
        Gap(
            first=5,
            last=first_kept.offset - 1,
            reason="evicted",
            session=session_id(CHATTY),
            next_seq=first_kept.seq,
        )
    ]
    assert told.events == written[first_kept.offset - 1 :]
    assert read_all(ring, first_kept.offset, key=CHATTY).gaps == []
    ring.close()


def test_a_session_that_has_left_the_ring_gives_a_gap(path: Path) -> None:
    """More live sessions than segments: the oldest leave wholly, and readers of one or of all are told."""
    ring = open_ring(path)
    written = [w for key in range(1, 21) for w in append(ring, key, count=2)]
    assert len(ring.sessions()) == 8
    told = read_all(ring, key=1)
    assert told.events == []
    assert told.gaps == [Gap(first=1, last=2, reason="evicted", session=session_id(1))]
    everything = read_all(ring)
    assert Gap(first=1, last=24, reason="evicted") in everything.gaps
    judge(ring, written, everything)
    assert ring.last_seq(1) == 2, "the last seq is remembered"
    written += append(ring, 1)
    judge(ring, written, read_all(ring, key=1), key=1)
    judge(ring, written, read_all(ring))
    ring.close()


def test_more_sessions_than_segments_go_on_writing(path: Path) -> None:
    """Thrashing is slow, not wrong."""
    ring = open_ring(path)
    written = [w for i in range(400) for w in append(ring, i * 7 % 23 + 1, payload_bytes=100)]
    judge(ring, written, read_all(ring))
    for key in range(1, 24):
        judge(ring, written, read_all(ring, key=key), key=key)
    ring.close()


def test_an_ended_session_keeps_its_share_and_no_more(path: Path) -> None:
    """A session that stopped writing gives up segments while it holds most, and keeps an equal share."""
    ring = open_ring(path)
    for _ in range(60):
        append(ring, OTHER, payload_bytes=200)
    for _ in range(200):
        append(ring, CHATTY, payload_bytes=200)
    spans = {span.session_key: span.segments for span in ring.sessions()}
    assert spans == {OTHER: 4, CHATTY: 4}
    ring.close()


def test_a_record_that_does_not_fit_takes_the_next_segment(path: Path) -> None:
    """The rest of a segment stays empty, and nothing is lost."""
    ring = open_ring(path)
    written = append(ring, CHATTY, payload_bytes=500) + append(ring, CHATTY, payload_bytes=500)
    assert ring.sessions()[0].segments == 2
    assert read_all(ring).events == written
    ring.close()


def test_a_record_that_fits_no_segment_is_refused(path: Path) -> None:
    """And the ring goes on as if nothing had been."""
    ring = open_ring(path)
    with pytest.raises(RefusedError, match="does not fit"):
        append(ring, CHATTY, payload_bytes=SEGMENT_BYTES)
    assert append(ring, CHATTY)[0].offset == 1
    ring.close()


def test_the_largest_legal_record_fits_the_default_segment(path: Path) -> None:
    """96 KiB of payload go into a segment of 128 KiB."""
    ring = Ring.open(path, boot_id="b", size_bytes=1 << 20)
    payload = join_entries([b"\xc4" + b"x"]) + b"y" * (96 * 1024 - 3)
    raw = build_record(payload, session_key=1, first_seq=1, count=1, lane=0, incarnation=1)
    ring.append(raw, parse_unsealed(raw))
    assert len(ring.read(0).items[0]) == 40 + 96 * 1024  # type: ignore[arg-type]
    ring.close()


def test_a_seq_that_is_not_newer_is_our_own_bug(path: Path) -> None:
    """The hub drops duplicates before they come here."""
    ring = open_ring(path)
    append(ring, CHATTY, count=5)
    for seq in (1, 5):
        with pytest.raises(LocalProtocolError):
            append(ring, CHATTY, first_seq=seq)
    assert ring.head_offset == 6
    ring.close()


def test_a_jump_in_seq_is_kept_apart_and_makes_no_gap(path: Path) -> None:
    """After a power failure a session goes on with a higher seq."""
    ring = open_ring(path)
    written = append(ring, CHATTY) + append(ring, CHATTY, first_seq=50)
    told = read_all(ring)
    assert told.events == written and told.gaps == []
    ring.close(clean=False)
    ring = open_ring(path)
    assert read_all(ring).events == written
    assert ring.recovery.is_intact
    ring.close()


def test_a_cursor_ahead_of_the_ring_is_refused(path: Path) -> None:
    """An offset that was not given yet is a mistake, not a wait."""
    ring = open_ring(path)
    append(ring, CHATTY)
    assert ring.read(2) == ((), 2, True)
    with pytest.raises(RefusedError):
        ring.read(3)
    ring.close()


def test_a_cursor_in_the_middle_of_a_record_gets_the_whole_record(path: Path) -> None:
    """The client skips what it has."""
    ring = open_ring(path)
    append(ring, OTHER, count=4)
    written = append(ring, CHATTY, count=4)
    told = read_all(ring, 7)
    assert told.events == written and told.gaps == []
    assert read_all(ring, 7, key=OTHER).events == []
    ring.close()


def test_chunks_are_bounded_and_give_at_least_one_record(path: Path) -> None:
    """A reader with little credit gets one record at a time, never none."""
    ring = open_ring(path)
    written = [w for i in range(9) for w in append(ring, i % 2 + 1, payload_bytes=60)]
    told = read_all(ring, max_bytes=1)
    assert told.events == written and told.chunks == 9
    for max_bytes in (99, 100, 101, 250, 300):
        assert read_all(ring, max_bytes=max_bytes).events == written
        chunk = ring.read(0, max_bytes=max_bytes)
        assert sum(len(i) for i in chunk.items if isinstance(i, bytes)) <= max(max_bytes, 100)
    ring.close()


def test_runs_are_contiguous_where_the_file_is(path: Path) -> None:
    """One session's segment comes as one run, and interleaved sessions are joined in order of offset."""
    ring = open_ring(path)
    for _ in range(5):
        append(ring, CHATTY)
    for _ in range(5):
        append(ring, QUIET)
    chunk = ring.read(0)
    assert len(chunk.items) == 1 and isinstance(chunk.items[0], bytes)
    ring.close()


@pytest.mark.parametrize("seed", range(8))
def test_any_reader_is_told_everything_once(path: Path, seed: int) -> None:
    """Random writers, cursors and chunk sizes: records and gaps together are the whole history."""
    rng = random.Random(seed)
    ring = open_ring(path)
    written = []
    for _ in range(300):
        key = rng.choice((1, 1, 1, 1, 2, 2, 3, 4, 5, rng.randrange(6, 30)))
        written += append(ring, key, count=rng.randrange(1, 5), payload_bytes=rng.randrange(5, 300))
        if rng.random() < 0.2:
            cursor, max_bytes = rng.randrange(ring.head_offset + 1), rng.choice((1, 200, 1000, 1 << 20))
            judge(ring, written, read_all(ring, cursor, max_bytes=max_bytes), cursor=cursor)
            judge(ring, written, read_all(ring, cursor, key=key, max_bytes=max_bytes), cursor=cursor, key=key)
    ring.close()


def test_wrong_sizes_are_refused_with_a_mend(path: Path) -> None:
    """Sizes that make no ring, and sizes that are not the file's."""
    for size, segment in ((8192, 1000), (1024, 1024), (8192, 512)):
        with pytest.raises(StorageError) as caught:
            open_ring(path, size_bytes=size, segment_bytes=segment)
        assert caught.value.mend
    open_ring(path).close()
    for size, segment in ((16384, 1024), (8192, 2048)):
        with pytest.raises(StorageError, match="configuration says") as caught:
            open_ring(path, size_bytes=size, segment_bytes=segment)
        assert caught.value.mend


def test_a_second_writer_is_refused(path: Path) -> None:
    """The file is locked for as long as it is open."""
    ring = open_ring(path)
    with pytest.raises(StorageError, match="another process"):
        open_ring(path)
    ring.close()
    open_ring(path).close()


def test_sync_marks_what_is_on_disk(path: Path) -> None:
    """`sync` returns the newest durable offset, and does nothing when there is nothing to do."""
    ring = open_ring(path)
    append(ring, CHATTY, count=3)
    assert ring.stats().synced_offset == 0
    assert ring.sync() == 3 and ring.stats().synced_offset == 3
    assert ring.sync() == 3 and ring.stats().syncs == 1
    ring.close()
    ring.close()


def test_used_bytes_counts_records_only(path: Path) -> None:
    """Also after evictions and reopening."""
    ring = open_ring(path)
    append(ring, QUIET, payload_bytes=60)
    assert ring.used_bytes == 100
    for _ in range(100):
        append(ring, CHATTY, payload_bytes=160)
    used = ring.used_bytes
    assert used == sum(len(i) for i in ring.read(0).items if isinstance(i, bytes))
    stats = ring.stats()
    assert stats.free_segments == 0 and stats.evicted_segments > 0 and stats.appended_records == 101
    ring.close()
    ring = open_ring(path)
    assert ring.used_bytes == used
    ring.close()
