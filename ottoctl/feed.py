"""One subscription as its reader sees it: a cursor, a bounded backlog and the checks that make loss visible.

A feed is pure: a connection puts in what arrives, the reader takes batches out. It outlives the subscription that
fills it: when the daemon restarts, the feed asks for everything from its cursor on, and drops what it has seen.

Credit: the daemon may send `credit_bytes` ahead of the reader. Bytes are owed back as records are *taken*, so a
reader that pauses stops the flow, and the backlog never holds more than the credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from ottod.errors import UNDECODABLE, OttoError, RemoteProtocolError
from ottod.ids import session_id, session_key
from ottod.protocol.events import ContentDelta, Event, Gap, SessionExited, Unknown, tag_of
from ottod.protocol.records import (
    LANE_DELTA,
    LANE_STATE,
    MAX_PAYLOAD_BYTES,
    RecordHeader,
    decode_payload,
    split_run,
)
from ottod.protocol.requests import MAX_CREDIT_BYTES, Subscribe
from ottod.protocol.results import Subscribed

DEFAULT_CREDIT_BYTES = 1024 * 1024
MIN_CREDIT_BYTES = 4 * MAX_PAYLOAD_BYTES
"""Small enough to bound a modest reader, large enough that one record always fits into what is left of it."""
GRANT_SHARE = 4
"""Credit goes back once a quarter of it has been used: few messages, and the line never runs dry."""
MAX_BACKLOG_NOTICES = 65_536
"""Credit bounds the records in the backlog; this bounds the gap notices, which cost none."""
MAX_TRACKED_SESSIONS = 65_536
"""Sessions whose next seq is remembered; the one that was heard of first is forgotten first."""

_known_entries = msgspec.msgpack.Decoder(list[tuple[int, Event]])
"""Events of known kinds, a fifth quicker than `decode_payload`, which also knows what to do with the others."""

LANES = {LANE_STATE: "state", LANE_DELTA: "delta"}


class SessionEvent(msgspec.Struct, frozen=True, gc=False):
    """One event in its place. `at_ns` is the session's wall clock, for display. For a `Gap`, which the daemon
    makes for this reader alone, `offset` is the first missing one and `seq` and `at_ns` are 0."""

    offset: int
    seq: int
    session: str
    at_ns: int
    lane: str
    event: Event | Unknown


class Batch(NamedTuple):
    """One record. The first `skip` entries of the payload come before the reader's cursor."""

    header: RecordHeader
    payload: memoryview
    skip: int

    def events(self) -> list[SessionEvent]:
        """The batch decoded. Raises RemoteProtocolError."""
        header, payload, skip = self
        entries: list[tuple[int, Any]]
        try:
            try:
                entries = _known_entries.decode(payload)
            except UNDECODABLE:
                entries = decode_payload(payload)
            if len(entries) != header.event_count:
                raise RemoteProtocolError(f"a record says {header.event_count} events and carries {len(entries)}")
        except RemoteProtocolError:
            if header.lane != LANE_DELTA:
                raise
            # Root does not look into this lane, so what is in it is a worker's word only: it must not end a reader.
            entries = [(0, Unknown(type="undecodable"))] * header.event_count
        if header.lane == LANE_DELTA:
            entries = [e if type(e[1]) is ContentDelta else (e[0], misplaced(e[1])) for e in entries]
        if skip:
            del entries[:skip]
        session = session_id(header.session_key)
        lane = LANES.get(header.lane, "state")
        shift = header.first_seq - header.first_offset
        # Positional construction in one comprehension: this line is the fast path of every reader.
        return [
            SessionEvent(offset, offset + shift, session, at_ns, lane, event)
            for offset, (at_ns, event) in enumerate(entries, header.first_offset + skip)
        ]


def misplaced(event: Event | Unknown) -> Unknown:
    """An event in the lane of deltas that is none: a worker may not say it there, and nobody may believe it."""
    return event if isinstance(event, Unknown) else Unknown(type=f"misplaced {tag_of(event)}")


def gap_event(gap: Gap) -> SessionEvent:
    """A gap as a reader of events sees it."""
    return SessionEvent(gap.first, 0, gap.session, 0, "state", gap)


def ends_session(batch: Batch, events: list[SessionEvent]) -> bool:
    """Whether this is a session's last batch: nothing ever follows `session.exited`."""
    return batch.header.lane == LANE_STATE and bool(events) and isinstance(events[-1].event, SessionExited)


