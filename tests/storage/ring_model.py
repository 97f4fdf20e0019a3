"""A naive ring: a list of all events ever appended, and a judge of what a reader was told about them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ottod.ids import session_id
from ottod.protocol.events import Gap
from ottod.protocol.records import HEADER_BYTES, array_header, build_record, parse_unsealed, split_run
from ottod.storage.ring import Ring
from ottod.storage.ring_format import SEGMENT_HEADER_BYTES

BOOT = "11111111-2222-3333-4444-555555555555"
SIZE_BYTES = 8 * 1024
SEGMENT_BYTES = 1024


class Written(NamedTuple):
    """One event that was given an offset."""

    offset: int
    key: int
    seq: int


class Told(NamedTuple):
    """What a reader learned: events in order, and gaps."""

    events: list[Written]
    gaps: list[Gap]
    chunks: int


def open_ring(
    path: Path, *, boot_id: str = BOOT, size_bytes: int = SIZE_BYTES, segment_bytes: int = SEGMENT_BYTES
) -> Ring:
    """A small ring: eight segments of a kilobyte."""
    return Ring.open(path, boot_id=boot_id, size_bytes=size_bytes, segment_bytes=segment_bytes)


def record(key: int, first_seq: int, count: int = 1, payload_bytes: int = 20) -> bytes:
    """An unsealed record whose payload has the right array header and then filler that depends on its seq."""
    head = array_header(count)
    filler = bytes((first_seq * 7 + i) % 251 + 1 for i in range(max(payload_bytes, len(head)) - len(head)))
    return build_record(head + filler, session_key=key, first_seq=first_seq, count=count, lane=1, incarnation=1)


def append(ring: Ring, key: int, *, count: int = 1, payload_bytes: int = 20, first_seq: int = 0) -> list[Written]:
    """Appends the session's next record and says what was written."""
    seq = first_seq or ring.last_seq(key) + 1
    raw = record(key, seq, count, payload_bytes)
    first, sealed = ring.append(raw, parse_unsealed(raw))
    assert len(sealed) == len(raw)
    return [Written(first + i, key, seq + i) for i in range(count)]


def read_all(ring: Ring, cursor: int = 0, *, key: int | None = None, max_bytes: int = 1 << 20) -> Told:
    """Reads until caught up."""
    events: list[Written] = []
    gaps: list[Gap] = []
    chunks = 0
    while True:
        chunk = ring.read(cursor, session_key=key, max_bytes=max_bytes)
        chunks += 1
        for item in chunk.items:
            if isinstance(item, Gap):
                assert max(cursor, 1) <= item.first <= item.last < chunk.next_cursor, (
                    cursor,
                    item,
                    chunk.next_cursor,
                )
                gaps.append(item)
                continue
            for header, _payload in split_run(item):
                for i in range(header.event_count):
                    events.append(Written(header.first_offset + i, header.session_key, header.first_seq + i))
        assert chunk.next_cursor > cursor or chunk.caught_up, "a read that is not caught up makes progress"
        cursor = chunk.next_cursor
        if chunk.caught_up:
            assert cursor == ring.head_offset
            return Told(events, gaps, chunks)


def judge(ring: Ring, written: list[Written], told: Told, *, cursor: int = 0, key: int | None = None) -> None:
    """Every event from the cursor on was delivered once, in order, or lies in a gap that is about it; never both."""
    live = {span.session_key for span in ring.sessions()}
    events = [e for e in told.events if e.offset >= cursor]
    early = told.events[: len(told.events) - len(events)]
    assert len({e.key for e in early}) <= 1, "only the rest of one record may come from before the cursor"
    assert [e.offset for e in events] == sorted({e.offset for e in events}), "in order, and none twice"
    delivered = set(events)
    wanted = {w for w in written if w.offset >= cursor and (key is None or w.key == key)}
    assert delivered <= wanted, f"never written: {delivered - wanted}"
    for event in wanted:
        gaps = [gap for gap in told.gaps if gap.first <= event.offset <= gap.last and _concerns(gap, event, live)]
        if event in delivered:
            assert not gaps, f"{event} was delivered and reported missing by {gaps}"
        else:
            assert len(gaps) >= 1, f"{event} was skipped in silence: {told.gaps}"
    own = sorted((g.session, g.first, g.last) for g in told.gaps if g.session)
    for (session, _, last), (other, first, _) in pairwise(own):
        assert session != other or first > last, "the gaps of a session do not overlap"


def _concerns(gap: Gap, event: Written, live: set[int]) -> bool:
    if gap.session:
        return gap.session == session_id(event.key)
    return gap.reason == "lost" or event.key not in live


class Model:
    """The eviction rule, written down naively: lists of segments of lists of events."""

    def __init__(self, segments: int, segment_bytes: int) -> None:
        self.count = segments
        self.room_bytes = segment_bytes - SEGMENT_HEADER_BYTES
        self.segments: list[tuple[int, list[tuple[list[Written], int]]]] = []
        """(session key, records) in order of opening; a record is its events and its size."""

    def append(self, events: list[Written], payload_bytes: int) -> None:
        key, size = events[0].key, HEADER_BYTES + payload_bytes
        mine = [s for s in self.segments if s[0] == key]
        if not mine or sum(r[1] for r in mine[-1][1]) + size > self.room_bytes or self._jumps(mine[-1][1], events):
            if len(self.segments) == self.count:
                self.segments.remove(self._victim(key))
            self.segments.append((key, []))
            mine = [self.segments[-1]]
        mine[-1][1].append((events, size))

    @staticmethod
    def _jumps(records: list[tuple[list[Written], int]], events: list[Written]) -> bool:
        return records[-1][0][-1].seq + 1 != events[0].seq

    def _victim(self, asking: int) -> tuple[int, list[tuple[list[Written], int]]]:
        held: dict[int, int] = {asking: 1}
        for key, _ in self.segments:
            held[key] = held.get(key, 0) + 1
        most = max(held.values())
        return next(s for s in self.segments if held[s[0]] == most)

    def events(self) -> list[Written]:
        """What should still be there, in order."""
        return sorted(e for _, records in self.segments for events, _ in records for e in events)
