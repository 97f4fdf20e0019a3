"""The hub: every event goes into the ring, and from the ring to whoever subscribed.

A subscription is a cursor into the ring and a number of bytes that its client can still take; it has no queue.
While it keeps up it is *live*: a record that has just been appended is handed on as it stands. When its credit is
used up it stops being live and remembers only the offset it got to; new credit makes the hub read on from there.
So a slow, stopped or dead client costs a few hundred bytes and never makes anyone wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from ottod.errors import RefusedError
from ottod.protocol.control import GapNotice, SubscriptionEnded
from ottod.protocol.events import Event, Gap
from ottod.protocol.records import (
    HEADER,
    LANE_STATE,
    RecordHeader,
    build_record,
    encode_entry,
    join_entries,
    parse_unsealed,
    split_run,
)
from ottod.storage.ring import Ring
from ottod.storage.ring_report import Chunk
from ottod.transport.socket import Outcome

FLUSH_GAP_S = 0.001
"""Between two deliveries of live events."""
RETRY_S = 0.002
"""How soon to look again at a client whose queue was full."""
RETRY_MAX_S = 0.5
"""The delay doubles up to this while the queue stays full: a client that is frozen must not keep root busy."""
PROBE_BYTES = 1
"""Read for a client whose queue was full at the last try: one record tells whether it takes more."""
PUMP_BYTES = 256 * 1024
"""Read from the ring for one subscription before the next one gets its turn."""

SendRecords = Callable[[bytes, int, list[bytes | memoryview]], Outcome]
SendMessage = Callable[[bytes, GapNotice | SubscriptionEnded], Outcome]


class Subscription:
    """One client's view of the ring."""

    __slots__ = ("client", "credit", "cursor", "end", "id", "is_live", "outgoing", "retry", "retry_s", "session_key")

    def __init__(self, *, id: int, client: bytes, cursor: int, session_key: int | None, credit: int, end: int | None):
        self.id = id
        self.client = client
        self.cursor = cursor
        self.session_key = session_key
        self.credit = credit
        self.end = end
        self.is_live = False
        self.outgoing: list[bytes | memoryview] = []
        self.retry: asyncio.TimerHandle | None = None
        self.retry_s = RETRY_S
        """Above RETRY_S while the client's queue is full."""