class Feed:
    """See the module's docstring. `session` is a whole session id, or empty for all sessions."""

    def __init__(
        self,
        *,
        session: str = "",
        from_offset: int | None = None,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.session = session
        self.follow = follow
        self.subscription = -1
        """The subscription that fills the feed now; -1 while there is none."""
        self.cursor = from_offset
        """The next offset to accept; None until the daemon has said where the feed begins."""
        self.end_reason = ""
        self.error: OttoError | None = None
        self.is_open = False
        self.resumed_count = 0
        self.on_change = on_change
        self._key = session_key(session) if session else None
        self._credit_bytes = max(MIN_CREDIT_BYTES, min(credit_bytes, MAX_CREDIT_BYTES))
        self._backlog: deque[Batch | Gap] = deque()
        self._backlog_bytes = 0
        self._notice_count = 0
        self._owed_bytes = 0
        self._next_seqs: dict[int, int] = {}
        self._gap_ends: dict[str, int] = {}
        self._stop_offset: int | None = None

    # ------------------------------------------------------------ the connection's side

    @property
    def is_over(self) -> bool:
        """Nothing more will be put in."""
        return self.error is not None or bool(self.end_reason)

    @property
    def is_readable(self) -> bool:
        """`take` has something to say: an item, an error, or that there is nothing more."""
        return bool(self._backlog) or self.is_over

    @property
    def backlog_bytes(self) -> int:
        """Bytes of records that wait for the reader."""
        return self._backlog_bytes

    def request(self) -> Subscribe:
        """The request that opens the feed, or resumes it behind what has already arrived."""
        credit = self._credit_bytes - self._backlog_bytes - self._owed_bytes
        return Subscribe(
            from_offset=self.cursor,
            session=self.session,
            follow=self.follow,
            credit_bytes=max(1, credit),
        )

    def opened(self, result: Subscribed) -> None:
        """The daemon accepted the subscription."""
        self.subscription = result.subscription
        if self.cursor is None:
            self.cursor = result.head
        if self.is_open:
            self.resumed_count += 1
        elif not self.follow:
            self._stop_offset = result.head
        self.is_open = True
        self._changed()

    def detached(self) -> None:
        """The subscription is gone with its connection; the backlog and the cursor stay."""
        self.subscription = -1

    def put_run(self, run: bytes) -> None:
        """Checks a run and keeps what the reader has not seen. Damage fails the feed, behind what was whole."""
        if self.is_over:
            return
        try:
            for header, payload in split_run(run):
                self._admit(header, payload)
            if self._backlog_bytes > 2 * self._credit_bytes + MAX_PAYLOAD_BYTES:
                raise RemoteProtocolError(f"the daemon sent {self._backlog_bytes} bytes without credit")
        except RemoteProtocolError as error:
            self.fail(error)
        self._changed()

    def put_gap(self, gap: Gap) -> None:
        """A notice of what cannot be given any more."""
        if self.is_over:
            return
        self._notice_count += 1
        if self._notice_count > MAX_BACKLOG_NOTICES:
            self.fail(RemoteProtocolError(f"more than {MAX_BACKLOG_NOTICES} notices for one subscription"))
        else:
            self._admit_gap(gap)
        self._changed()

    def put_end(self, reason: str) -> None:
        """Nothing follows what is already in the backlog."""
        if not self.is_over:
            self.end_reason = reason
        self._changed()

    def fail(self, error: OttoError) -> None:
        """The feed is broken. The reader meets the error behind what it can still read."""
        if not self.is_over:
            self.error = error
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    # ------------------------------------------------------------ the reader's side

    def take(self) -> Batch | Gap | None:
        """The next thing to read, or None when there is nothing now (see `is_over`).

        Raises what broke the feed, RemoteProtocolError for records that were damaged or out of place.
        """
        if not self._backlog:
            if self.error is not None:
                raise self.error
            return None
        item = self._backlog.popleft()
        if isinstance(item, Batch):
            size_bytes = item.header.size_bytes
            self._backlog_bytes -= size_bytes
            self._owed_bytes += size_bytes
        else:
            self._notice_count -= 1
        return item

    def owed_bytes(self) -> int:
        """Credit to give back now; 0 while it is too little for a message of its own. Taking it settles it."""
        if self.subscription < 0 or self._owed_bytes * GRANT_SHARE < self._credit_bytes:
            return 0
        owed, self._owed_bytes = self._owed_bytes, 0
        return owed

    # ------------------------------------------------------------ the checks

    def _admit(self, header: RecordHeader, payload: memoryview) -> None:
        key, first, stop = header.session_key, header.first_offset, header.first_offset + header.event_count
        cursor = self.cursor or 0
        if self._stop_offset is not None and first >= self._stop_offset:
            self.put_end("caught_up")
        if stop <= cursor or self.end_reason:
            self._owed_bytes += header.size_bytes
            return
        if self._key is not None and key != self._key:
            raise RemoteProtocolError(f"a record of {session_id(key)} in the feed of {self.session}")
        skip = cursor - first if cursor > first else 0
        expected = self._next_seqs.get(key)
        seq = header.first_seq + skip
        if expected is None:
            if len(self._next_seqs) >= MAX_TRACKED_SESSIONS:
                del self._next_seqs[next(iter(self._next_seqs))]
        elif seq != expected:
            raise RemoteProtocolError(
                f"session {session_id(key)}: seq {seq} came where {expected} was due, without a gap"
            )
        self._next_seqs[key] = header.first_seq + header.event_count
        self.cursor = stop
        self._backlog_bytes += header.size_bytes
        self._backlog.append(Batch(header, payload, skip))

    def _admit_gap(self, gap: Gap) -> None:
        # After a resume the daemon tells of the same hole again, from the new cursor on: once is enough.
        known_end = self._gap_ends.get(gap.session, -1)
        if gap.last <= known_end:
            self._notice_count -= 1
            return
        if gap.first <= known_end:
            gap = msgspec.structs.replace(gap, first=known_end + 1)
        if len(self._gap_ends) >= MAX_TRACKED_SESSIONS:
            del self._gap_ends[next(iter(self._gap_ends))]
        self._gap_ends[gap.session] = gap.last
        if gap.session:
            key = session_key(gap.session)
            self._next_seqs.pop(key, None)
            if gap.next_seq:
                self._next_seqs[key] = gap.next_seq
        elif gap.reason == "lost":
            self._next_seqs.clear()
        if gap.reason == "lost" or gap.session == self.session:
            self.cursor = max(self.cursor or 0, gap.last + 1)
        self._backlog.append(gap)
