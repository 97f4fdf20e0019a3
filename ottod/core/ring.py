"""Ring arithmetic: whose segment goes, which bytes a reader gets next, and what is missing in between.

Theory. Offsets are global and dense: every event ever appended has one, and each belongs to one session. A
session's events lie in its segments, in order; it only ever loses its oldest segment. What a session lacks is
therefore always describable: before each of its segments there may be a *hole*, from the end of the segment before
(or from the beginning) to the segment's `prev_last_offset`. A hole before the first segment was evicted, one in
the middle or at the end was lost to damage. Holes that concern all sessions are handed in by the caller.

A reader is one integer, its cursor: the next offset it wants. A read covers [cursor, next_cursor - 1], and holes
are cut to that range; so over any sequence of reads the records and the holes together cover every offset once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal, NamedTuple

LostReason = Literal["evicted", "lost"]


class Segment:
    """The index of one segment in use. `base` and `end` are byte positions in the file, as are `positions`.

    Record i starts at `positions[i]` with offset `offsets[i]` and holds `counts[i]` events. `lost_to` is not 0 when
    the segment's tail was damaged: all events of the session in (last_offset, lost_to] are gone, and nothing may be
    appended here.
    """

    __slots__ = (
        "base",
        "counts",
        "end",
        "first_offset",
        "first_seq",
        "generation",
        "last_offset",
        "last_seq",
        "lost_to",
        "number",
        "offsets",
        "positions",
        "prev_last_offset",
        "session_key",
    )

    def __init__(
        self,
        *,
        number: int,
        base: int,
        start: int,
        session_key: int,
        generation: int,
        first_offset: int,
        first_seq: int,
        prev_last_offset: int,
    ) -> None:
        self.number = number
        self.base = base
        self.end = start
        self.session_key = session_key
        self.generation = generation
        self.first_offset = first_offset
        self.first_seq = first_seq
        self.prev_last_offset = prev_last_offset
        self.last_offset = first_offset - 1
        self.last_seq = first_seq - 1
        self.lost_to = 0
        self.positions = array("Q")
        self.offsets = array("Q")
        self.counts = array("H")

    def add(self, position: int, size_bytes: int, offset: int, count: int) -> None:
        """Indexes the record that was just written at `position`."""
        self.positions.append(position)
        self.offsets.append(offset)
        self.counts.append(count)
        self.end = position + size_bytes
        self.last_offset = offset + count - 1
        self.last_seq += count

    def cut_after(self, offset: int) -> None:
        """Forgets the records that begin after `offset`."""
        keep = bisect_right(self.offsets, offset)
        if keep == len(self.offsets):
            return
        self.end = self.positions[keep]
        self.last_seq -= sum(self.counts[keep:])
        del self.positions[keep:], self.offsets[keep:], self.counts[keep:]
        self.last_offset = self.offsets[-1] + self.counts[-1] - 1 if keep else self.first_offset - 1

    def index_at(self, cursor: int) -> int:
        """The first record whose last offset is at or after `cursor`; one exists if last_offset >= cursor."""
        i = bisect_right(self.offsets, cursor) - 1
        if i < 0:
            return 0
        return i if self.offsets[i] + self.counts[i] > cursor else i + 1


class Track:
    """One session in the ring: its segments, oldest first; never empty while it is known."""

    __slots__ = ("segments", "session_key")

    def __init__(self, session_key: int) -> None:
        self.session_key = session_key
        self.segments: list[Segment] = []

    @property
    def reach(self) -> int:
        """The newest offset on which this session has anything to say, be it a record or a hole."""
        newest = self.segments[-1]
        return max(newest.last_offset, newest.lost_to)


class Hole(NamedTuple):
    """Events of `session_key` (None: of many sessions) with offsets in [first, last] cannot be given."""

    first: int
    last: int
    reason: LostReason
    session_key: int | None
    next_seq: int


class Span(NamedTuple):
    """Bytes [start, stop) of the file: whole records back to back."""

    start: int
    stop: int


class Plan(NamedTuple):
    """What a read delivers, in order of offset, and where the next one begins."""

    parts: list[Span | Hole]
    next_cursor: int
    caught_up: bool


def choose_victim(tracks: Iterable[Track], *, asking: int) -> Track:
    """The session that must give up its oldest segment so that session `asking` can have one.

    It is the one that holds most, the segment asked for included; of several, the one whose oldest segment is the
    oldest. Taking from the richest is max-min fairness: a session keeps its history for as long as it holds no more
    than an equal share, and nobody grows at the cost of one that holds no more than itself. There must be at least
    one track.
    """
    victim: Track | None = None
    most, oldest = 0, 0
    for track in tracks:
        held = len(track.segments)
        if track.session_key == asking:
            held += 1
        if held < most:
            continue
        generation = track.segments[0].generation
        if held > most or generation < oldest:
            victim, most, oldest = track, held, generation
    assert victim is not None
    return victim


def contiguous_end(records: Iterable[tuple[int, int]], start: int) -> int:
    """The largest offset up to which, counting from `start` + 1, no offset is missing.

    `records` are (first offset, count) in any order; those at or below `start` do not matter.
    """
    end = start
    for first, count in sorted(records):
        if first > end + 1:
            break
        end = max(end, first + count - 1)
    return end


class _Lane:
    """A track being read: the next record is `segment.positions[index]`."""

    __slots__ = ("index", "segment", "segment_index", "track")

    def __init__(self, track: Track, segment_index: int, index: int) -> None:
        self.track = track
        self.segment_index = segment_index
        self.segment = track.segments[segment_index]
        self.index = index


# An offset, a tie-breaker and what is there. At equal offsets a hole comes before a record; a track has at most one
# lane and one hole waiting, so that the tie-breaker is unique and comparison never reaches the third field.
_Entry = tuple[int, int, "_Lane | Hole"]
_AHEAD_OF_TRACKS = -(1 << 60)


def plan_read(tracks: Iterable[Track], holes: Iterable[Hole], *, cursor: int, head: int, max_bytes: int) -> Plan:
    """Merges the tracks from `cursor` on, in order of offset, up to `max_bytes` but at least one record.

    A record in which the cursor points to the middle is delivered whole. `holes` are those that no single track
    knows of; they are cut to the range that the read covers.
    """
    heap: list[_Entry] = []
    for i, hole in enumerate(holes):
        _push_hole(heap, hole, cursor, _AHEAD_OF_TRACKS - i)
    for track in tracks:
        _enter(heap, track, cursor)
    heapify(heap)
    parts: list[Span | Hole] = []
    taken = 0
    while heap:
        entry = heap[0][2]
        if isinstance(entry, Hole):
            heappop(heap)
            parts.append(entry)
            continue
        limit = min(heap[1:3])[0] if len(heap) > 1 else head
        span, index = _longest_run(entry, limit, max_bytes - taken, at_least_one=taken == 0)
        if span is None:
            break
        _add_span(parts, span)
        taken += span.stop - span.start
        _advance(heap, entry, index)
    next_cursor = heap[0][0] if heap else head
    return Plan(_cut_holes(parts, next_cursor), next_cursor, not heap)


def _enter(heap: list[_Entry], track: Track, cursor: int) -> None:
    """Adds a track's first record at or after the cursor, and the hole before it."""
    segments = track.segments
    i = bisect_left(segments, cursor, key=_last_offset_of)
    _push_hole(heap, _hole_before(track, i), cursor, _hole_order(track))
    if i < len(segments):
        index = segments[i].index_at(cursor)
        heap.append((max(cursor, segments[i].offsets[index]), track.session_key, _Lane(track, i, index)))


