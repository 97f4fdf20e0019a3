"""The ring: the last N MiB of all sessions' events, in one memory-mapped file of fixed size.

Sessions write to segments of their own; when none is free, the session that holds most gives up its oldest one
(ADR 0003). An event has its offset once `append` has returned: it is in the page cache then and outlives the
process. `sync` makes it outlive the machine.

All methods are for one thread and do not block, except `sync`, which blocks and is meant for a worker thread; it may
run beside the others. Layout: `ring_format`; opening: `ring_recovery`; the merge for readers: `ottod.core.ring`.
"""

from __future__ import annotations

import os
from mmap import mmap
from pathlib import Path

from ottod.core.ring import Hole, Plan, Segment, Span, Track, choose_victim, plan_read
from ottod.errors import LocalProtocolError, RefusedError, StorageError
from ottod.ids import session_id
from ottod.protocol.events import Gap
from ottod.protocol.records import RecordHeader, seal_record
from ottod.storage.ring_durability import RingDurability
from ottod.storage.ring_file import DEFAULT_SEGMENT_BYTES, DEFAULT_SIZE_BYTES, RingFile, open_ring_file
from ottod.storage.ring_format import (
    APPEND_POSITION,
    APPEND_POSITION_AT,
    HEAD_NOTE,
    HEAD_NOTE_AT,
    SEGMENT_HEADER_BYTES,
    SUPERBLOCK_BYTES,
    U64,
    Departure,
    SegmentHeader,
    clear_segment,
    read_departures,
    write_departure,
    write_segment_header,
)
from ottod.storage.ring_recovery import Image, RingRecovery
from ottod.storage.ring_report import Chunk, RingStats, SessionSpan

MAX_DEPARTED = 16_384
"""For how many sessions that have left the ring the last seq is still known; the newest of them outlive root."""