class Hub:
    """The ring's only writer, and its readers' clerk. Everything happens on root's loop."""

    def __init__(
        self, ring: Ring, loop: asyncio.AbstractEventLoop, *, max_subscriptions_per_client: int, max_credit_bytes: int
    ) -> None:
        self.ring = ring
        self._loop = loop
        self._max_per_client = max_subscriptions_per_client
        self._max_credit_bytes = max_credit_bytes
        self._subscriptions: dict[int, Subscription] = {}
        self._live: set[Subscription] = set()
        self._behind: dict[int, Subscription] = {}
        self._next_id = 1
        self._is_flush_due = False
        self._flushed_s = 0.0
        self._is_pump_due = False
        self._send_records: SendRecords = lambda _client, _sub, _parts: "gone"
        self._send_message: SendMessage = lambda _client, _message: "gone"
        self._released: int | None = None
        self.on_append: Callable[[], None] = lambda: None
        self.events_appended = 0
        self.gaps_sent = 0

    def attach(self, send_records: SendRecords, send_message: SendMessage) -> None:
        """Connects the hub to the control socket."""
        self._send_records = send_records
        self._send_message = send_message

    def has_subscriptions(self, client: bytes) -> bool:
        return any(s.client == client for s in self._subscriptions.values())

    @property
    def subscriptions(self) -> list[Subscription]:
        return list(self._subscriptions.values())

    @property
    def subscription_count(self) -> int:
        return len(self._subscriptions)

    def hold_until_synced(self, on_append: Callable[[], None]) -> None:
        """From now on nothing is delivered before `release` says that it is on disk."""
        self._released = self.ring.head_offset
        self.on_append = on_append

    def release(self, head: int) -> None:
        """Everything below offset `head` is on disk and may be delivered."""
        self._released = head
        for sub in self._subscriptions.values():
            self._pump_soon(sub)

    @property
    def head(self) -> int:
        """The offset behind the newest event that may be delivered."""
        return self.ring.head_offset if self._released is None else self._released

    # ------------------------------------------------------------ writing

    def append(self, record: bytes | memoryview, header: RecordHeader) -> int:
        """Puts one unsealed record into the ring and gives its first offset."""
        first_offset, sealed = self.ring.append(record, header)
        self.events_appended += header.event_count
        if self._released is not None:
            self.on_append()
        elif self._live:
            self._hand_on(header.session_key, first_offset, sealed)
        return first_offset

    def append_events(self, session_key: int, seq: int, incarnation: int, events: Sequence[Event], at_ns: int) -> int:
        """Puts events of root's own making into the ring: all of them or, if root dies, none."""
        record = build_record(
            join_entries([encode_entry(at_ns, event) for event in events]),
            session_key=session_key,
            first_seq=seq,
            count=len(events),
            lane=LANE_STATE,
            incarnation=incarnation,
        )
        return self.append(record, parse_unsealed(record))

    def _hand_on(self, session_key: int, first_offset: int, sealed: bytes) -> None:
        fell_behind: list[Subscription] = []
        for sub in self._live:
            if sub.session_key is not None and sub.session_key != session_key:
                continue
            if sub.credit <= 0:
                sub.cursor = first_offset
                fell_behind.append(sub)
                continue
            sub.credit -= len(sealed)
            sub.outgoing.append(sealed)
            if not self._is_flush_due:
                self._flush_soon()
        for sub in fell_behind:
            sub.is_live = False
            self._live.discard(sub)

    def _flush_soon(self) -> None:
        """At once if the line was idle; in a stream, a millisecond after the last time: a message costs its receiver
        a wake-up, and what comes together travels together."""
        self._is_flush_due = True
        wait_s = self._flushed_s + FLUSH_GAP_S - time.monotonic()
        if wait_s <= 0:
            self._loop.call_soon(self._flush)
        else:
            self._loop.call_later(wait_s, self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        self._flushed_s = time.monotonic()
        for sub in [s for s in self._subscriptions.values() if s.outgoing]:
            self._flush_one(sub)

    def _flush_one(self, sub: Subscription) -> bool:
        """Sends what was handed on. False if it could not be, and the subscription is behind or gone."""
        if not sub.outgoing:
            return True
        parts, sub.outgoing = sub.outgoing, []
        return self._send(sub, parts)

    def _send(self, sub: Subscription, parts: list[bytes | memoryview]) -> bool:
        """Sends runs whose credit has been taken. A full queue makes the subscription read them again later."""
        match self._send_records(sub.client, sub.id, parts):
            case "sent":
                sub.retry_s = RETRY_S
                return True
            case "full":
                sub.credit += sum(len(part) for part in parts)
                sub.cursor = RecordHeader._make(HEADER.unpack_from(parts[0])).first_offset
                sub.is_live = False
                self._live.discard(sub)
                self._retry_later(sub, self._retry, sub)
            case "gone":
                self.drop(sub.id)
        return False

    def _retry_later(self, sub: Subscription, retry: Callable[..., None], *arguments: object) -> None:
        """One look at a time, ever more rarely: neither time nor grants without reading make more of them."""
        if sub.retry is not None:
            sub.retry.cancel()
        sub.retry = self._loop.call_later(sub.retry_s, retry, *arguments)
        sub.retry_s = min(RETRY_MAX_S, sub.retry_s * 2)

    def _retry(self, sub: Subscription) -> None:
        sub.retry = None
        if sub.id in self._subscriptions and not sub.is_live:
            self._pump_soon(sub)

    # ------------------------------------------------------------ reading

    def subscribe(
        self, client: bytes, *, from_offset: int | None, session_key: int | None, credit: int, follow: bool
    ) -> Subscription:
        """A new subscription; events begin to flow with the next turn of the loop. Raises RefusedError."""
        if sum(s.client == client for s in self._subscriptions.values()) >= self._max_per_client:
            raise RefusedError(
                f"{self._max_per_client} subscriptions of this client are open already", code="too_many_subscriptions"
            )
        # The ring's head, also where not all below it may be delivered yet: offsets that were given are known to
        # clients before, from the answer to a start for one.
        head = self.ring.head_offset
        if from_offset is not None and from_offset > head:
            raise RefusedError(
                f"offset {from_offset} lies ahead of the newest event ({head - 1})",
                code="offset_ahead",
                mend="the cursor belongs to another daemon or its ring was replaced; subscribe again from 0",
            )
        sub = Subscription(
            id=self._next_id,
            client=client,
            cursor=head if from_offset is None else from_offset,
            session_key=session_key,
            credit=min(credit, self._max_credit_bytes),
            end=None if follow else head,
        )
        self._next_id += 1
        self._subscriptions[sub.id] = sub
        self._pump_soon(sub)
        return sub

    def grant(self, client: bytes, subscription: int, size_bytes: int) -> None:
        """Adds credit. Unknown subscriptions are ignored: they may have ended a moment ago."""
        sub = self._subscriptions.get(subscription)
        if sub is None or sub.client != client:
            return
        sub.credit = min(sub.credit + size_bytes, self._max_credit_bytes)
        if not sub.is_live:
            self._pump_soon(sub)

    def _pump_soon(self, sub: Subscription) -> None:
        self._behind[sub.id] = sub
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump_one)

    def _pump_one(self) -> None:
        """Serves the subscription that has waited longest, once."""
        self._is_pump_due = False
        if not self._behind:
            return
        sub = self._behind.pop(next(iter(self._behind)))
        if sub.id in self._subscriptions and self._pump(sub):
            self._behind[sub.id] = sub
        if self._behind:
            self._is_pump_due = True
            self._loop.call_soon(self._pump_one)

    def _pump(self, sub: Subscription) -> bool:
        """Sends one portion. True if there is more to do now."""
        if sub.credit <= 0 or sub.is_live or not self._flush_one(sub):
            return False
        if self._released is not None and sub.cursor >= self._released:
            if sub.end is not None and sub.cursor >= sub.end:
                self._end(sub, "caught_up")
            # What is to come comes with the next release.
            return False
        portion_bytes = PUMP_BYTES if sub.retry_s == RETRY_S else PROBE_BYTES
        chunk = self.ring.read(sub.cursor, session_key=sub.session_key, max_bytes=min(sub.credit, portion_bytes))
        if self._released is not None and chunk.next_cursor > self._released:
            chunk = cut_chunk(chunk, self._released)
        runs: list[bytes | memoryview] = []
        for item in chunk.items:
            if isinstance(item, Gap):
                if runs and not self._send_runs(sub, runs):
                    return False
                runs = []
                if not self._send_gap(sub, item):
                    return False
            else:
                runs.append(item)
        if runs and not self._send_runs(sub, runs):
            return False
        sub.cursor = chunk.next_cursor
        if sub.end is not None and (chunk.caught_up or sub.cursor >= sub.end):
            self._end(sub, "caught_up")
            return False
        if chunk.caught_up and self._released is None:
            sub.is_live = True
            self._live.add(sub)
            return False
        return True

    def _send_runs(self, sub: Subscription, runs: list[bytes | memoryview]) -> bool:
        sub.credit -= sum(len(run) for run in runs)
        return self._send(sub, runs)

    def _send_gap(self, sub: Subscription, gap: Gap) -> bool:
        match self._send_message(sub.client, GapNotice(subscription=sub.id, gap=gap)):
            case "sent":
                self.gaps_sent += 1
                sub.retry_s = RETRY_S
                return True
            case "full":
                # What comes before the gap has been sent; reading on from its beginning finds it again.
                sub.cursor = max(sub.cursor, gap.first)
                self._retry_later(sub, self._retry, sub)
            case "gone":
                self.drop(sub.id)
        return False

    # ------------------------------------------------------------ ending

    def unsubscribe(self, client: bytes, subscription: int) -> bool:
        """Ends a client's subscription. False if it has no such one."""
        sub = self._subscriptions.get(subscription)
        if sub is None or sub.client != client:
            return False
        self._end(sub, "unsubscribed")
        return True

    def _end(self, sub: Subscription, reason: str) -> None:
        if sub.id not in self._subscriptions:
            return
        if not self._flush_one(sub) and reason == "caught_up":
            # It fell behind with its last records; the pump comes back here once they are through.
            return
        next_offset = self.ring.head_offset if sub.is_live else sub.cursor
        ended = SubscriptionEnded(subscription=sub.id, reason=reason, next_offset=next_offset)
        if self._send_message(sub.client, ended) == "full" and reason == "caught_up":
            self._retry_later(sub, self._end, sub, reason)
            return
        self.drop(sub.id)

    def drop(self, subscription: int) -> None:
        """Forgets a subscription without a word: its client is gone or does not read."""
        sub = self._subscriptions.pop(subscription, None)
        if sub is not None:
            self._live.discard(sub)
            self._behind.pop(subscription, None)
            sub.outgoing = []
            if sub.retry is not None:
                sub.retry.cancel()

    def drop_client(self, client: bytes) -> None:
        """Forgets all subscriptions of a client."""
        for sub in [s for s in self._subscriptions.values() if s.client == client]:
            self.drop(sub.id)

    def end_all(self, reason: str) -> None:
        """Tells every subscriber that nothing more will come."""
        for sub in list(self._subscriptions.values()):
            self._end(sub, reason)


def cut_chunk(chunk: Chunk, head: int) -> Chunk:
    """What of a chunk lies below offset `head`, with more to come; a batch is either wholly there or not."""
    items: list[bytes | Gap] = []
    for item in chunk.items:
        if isinstance(item, Gap):
            if item.first < head:
                items.append(replace(item, last=min(item.last, head - 1)))
            continue
        end = 0
        for header, _payload in split_run(item):
            if header.first_offset >= head:
                break
            end += header.size_bytes
        if end:
            items.append(item[:end])
    return Chunk(tuple(items), head, False)
