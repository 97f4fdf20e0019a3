"""The hub: cursors, credit, and clients that do not read, against a real ring and a fake socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from ottod.errors import RefusedError
from ottod.protocol.cause import Cause
from ottod.protocol.control import GapNotice, SubscriptionEnded
from ottod.protocol.events import ContentDelta, Gap, IncarnationExited, SessionStateChanged
from ottod.protocol.records import (
    LANE_STATE,
    build_record,
    decode_payload,
    encode_entry,
    join_entries,
    parse_unsealed,
    split_run,
)
from ottod.root.hub import Hub, cut_chunk
from ottod.storage.ring import Ring
from ottod.transport.socket import Outcome

CLIENT = b"client"


class FakeSocket:
    """Takes messages while `outcome` is `sent`, and remembers the offsets and notices that went through."""

    def __init__(self) -> None:
        self.outcome: Outcome = "sent"
        self.offsets: list[int] = []
        self.notices: list[GapNotice | SubscriptionEnded] = []
        self.refused = 0

    def records(self, client: bytes, subscription: int, parts: list[bytes | memoryview]) -> Outcome:
        if self.outcome != "sent":
            self.refused += 1
            return self.outcome
        for part in parts:
            for header, _ in split_run(part):
                self.offsets += range(header.first_offset, header.last_offset + 1)
        return "sent"

    def notice(self, client: bytes, message: GapNotice | SubscriptionEnded) -> Outcome:
        if self.outcome == "sent":
            self.notices.append(message)
        return self.outcome


class Rig:
    """A hub with its ring and socket. `say` appends one batch of a session."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop, *, max_credit: int = 1 << 20) -> None:
        self.ring = Ring.open(path / "ring", boot_id="b", size_bytes=1 << 20, segment_bytes=128 * 1024)
        self.socket = FakeSocket()
        self.hub = Hub(self.ring, loop, max_subscriptions_per_client=4, max_credit_bytes=max_credit)
        self.hub.attach(self.socket.records, self.socket.notice)
        self.next_seq: dict[int, int] = {}

    def say(self, session: int, count: int = 1, size: int = 20) -> None:
        seq = self.next_seq.get(session, 1)
        self.next_seq[session] = seq + count
        payload = join_entries([encode_entry(1, ContentDelta(stream="text", text="x" * size))] * count)
        record = build_record(payload, session_key=session, first_seq=seq, count=count, lane=1, incarnation=1)
        self.hub.append(record, parse_unsealed(record))

    async def pumped(self) -> None:
        """Returns when the hub has done all that it can do now."""
        for _ in range(100):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)


def in_loop(path: Path, body: Callable[[Rig], Coroutine[object, object, None]], *, max_credit: int = 1 << 20) -> None:
    async def main() -> None:
        rig = Rig(path, asyncio.get_running_loop(), max_credit=max_credit)
        try:
            await body(rig)
        finally:
            rig.ring.close()

    asyncio.run(main())


def test_a_live_subscriber_gets_everything_once(tmp_path: Path) -> None:
    """What was there before and what comes after, in order, without a seam."""

    async def body(rig: Rig) -> None:
        for _ in range(50):
            rig.say(1, 3)
        rig.hub.subscribe(CLIENT, from_offset=0, session_key=None, credit=1 << 20, follow=True)
        await rig.until(lambda: len(rig.socket.offsets) == 150)
        for session in (1, 2, 1, 3):
            rig.say(session)
        await rig.until(lambda: len(rig.socket.offsets) == 154)
        assert rig.socket.offsets == list(range(1, 155))

    in_loop(tmp_path, body)


