"""The outbox's bookkeeping: sequence numbers, batches, acknowledgements, bounds. Pure; the worker owns the timer.

Events get consecutive seqs as they are emitted. Neighbouring events of one lane share a batch until it is full or
taken. A batch that was taken stays until the root acknowledges it, so that it can be sent again, with the same
boundaries, to a root that was born later.
"""

from __future__ import annotations

from collections import deque

from ottod.errors import LocalProtocolError
from ottod.protocol.events import ContentDelta, Event
from ottod.protocol.records import (
    LANE_DELTA,
    LANE_STATE,
    MAX_BATCH_EVENTS,
    MAX_PAYLOAD_BYTES,
    build_record,
    build_single,
    encode_entry,
    join_entries,
)

BATCH_BYTES = 32 * 1024
"""A batch is closed once it holds this much, so that one message stays cheap to copy."""


class Outbox:
    """Unsent and unacknowledged events of one incarnation."""

    def __init__(self, *, session_key: int, incarnation: int, next_seq: int, max_unacked_bytes: int) -> None:
        self._session_key = session_key
        self._incarnation = incarnation
        self._max_unacked_bytes = max_unacked_bytes
        self.next_seq = next_seq
        self.acked_seq = next_seq - 1
        self.held_bytes = 0
        """Bytes emitted and not yet acknowledged."""
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._open_lane = LANE_STATE
        self._ready: deque[tuple[int, bytes]] = deque()
        self._unacked: deque[tuple[int, bytes]] = deque()

    @property
    def is_full(self) -> bool:
        """True when the producer must wait for acknowledgements."""
        return self.held_bytes >= self._max_unacked_bytes

    @property
    def has_unsent(self) -> bool:
        return bool(self._open or self._ready)

    @property
    def is_settled(self) -> bool:
        """Everything emitted has been acknowledged."""
        return self.acked_seq == self.next_seq - 1

    def emit(self, event: Event, at_ns: int) -> int:
        """Adds an event and gives its seq. Raises LocalProtocolError if the event alone exceeds a record."""
        lane = LANE_DELTA if type(event) is ContentDelta else LANE_STATE
        entry = encode_entry(at_ns, event)
        size = len(entry)
        if size > MAX_PAYLOAD_BYTES - 8:
            raise LocalProtocolError(f"an event of {size} bytes does not fit a record of {MAX_PAYLOAD_BYTES}")
        is_full = self._open_bytes + size > BATCH_BYTES or len(self._open) >= MAX_BATCH_EVENTS
        if self._open and (lane != self._open_lane or is_full):
            self._close()
        self._open_lane = lane
        self._open.append(entry)
        self._open_bytes += size
        self.held_bytes += size
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq

    def emit_alone(self, event: Event, at_ns: int) -> bytes:
        """Adds an event and takes it at once, as a record of its own. Only while nothing is unsent.

        Raises: LocalProtocolError if the event exceeds a record.
        """
        entry = encode_entry(at_ns, event)
        if len(entry) > MAX_PAYLOAD_BYTES - 8:
            raise LocalProtocolError(f"an event of {len(entry)} bytes does not fit a record of {MAX_PAYLOAD_BYTES}")
        seq = self.next_seq
        lane = LANE_DELTA if type(event) is ContentDelta else LANE_STATE
        record = build_single(entry, session_key=self._session_key, seq=seq, lane=lane, incarnation=self._incarnation)
        self.next_seq = seq + 1
        self.held_bytes += len(record)
        self._unacked.append((seq, record))
        return record

    def _close(self) -> None:
        count = len(self._open)
        payload = join_entries(self._open)
        record = build_record(
            payload,
            session_key=self._session_key,
            first_seq=self.next_seq - count,
            count=count,
            lane=self._open_lane,
            incarnation=self._incarnation,
        )
        self._ready.append((self.next_seq - 1, record))
        # From here on the batch counts with its framing, so that acknowledging it gives back what it took.
        self.held_bytes += len(record) - self._open_bytes
        self._open = []
        self._open_bytes = 0

    def take(self) -> list[bytes]:
        """All unsent records, oldest first; they now wait for acknowledgement."""
        if self._open:
            self._close()
        taken = list(self._ready)
        self._ready.clear()
        self._unacked.extend(taken)
        return [record for _, record in taken]

    def untake(self, count: int) -> None:
        """Puts the newest `count` taken records back, because the socket would not have them."""
        for _ in range(count):
            self._ready.appendleft(self._unacked.pop())

    def ack(self, seq: int) -> None:
        """Forgets everything up to `seq`. Older acknowledgements than one already seen change nothing."""
        if seq >= self.next_seq:
            raise LocalProtocolError(f"acknowledged seq {seq} was never emitted")
        while self._unacked and self._unacked[0][0] <= seq:
            self.held_bytes -= len(self._unacked.popleft()[1])
        self.acked_seq = max(self.acked_seq, seq)

    def rewind(self) -> None:
        """Makes everything unacknowledged unsent again: another root listens now."""
        while self._unacked:
            self._ready.appendleft(self._unacked.pop())
