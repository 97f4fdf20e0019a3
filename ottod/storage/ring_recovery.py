"""What a ring holds when it is opened, and what it lost.

Every segment keeps its longest prefix of valid records. What follows a prefix is one of three things: zeros (the
normal end); an append that a crash cut short, which the head note names and nobody ever saw; or damage. Damage at a
session's newest end is sealed, so that readers get a hole up to the newest offset known to have been given; damage
further back is described by the next segment's `prev_last_offset`.

After a power failure pages may be missing anywhere beyond the last sync. Then the ring is cut at the last offset up
to which nothing is missing, and everything from there to the reserved limit becomes one lost interval: exact for
every session, and no offset that a subscriber may have seen is given again.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from mmap import mmap
from typing import NamedTuple

import msgspec

from ottod.core.ring import Segment, Track, contiguous_end
from ottod.ids import session_id
from ottod.protocol.records import HEADER, HEADER_BYTES, MAX_PAYLOAD_BYTES
from ottod.settings.units import plural
from ottod.storage.ring_format import (
    MAX_LOST_INTERVALS,
    SEGMENT_HEADER_BYTES,
    SUPERBLOCK_BYTES,
    HeadNote,
    SegmentHeader,
    Superblock,
    is_cleared,
    read_head_note,
    read_seal,
    read_segment_header,
    write_seal,
    write_superblock,
)


class TornSegment(msgspec.Struct, frozen=True, kw_only=True):
    """Damage in one segment. `position` is the byte in the file where the last good record ends.

    `session` is its id, empty if the damage hides whose segment it was.
    """

    segment: int
    position: int
    session: str = ""


class RingRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """What opening the ring found.

    `unfinished_append`: a crash cut the last append short, and nothing that was delivered is missing.
    `lost` is the (first, last) interval of offsets that a power failure took, or that went with an older file.
    `missing_bytes` were cut off the file's end. `moved_aside` is where an unreadable ring was put.
    """

    created: bool = False
    records: int = 0
    events: int = 0
    sessions: int = 0
    unfinished_append: bool = False
    torn: tuple[TornSegment, ...] = ()
    lost: tuple[int, int] | None = None
    missing_bytes: int = 0
    moved_aside: str = ""

    @property
    def is_intact(self) -> bool:
        """Nothing that was ever delivered is missing."""
        return not self.torn and self.lost is None and not self.missing_bytes and not self.moved_aside

    def describe(self) -> str:
        """One line for people."""
        if self.moved_aside:
            return f"new ring: the old one was unreadable and is kept as {self.moved_aside}"
        if self.created:
            return "new ring" + (f", everything before offset {self.lost[1] + 1} is lost" if self.lost else "")
        held = f"{plural(self.events, 'event')} in {plural(self.records, 'record')}"
        parts = [f"{held} of {plural(self.sessions, 'session')}"]
        if self.missing_bytes:
            parts.append(f"the file was {plural(self.missing_bytes, 'byte')} short")
        parts += [f"{t.session or 'a segment'} is damaged after byte {t.position}" for t in self.torn[:4]]
        if len(self.torn) > 4:
            parts.append(f"{plural(len(self.torn) - 4, 'more segment')} damaged")
        if self.lost is not None:
            parts.append(f"events in offsets {self.lost[0]} to {self.lost[1]} are lost")
        if self.unfinished_append:
            parts.append("dropped one unfinished append")
        return "; ".join(parts) + ("; intact" if self.is_intact else "")


class Image(NamedTuple):
    """A recovered ring. `tracks` are ordered by the newest offset they know, oldest first."""

    tracks: list[Track]
    free: list[int]
    next_offset: int
    next_generation: int
    superblock: Superblock
    recovery: RingRecovery


class _Scan(NamedTuple):
    """One segment as found. `torn_at` is 0 if it ends properly."""

    number: int
    header: SegmentHeader | None
    segment: Segment | None
    torn_at: int


class _Horizon(NamedTuple):
    """Where the past ends: `known` is the newest offset that is accounted for, `next_offset` the first to be given.

    In (`whole_after`, known] no offset is missing; None if that was not looked at.
    """

    known: int
    next_offset: int
    lost: tuple[int, int] | None = None
    whole_after: int | None = None


def recover(buffer: mmap, superblock: Superblock, *, boot_id: str, missing_bytes: int = 0) -> Image:
    """Reads the whole ring and repairs it in place; nothing is synced yet."""
    note = read_head_note(buffer)
    with memoryview(buffer) as view:
        scans = [scan_segment(view, n, superblock) for n in range(superblock.segment_count)]
    horizon = _find_horizon(superblock, note, [s.segment for s in scans if s.segment], boot_id=boot_id)
    unfinished = note.append_position if note is not None and horizon.lost is None else 0
    torn = [s for s in scans if s.torn_at and s.torn_at != unfinished and not _is_covered(s, horizon)]
    if horizon.whole_after is not None:
        for scan in scans:
            if scan.segment is not None:
                scan.segment.cut_after(horizon.known)
    tracks = _group([s.segment for s in scans if s.segment is not None and s.segment.offsets])
    everywhere = superblock.damaged or not _has_all_synced(superblock, horizon, tracks)
    forgotten = _seal_damage(buffer, tracks, torn, horizon.known, everywhere=everywhere)
    superblock = msgspec.structs.replace(
        superblock, counter=superblock.counter + 1, forgotten_offset=max(superblock.forgotten_offset, forgotten)
    )
    # Before the damage is cleared away below, or a crash in between would leave no trace of it.
    write_superblock(buffer, superblock)
    if horizon.lost is not None:
        superblock = msgspec.structs.replace(superblock, lost=with_lost(superblock.lost, horizon.lost))
    superblock = _fold_lost(superblock, tracks)
    kept = {s.number: s for track in tracks.values() for s in track.segments}
    for n in range(superblock.segment_count):
        _clear_tail(buffer, superblock, n, kept.get(n))
    recovery = RingRecovery(
        records=sum(len(s.offsets) for s in kept.values()),
        events=sum(s.last_seq - s.first_seq + 1 for s in kept.values()),
        sessions=len(tracks),
        unfinished_append=any(s.torn_at == unfinished for s in scans if s.torn_at),
        torn=tuple(_describe_torn(s) for s in torn),
        lost=horizon.lost,
        missing_bytes=missing_bytes,
    )
    return Image(
        tracks=sorted(tracks.values(), key=lambda track: track.reach),
        free=[n for n in range(superblock.segment_count - 1, -1, -1) if n not in kept],
        next_offset=horizon.next_offset,
        next_generation=1 + max((s.generation for s in kept.values()), default=0),
        superblock=superblock,
        recovery=recovery,
    )


def scan_segment(view: memoryview, number: int, superblock: Superblock) -> _Scan:
    """The longest valid prefix of one segment."""
    base = SUPERBLOCK_BYTES + number * superblock.segment_bytes
    stop = base + superblock.segment_bytes
    start = base + SEGMENT_HEADER_BYTES
    header = read_segment_header(view, base)
    if header is None:
        # A segment that a crash left half cleared is free; one whose header was being written holds no record yet.
        damaged = not is_cleared(view, base) and not _is_zero(view, start, stop)
        return _Scan(number, None, None, base if damaged else 0)
    segment = Segment(
        number=number,
        base=base,
        start=start,
        session_key=header.session_key,
        generation=header.generation,
        first_offset=header.first_offset,
        first_seq=header.first_seq,
        prev_last_offset=header.prev_last_offset,
    )
    _scan_records(view, segment, stop)
    for first, last in superblock.lost:
        # What a past recovery cut off may be back if the machine failed before the cut reached the disk.
        i = bisect_left(segment.offsets, first)
        if i < len(segment.offsets) and segment.offsets[i] <= last:
            segment.cut_after(first - 1)
            return _Scan(number, header, segment if segment.offsets else None, 0)
    segment.lost_to = read_seal(view, base, generation=header.generation)
    torn_at = 0 if _is_zero(view, segment.end, stop) else segment.end
    return _Scan(number, header, segment if segment.offsets else None, torn_at)


def _scan_records(view: memoryview, segment: Segment, stop: int) -> None:
    """Indexes the valid records: whole, of this session, seq without a hole, offsets growing."""
    unpack, crc32, key = HEADER.unpack_from, zlib.crc32, segment.session_key
    at, next_seq, min_offset = segment.end, segment.first_seq, segment.first_offset
    while stop - at >= HEADER_BYTES:
        crc, length, session_key, first, seq, count, _, _, _ = unpack(view, at)
        end = at + HEADER_BYTES + length
        if session_key != key or seq != next_seq or first < min_offset or count == 0:
            break
        if length > MAX_PAYLOAD_BYTES or end > stop or crc32(view[at + 4 : end]) != crc:
            break
        if not segment.offsets and first != segment.first_offset:
            break
        segment.add(at, end - at, first, count)
        at, next_seq, min_offset = end, seq + count, first + count


def _find_horizon(
    superblock: Superblock, note: HeadNote | None, segments: list[Segment], *, boot_id: str
) -> _Horizon:
    newest = max((s.last_offset for s in segments), default=0)
    same_boot = boot_id != "" and boot_id == superblock.boot_id
    if note is not None and (same_boot or superblock.clean):
        known = max(note.next_offset - 1, newest)
        return _Horizon(known, known + 1)
    next_offset = max(superblock.offset_limit, newest + 1)
    known, whole_after = newest, None
    if not same_boot:
        records = ((first, n) for s in segments for first, n in zip(s.offsets, s.counts, strict=True))
        known, whole_after = contiguous_end(records, superblock.synced_offset), superblock.synced_offset
    lost = (known + 1, next_offset - 1) if known + 1 < next_offset else None
    return _Horizon(known, next_offset, lost, whole_after)


def _is_covered(scan: _Scan, horizon: _Horizon) -> bool:
    """A power failure explains the torn end: what is missing here lies in the lost interval."""
    if horizon.whole_after is None or scan.header is None:
        return False
    if scan.segment is None:
        return scan.header.first_offset > horizon.whole_after
    return scan.segment.last_offset >= horizon.whole_after


def _has_all_synced(superblock: Superblock, horizon: _Horizon, tracks: dict[int, Track]) -> bool:
    """Whether a power failure left everything that was ever synced.

    It does not if synced segments were evicted since: their place is taken, perhaps only in part, and what was
    written there, or newer segments of the same sessions, may not have reached the disk.
    """
    synced = horizon.whole_after
    if synced is None:
        return True
    there = 0
    for track in tracks.values():
        for segment in track.segments:
            upto = bisect_right(segment.offsets, synced)
            there += (
                segment.last_seq - segment.first_seq + 1
                if upto == len(segment.offsets)
                else sum(segment.counts[:upto])
            )
    return there == synced - superblock.missing_events


def _group(segments: list[Segment]) -> dict[int, Track]:
    """Tracks by session. A segment that contradicts a newer one of its session is left out."""
    tracks: dict[int, Track] = {}
    for segment in sorted(segments, key=lambda s: s.generation, reverse=True):
        track = tracks.setdefault(segment.session_key, Track(segment.session_key))
        if track.segments:
            newer = track.segments[-1]
            if segment.last_offset >= newer.first_offset or segment.last_seq >= newer.first_seq:
                continue
        track.segments.append(segment)
    for track in tracks.values():
        track.segments.reverse()
    return tracks


def _seal_damage(buffer: mmap, tracks: dict[int, Track], torn: list[_Scan], known: int, *, everywhere: bool) -> int:
    """Seals the newest segment of each session that may have lost its end. Returns the offset to forget up to.

    When nobody can say whose the damage was, every session is told, and so are readers of vanished sessions.
    """
    forgotten = 0
    damaged: set[int] = set()
    for scan in torn:
        if scan.header is None:
            everywhere = True
            continue
        track = tracks.get(scan.header.session_key)
        if track is None:
            forgotten = known
        elif track.segments[-1].generation <= scan.header.generation:
            damaged.add(track.session_key)
    if everywhere:
        forgotten = known
        damaged = set(tracks)
    for key in damaged:
        segment = tracks[key].segments[-1]
        if segment.last_offset < known:
            segment.lost_to = known
            write_seal(buffer, segment.base, generation=segment.generation, lost_to=known)
    return forgotten


def with_lost(intervals: tuple[tuple[int, int], ...], lost: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The intervals and a newer one, which becomes a part of its neighbour if nothing lies between them."""
    if intervals and intervals[-1][1] + 1 == lost[0]:
        return (*intervals[:-1], (intervals[-1][0], lost[1]))
    return (*intervals, lost)