def test_credit_is_what_stops_and_starts_the_flow(tmp_path: Path) -> None:
    """Without credit nothing is sent and nothing is queued; new credit goes on exactly where it stopped."""

    async def body(rig: Rig) -> None:
        sub = rig.hub.subscribe(CLIENT, from_offset=0, session_key=None, credit=1, follow=True)
        await asyncio.sleep(0)
        for _ in range(100):
            rig.say(1, size=200)
        await asyncio.sleep(0.05)
        first = len(rig.socket.offsets)
        assert first <= 2 and not sub.is_live and sub.outgoing == []
        while len(rig.socket.offsets) < 100:
            before = len(rig.socket.offsets)
            rig.hub.grant(CLIENT, sub.id, 500)
            await rig.until(lambda seen=before: len(rig.socket.offsets) > seen)  # type: ignore[misc]
        assert rig.socket.offsets == list(range(1, 101))

    in_loop(tmp_path, body)


def test_a_full_queue_delays_and_loses_nothing(tmp_path: Path) -> None:
    """A client whose queue is full for a while gets the rest when it reads again."""

    async def body(rig: Rig) -> None:
        rig.hub.subscribe(CLIENT, from_offset=0, session_key=None, credit=1 << 20, follow=True)
        rig.say(1)
        await rig.until(lambda: len(rig.socket.offsets) == 1)
        rig.socket.outcome = "full"
        for _ in range(20):
            rig.say(1)
        await rig.until(lambda: rig.socket.refused > 2)
        rig.socket.outcome = "sent"
        await rig.until(lambda: len(rig.socket.offsets) == 21)
        rig.say(1)
        await rig.until(lambda: len(rig.socket.offsets) == 22)
        assert rig.socket.offsets == list(range(1, 23))

    in_loop(tmp_path, body)


def test_a_gone_client_is_forgotten(tmp_path: Path) -> None:
    """Its subscription ends with the first message that finds nobody."""

    async def body(rig: Rig) -> None:
        rig.hub.subscribe(CLIENT, from_offset=None, session_key=None, credit=1 << 20, follow=True)
        await asyncio.sleep(0)
        rig.socket.outcome = "gone"
        rig.say(1)
        await rig.until(lambda: rig.hub.subscription_count == 0)

    in_loop(tmp_path, body)


def test_gaps_and_events_cover_everything(tmp_path: Path) -> None:
    """After a chatty session has overrun the ring: a gap for what it lost, all of the quiet one, then the rest."""

    async def body(rig: Rig) -> None:
        for _ in range(10):
            rig.say(7)
        while rig.ring.tail_offset == 1 and not rig.ring.stats().evicted_segments:
            rig.say(8, 10, size=1000)
        for _ in range(300):
            rig.say(8, 10, size=1000)
        rig.hub.subscribe(CLIENT, from_offset=0, session_key=None, credit=8 << 20, follow=False)
        await rig.until(lambda: any(isinstance(n, SubscriptionEnded) for n in rig.socket.notices))
        gaps = [n.gap for n in rig.socket.notices if isinstance(n, GapNotice)]
        missing = {o for gap in gaps for o in range(gap.first, gap.last + 1)}
        got = set(rig.socket.offsets)
        # The quiet session's offsets lie in the chatty one's gap interval and are delivered all the same.
        assert set(range(1, 11)) <= got
        assert got | missing == set(range(1, rig.ring.head_offset))
        assert not {o for o in got if o > 10} & missing
        assert rig.socket.offsets == sorted(rig.socket.offsets)

    in_loop(tmp_path, body, max_credit=8 << 20)


def test_held_events_come_with_the_release(tmp_path: Path) -> None:
    """With delivery held until synced, nothing leaves before `release`, and then exactly what it covers."""

    async def body(rig: Rig) -> None:
        appended: list[int] = []
        rig.hub.hold_until_synced(lambda: appended.append(1))
        rig.hub.subscribe(CLIENT, from_offset=0, session_key=None, credit=1 << 20, follow=True)
        for _ in range(6):
            rig.say(1, 2)
        await asyncio.sleep(0.02)
        assert rig.socket.offsets == [] and len(appended) == 6
        rig.hub.release(5)
        await rig.until(lambda: len(rig.socket.offsets) == 4)
        rig.hub.release(13)
        await rig.until(lambda: len(rig.socket.offsets) == 12)
        assert rig.socket.offsets == list(range(1, 13))

    in_loop(tmp_path, body)