def _advance(heap: list[_Entry], lane: _Lane, index: int) -> None:
    """Moves the lane on top of the heap to record `index`, which may be one past the segment's end."""
    if index < len(lane.segment.offsets):
        lane.index = index
        heapreplace(heap, (lane.segment.offsets[index], lane.track.session_key, lane))
        return
    following = lane.segment_index + 1
    hole = _hole_before(lane.track, following)
    if following < len(lane.track.segments):
        successor = _Lane(lane.track, following, 0)
        heapreplace(heap, (successor.segment.first_offset, lane.track.session_key, successor))
    else:
        heappop(heap)
    _push_hole(heap, hole, 1, _hole_order(lane.track))


def _hole_before(track: Track, i: int) -> Hole | None:
    """What is missing between segment i - 1 and segment i, where i may be one past the end."""
    segments = track.segments
    first = segments[i - 1].last_offset + 1 if i else 1
    if i < len(segments):
        last, next_seq = segments[i].prev_last_offset, segments[i].first_seq
    else:
        last, next_seq = segments[i - 1].lost_to, 0
    if last < first:
        return None
    return Hole(first, last, "lost" if i else "evicted", track.session_key, next_seq)


def _hole_order(track: Track) -> int:
    return -1 - track.session_key


def _push_hole(heap: list[_Entry], hole: Hole | None, cursor: int, order: int) -> None:
    if hole is not None and hole.last >= cursor:
        first = max(cursor, hole.first)
        heappush(heap, (first, order, hole._replace(first=first)))


def _longest_run(lane: _Lane, limit: int, room_bytes: int, *, at_least_one: bool) -> tuple[Span | None, int]:
    """The records of the lane's segment that begin before offset `limit` and fit, and the index after them."""
    segment, i = lane.segment, lane.index
    positions, count = segment.positions, len(segment.offsets)
    stop_index = count if segment.last_offset < limit else bisect_left(segment.offsets, limit, i + 1)
    start = positions[i]
    stop = positions[stop_index] if stop_index < count else segment.end
    if stop - start > room_bytes:
        stop_index = bisect_right(positions, start + max(room_bytes, 0), i, stop_index) - 1
        if stop_index <= i:
            if not at_least_one:
                return None, i
            stop_index = i + 1
        stop = positions[stop_index] if stop_index < count else segment.end
    return Span(start, stop), stop_index


def _add_span(parts: list[Span | Hole], span: Span) -> None:
    last = parts[-1] if parts else None
    if isinstance(last, Span) and last.stop == span.start:
        parts[-1] = Span(last.start, span.stop)
    else:
        parts.append(span)


def _cut_holes(parts: list[Span | Hole], next_cursor: int) -> list[Span | Hole]:
    """Cuts holes to the covered range; one that begins at `next_cursor` belongs to the next read."""
    cut: list[Span | Hole] = []
    for part in parts:
        if isinstance(part, Hole) and part.last >= next_cursor:
            if part.first < next_cursor:
                cut.append(part._replace(last=next_cursor - 1))
        else:
            cut.append(part)
    return cut


def _last_offset_of(segment: Segment) -> int:
    return segment.last_offset