def _fold_lost(superblock: Superblock, tracks: dict[int, Track]) -> Superblock:
    """Keeps the list of lost intervals within its bound.

    The two oldest become one once nothing is left between them: what is there, and older, is given up.
    """
    lost, forgotten = superblock.lost, superblock.forgotten_offset
    while len(lost) > MAX_LOST_INTERVALS:
        (first, _), (until, last), *rest = lost
        for key in list(tracks):
            track = tracks[key]
            reach = track.reach
            track.segments = [s for s in track.segments if s.first_offset > until]
            if not track.segments:
                forgotten = max(forgotten, reach)
                del tracks[key]
        lost = ((first, last), *rest)
    return msgspec.structs.replace(superblock, lost=lost, forgotten_offset=forgotten)


def _clear_tail(buffer: mmap, superblock: Superblock, number: int, segment: Segment | None) -> None:
    """Zeroes what lies behind a segment's records, or all of a free one, where it is not zero already."""
    base = SUPERBLOCK_BYTES + number * superblock.segment_bytes
    stop = base + superblock.segment_bytes
    at = segment.end if segment is not None else base
    if buffer[at:stop] != bytes(stop - at):
        buffer[at:stop] = bytes(stop - at)


def _describe_torn(scan: _Scan) -> TornSegment:
    session = session_id(scan.header.session_key) if scan.header is not None else ""
    return TornSegment(segment=scan.number, position=scan.torn_at, session=session)


def _is_zero(view: memoryview, start: int, stop: int) -> bool:
    return bytes(view[start:stop]) == bytes(stop - start)