def test_a_cursor_at_what_is_held_waits_for_it(tmp_path: Path) -> None:
    """Offsets that were given are no mistake before they are on disk: who starts a session begins at its first."""

    async def body(rig: Rig) -> None:
        rig.hub.hold_until_synced(lambda: None)
        for _ in range(3):
            rig.say(1, 2)
        rig.hub.release(3)
        rig.hub.subscribe(CLIENT, from_offset=5, session_key=1, credit=1 << 20, follow=True)
        rig.hub.subscribe(CLIENT, from_offset=7, session_key=1, credit=1 << 20, follow=True)
        with pytest.raises(RefusedError, match="ahead") as caught:
            rig.hub.subscribe(CLIENT, from_offset=8, session_key=1, credit=1 << 20, follow=True)
        assert caught.value.code == "offset_ahead"
        await rig.pumped()
        assert rig.socket.offsets == []
        rig.say(1)
        rig.hub.release(8)
        await rig.until(lambda: len(rig.socket.offsets) == 4)
        assert sorted(rig.socket.offsets) == [5, 6, 7, 7]

    in_loop(tmp_path, body)


def test_a_read_ends_with_what_was_there_also_if_that_is_held(tmp_path: Path) -> None:
    """Without `follow` a subscription ends behind what was in the ring when it began, and not before that came."""

    async def body(rig: Rig) -> None:
        rig.hub.hold_until_synced(lambda: None)
        for _ in range(3):
            rig.say(1, 2)
        rig.hub.release(3)
        rig.hub.subscribe(CLIENT, from_offset=0, session_key=None, credit=1 << 20, follow=False)
        await rig.until(lambda: len(rig.socket.offsets) == 2)
        await rig.pumped()
        assert rig.socket.notices == []
        rig.say(1)
        rig.hub.release(8)
        await rig.until(lambda: bool(rig.socket.notices))
        assert rig.socket.offsets[:6] == list(range(1, 7))
        (ended,) = rig.socket.notices
        assert isinstance(ended, SubscriptionEnded) and ended.reason == "caught_up" and ended.next_offset >= 7

    in_loop(tmp_path, body)


def test_cutting_keeps_whole_batches_and_cuts_gaps(tmp_path: Path) -> None:
    """A batch is there or not; a gap is cut at the head."""

    async def body(rig: Rig) -> None:
        for _ in range(4):
            rig.say(1, 3)
        chunk = rig.ring.read(0, max_bytes=1 << 20)
        cut = cut_chunk(chunk._replace(items=(Gap(first=1, last=9, reason="lost"), *chunk.items)), 7)
        gap, run = cut.items
        assert gap == Gap(first=1, last=6, reason="lost")
        assert isinstance(run, bytes) and [h.first_offset for h, _ in split_run(run)] == [1, 4]
        assert cut.next_cursor == 7

    in_loop(tmp_path, body)


def test_what_root_says_at_once_is_one_record(tmp_path: Path) -> None:
    """A loss and what follows from it: a root that is killed leaves both or neither."""

    async def body(rig: Rig) -> None:
        lost = IncarnationExited(incarnation=1, cause=Cause(kind="crashed"), restart="parked")
        parked = SessionStateChanged(state="parked", previous="running")
        assert rig.hub.append_events(7, 3, 1, [lost, parked], 5) == 1
        (run,) = rig.ring.read(1, session_key=7, max_bytes=10_000).items
        assert isinstance(run, bytes)
        ((header, payload),) = split_run(run)
        assert (header.first_seq, header.event_count, header.lane) == (3, 2, LANE_STATE)
        assert decode_payload(payload) == [(5, lost), (5, parked)]

    in_loop(tmp_path, body)