class Ring:
    """See the module. Made by `Ring.open`."""

    def __init__(self, file: RingFile, image: Image) -> None:
        self._file = file
        self._map: mmap = file.map
        self._durability = RingDurability(file, image.superblock)
        self._segment_bytes = image.superblock.segment_bytes
        self._tracks: dict[int, Track] = {track.session_key: track for track in image.tracks}
        self._newest: Track | None = image.tracks[-1] if image.tracks else None
        self._free: list[int] = image.free
        self._next = image.next_offset
        self._generation = image.next_generation
        self._departed: dict[int, tuple[int, int]] = {}
        self._departures = 0
        self.is_same_boot = False
        """The machine has not been started anew since the ring was used last: what the file says was never undone."""
        self._missing_events = self._next - 1 - image.recovery.events
        """How many of the offsets given so far are not in the ring."""
        self._used_bytes = sum(_used(s) for t in image.tracks for s in t.segments)
        self._appended_records = self._appended_bytes = self._evicted_segments = 0
        self.recovery: RingRecovery = image.recovery

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        boot_id: str,
        size_bytes: int = DEFAULT_SIZE_BYTES,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        min_next_offset: int = 1,
    ) -> Ring:
        """Opens the ring, or makes it. `boot_id` is the kernel's; an empty one matches no other.

        `min_next_offset`: no offset below it will be given, even if the file is gone or its superblock with it; what
        the ring lacks below it is reported as lost.

        Raises: StorageError if the file cannot be had: no space, no permission, in use, of another size or version.
        """
        file, image = open_ring_file(
            Path(path),
            size_bytes=size_bytes,
            segment_bytes=segment_bytes,
            boot_id=boot_id,
            min_next_offset=min_next_offset,
        )
        ring = cls(file, image)
        ring._remember_departures(is_same_boot=bool(boot_id) and image.superblock.boot_id == boot_id)
        try:
            ring._durability.begin(boot_id=boot_id, next_offset=ring._next, missing_events=ring._missing_events)
        except OSError as error:
            file.close()
            raise StorageError(f"{path}: {error.strerror}") from error
        return ring

    def _remember_departures(self, *, is_same_boot: bool) -> None:
        """Takes over what an earlier root knew of sessions that had left, if nothing can be missing of it."""
        self.is_same_boot = is_same_boot
        for departure in read_departures(self._map):
            self._departures = departure.number + 1
            if is_same_boot and self.recovery.is_intact and departure.session_key not in self._tracks:
                self._departed[departure.session_key] = (departure.last_seq, departure.reach)

    # ------------------------------------------------------------ writing

    def append(self, record: bytes | memoryview, header: RecordHeader) -> tuple[int, bytes]:
        """Seals a worker's record and stores it. Returns its first offset and the sealed bytes.

        `header` is the parsed header of `record`, whose seqs must be newer than the session's `last_seq`.

        Raises: LocalProtocolError if they are not, RefusedError if no segment can hold the record.
        """
        size, count, first = len(record), header.event_count, self._next
        if first + count > self._durability.limit:
            self._durability.reserve(first + count)
        track = self._tracks.get(header.session_key)
        segment = track.segments[-1] if track is not None else None
        if (
            segment is None
            or header.first_seq != segment.last_seq + 1
            or segment.end + size > segment.base + self._segment_bytes
            or segment.lost_to
        ):
            segment = self._open_segment(header, size)
            track = self._tracks[header.session_key]
        sealed = seal_record(record if type(record) is bytes else bytes(record), first)
        at, buffer = segment.end, self._map
        APPEND_POSITION.pack_into(buffer, APPEND_POSITION_AT, at)
        buffer[at : at + size] = sealed
        self._next = following = first + count
        HEAD_NOTE.pack_into(buffer, HEAD_NOTE_AT, following, following ^ U64, 0)
        segment.add(at, size, first, count)
        self._used_bytes += size
        self._appended_records += 1
        self._appended_bytes += size
        if track is not self._newest:
            # The dict is kept in order of last offset, so that a reader near the head looks at few sessions.
            assert track is not None
            self._tracks[track.session_key] = self._tracks.pop(track.session_key)
            self._newest = track
        return first, sealed

    def _open_segment(self, header: RecordHeader, size: int) -> Segment:
        """Gives the session a new active segment, evicting one if none is free."""
        key = header.session_key
        if size > self._segment_bytes - SEGMENT_HEADER_BYTES:
            raise RefusedError(
                f"record of {size} bytes does not fit a ring segment of {self._segment_bytes} bytes",
                mend="raise the ring's segment size",
            )
        if header.first_seq <= self.last_seq(key):
            raise LocalProtocolError(
                f"{session_id(key)}: seq {header.first_seq} is not newer than {self.last_seq(key)}"
            )
        track = self._tracks.get(key)
        if track is not None:
            previous = track.reach
        else:
            # Without a memory of the session the watermark is as exact: it had no event between its own last
            # one and this.
            previous = self._departed.pop(key, (0, self._forgotten_before(header)))[1]
        number = self._free.pop() if self._free else self._evict(key)
        base = SUPERBLOCK_BYTES + number * self._segment_bytes
        fields = SegmentHeader(key, self._generation, self._next, header.first_seq, previous)
        write_segment_header(self._map, base, fields)
        segment = Segment(
            number=number,
            base=base,
            start=base + SEGMENT_HEADER_BYTES,
            session_key=key,
            generation=self._generation,
            first_offset=self._next,
            first_seq=header.first_seq,
            prev_last_offset=previous,
        )
        self._generation += 1
        # The eviction may have taken the session's last segment, and its track with it.
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = Track(key)
            self._newest = track
            self._departed.pop(key, None)
        track.segments.append(segment)
        return segment

    def _forgotten_before(self, header: RecordHeader) -> int:
        return self._durability.superblock.forgotten_offset if header.first_seq > 1 else 0

    def _evict(self, asking: int) -> int:
        """Frees and clears the oldest segment of the session that holds most. Returns its number."""
        track = choose_victim(self._tracks.values(), asking=asking)
        segment = track.segments[0]
        if len(track.segments) == 1:
            self._depart(track)
        else:
            del track.segments[0]
        clear_segment(self._map, segment.base, segment.end)
        self._used_bytes -= _used(segment)
        self._missing_events += segment.last_seq - segment.first_seq + 1
        self._evicted_segments += 1
        return segment.number

    def _depart(self, track: Track) -> None:
        """The session leaves the ring: the watermark first, or a crash in between would hide it."""
        self._durability.forget(track.reach)
        del self._tracks[track.session_key]
        if self._newest is track:
            self._newest = None
        last_seq = track.segments[-1].last_seq
        self._departed[track.session_key] = (last_seq, track.reach)
        departure = Departure(self._departures & 0xFFFFFFFF, track.session_key, last_seq, track.reach)
        write_departure(self._map, departure)
        self._departures += 1
        if len(self._departed) > MAX_DEPARTED:
            del self._departed[next(iter(self._departed))]

    # ------------------------------------------------------------ reading

    def read(self, cursor: int, *, session_key: int | None = None, max_bytes: int = 1 << 20) -> Chunk:
        """Everything from offset `cursor` on, of one session or of all: up to `max_bytes`, but at least one record.

        Read on from `next_cursor`. A cursor in the middle of a record gets the whole record; the reader skips what
        it has. A gap that reaches beyond this chunk is cut there, and the next read goes on with it.

        Raises: RefusedError if the cursor is ahead of the ring.
        """
        head = self._next
        cursor = max(cursor, 1)
        if cursor > head:
            raise RefusedError(
                f"offset {cursor} has not been given yet, the next one is {head}", mend="read from an older offset"
            )
        if cursor == head:
            return Chunk((), head, True)
        holes = [
            Hole(first, last, "lost", None, 0) for first, last in self._durability.superblock.lost if last >= cursor
        ]
        tracks: list[Track] = []
        if session_key is None:
            for track in reversed(self._tracks.values()):
                if track.reach < cursor:
                    break
                tracks.append(track)
            if self._durability.superblock.forgotten_offset >= cursor:
                holes.append(Hole(1, self._durability.superblock.forgotten_offset, "evicted", None, 0))
        elif session_key in self._tracks:
            tracks.append(self._tracks[session_key])
        else:
            _, last = self._departed.get(session_key, (0, self._durability.superblock.forgotten_offset))
            holes.append(Hole(1, last, "evicted", session_key, 0))
        plan = plan_read(tracks, holes, cursor=cursor, head=head, max_bytes=max_bytes)
        return Chunk(self._items(plan), plan.next_cursor, plan.caught_up)

    def _items(self, plan: Plan) -> tuple[bytes | Gap, ...]:
        """Copies the planned bytes: a view would change under its reader when the segment is reused."""
        items: list[bytes | Gap] = []
        pieces: list[bytes] = []
        buffer = self._map
        for part in plan.parts:
            if isinstance(part, Span):
                pieces.append(buffer[part.start : part.stop])
                continue
            if pieces:
                items.append(b"".join(pieces))
                pieces = []
            session = session_id(part.session_key) if part.session_key is not None else ""
            items.append(
                Gap(first=part.first, last=part.last, reason=part.reason, session=session, next_seq=part.next_seq)
            )
        if pieces:
            items.append(b"".join(pieces))
        return tuple(items)

    # ------------------------------------------------------------ state

    def last_seq(self, session_key: int) -> int:
        """The session's newest seq; 0 if the ring knows nothing of it."""
        track = self._tracks.get(session_key)
        if track is not None:
            return track.segments[-1].last_seq
        return self._departed.get(session_key, (0, 0))[0]

    def sessions(self) -> tuple[SessionSpan, ...]:
        """The sessions that have events in the ring."""
        return tuple(
            SessionSpan(
                session_key=track.session_key,
                first_offset=track.segments[0].first_offset,
                last_offset=track.segments[-1].last_offset,
                first_seq=track.segments[0].first_seq,
                last_seq=track.segments[-1].last_seq,
                segments=len(track.segments),
            )
            for track in self._tracks.values()
        )

    @property
    def head_offset(self) -> int:
        """The next offset to be given."""
        return self._next

    @property
    def tail_offset(self) -> int:
        """The oldest offset that can still be read; the head's if the ring is empty."""
        return min((t.segments[0].first_offset for t in self._tracks.values()), default=self._next)

    @property
    def forgotten_offset(self) -> int:
        """The newest event of any session that has wholly left the ring; 0 if none has."""
        return self._durability.superblock.forgotten_offset

    @property
    def used_bytes(self) -> int:
        """Bytes of records in the ring."""
        return self._used_bytes

    def stats(self) -> RingStats:
        """A reading for metrics."""
        return RingStats(
            size_bytes=self._durability.superblock.size_bytes,
            used_bytes=self._used_bytes,
            segments=self._durability.superblock.segment_count,
            free_segments=len(self._free),
            sessions=len(self._tracks),
            head_offset=self._next,
            tail_offset=self.tail_offset,
            synced_offset=self._durability.superblock.synced_offset,
            appended_records=self._appended_records,
            appended_bytes=self._appended_bytes,
            evicted_segments=self._evicted_segments,
            syncs=self._durability.syncs,
        )

    # ------------------------------------------------------------ durability

    def sync(self) -> int:
        """Blocks until everything appended before the call is on disk. Returns the newest offset of it.

        Raises: StorageError; after a failed sync nobody knows what is on disk, so every later one fails too.
        """
        # In this order: an eviction in between makes recovery more careful, never less.
        missing = self._missing_events
        newest = self._next - 1
        self._durability.sync(newest=newest, missing_events=missing)
        return newest

    def close(self, *, clean: bool = True) -> None:
        """Ends the use of the ring. `clean`: everything is synced and the next start need not assume a loss.

        Waits for a sync that is under way; twice is harmless. Raises: StorageError if the last sync fails; the file
        is closed all the same.
        """
        if self._file.is_closed:
            return
        try:
            if clean:
                self.sync()
        except StorageError:
            clean = False
            raise
        finally:
            self._durability.close(clean=clean)


def _used(segment: Segment) -> int:
    return segment.end - segment.base - SEGMENT_HEADER_BYTES
