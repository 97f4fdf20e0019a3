"""A worker that has the secret and abuses it: root's gate, hub and ring against an authenticated enemy.

The gate is the real one with a real ring behind it; only the socket and the process are stood in for, because a
worker gives its secret to nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from ottod.ids import session_id
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.cause import Cause
from ottod.protocol.events import (
    MAX_EVENT_TEXT_BYTES,
    ContentDelta,
    ConversationHandedOver,
    Event,
    Gap,
    ItemCompleted,
    SessionCreated,
    SessionExited,
    SessionStarted,
    SessionStateChanged,
    TurnStarted,
    UsageUpdated,
)
from ottod.protocol.records import LANE_DELTA, LANE_STATE, build_record, encode_entry, join_entries, split_run
from ottod.protocol.results import SessionInfo
from ottod.protocol.usage import Usage
from ottod.protocol.worker import (
    CommandReply,
    DeliverInput,
    Exiting,
    Heartbeat,
    RootToWorker,
    WorkerHello,
    WorkerMessage,
    WorkerRejected,
    WorkerWelcome,
    root_to_worker,
    worker_messages,
)
from ottod.root.hub import Hub
from ottod.root.session_table import Incarnation, Session, SessionTable
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import Lease
from ottod.storage.ring import Ring
from ottod.transport.socket import Socket
from tests.daemon.mutations import mutated, random_frames

SECRET = b"0123456789abcdef" * 2
PID = 4321
KEYS = (11, 22)


class Wire:
    """Where the gate's answers go."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, RootToWorker]] = []

    def send(self, frames: list[bytes]) -> bool:
        self.sent.append((frames[0], root_to_worker.decode(frames[1][1:])))
        return True


class Place:
    """A gate with two live sessions, and what it did to them."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.ring = Ring.open(directory / "ring.wal", size_bytes=2 << 20, segment_bytes=128 << 10, boot_id="b")
        self.table = SessionTable(lambda info: None)
        self.hub = Hub(self.ring, loop, max_subscriptions_per_client=1, max_credit_bytes=1 << 20)
        self.gate = WorkerGate(loop, self.table, self.hub, log=lambda line: None)
        self.wire = Wire()
        self.gate.attach(cast(Socket, self.wire))
        self.lost: list[tuple[str, str]] = []
        self.gate.on_lost = lambda session, why: self.lost.append((session.id, why))
        self.sessions = [self._session(key) for key in KEYS]

    def _session(self, key: int) -> Session:
        info = SessionInfo(session=session_id(key), agent="a", model="m", state="starting", incarnation=1)
        session = Session(info, None)
        session.incarnation = Incarnation(number=1, secret=SECRET + bytes([key]), generation=1)
        session.incarnation.lease = Lease(PID + key, cast(Any, None), 1)
        self.table.add(session)
        self.say(session, self.hello(session))
        assert isinstance(self.wire.sent[-1][1], WorkerWelcome)
        return session

    def hello(self, of: Session, **changed: Any) -> WorkerHello:
        assert of.incarnation is not None
        fields = {"protocol": PROTOCOL_VERSION, "session": of.id, "incarnation": 1, "pid": PID}
        return WorkerHello(**{**fields, "secret": of.incarnation.secret, **changed})

    def say(self, session: Session, message: WorkerMessage) -> None:
        self.gate.handle([session.id.encode(), b"M" + worker_messages.encode(message)])

    def batch(self, session: Session, *events: Event, lane: int = LANE_STATE, **changed: int) -> bytes:
        payload = join_entries([encode_entry(5, e) for e in events])
        fields = {"session_key": session.key, "first_seq": session.next_seq, "count": len(events), "incarnation": 1}
        return build_record(payload, lane=lane, **{**fields, **changed})

    def send(self, session: Session, record: bytes) -> None:
        self.gate.handle([session.id.encode(), b"B" + record])

    def stored(self) -> int:
        """Events in the ring."""
        chunk = self.ring.read(1, max_bytes=4 << 20)
        return sum(h.event_count for run in chunk.items if isinstance(run, bytes) for h, _ in split_run(run))

    def close(self) -> None:
        self.gate.forget(cast(Incarnation, self.sessions[0].incarnation))
        self.gate._sweep_handle.cancel()
        self.ring.close(clean=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A fresh gate."""
    loop = asyncio.new_event_loop()
    made = Place(tmp_path, loop)
    yield made
    made.close()
    loop.close()


FORBIDDEN: dict[str, Event] = {
    "exited": SessionExited(cause=Cause(kind="completed")),
    "created": SessionCreated(agent="x", model="y"),
    "ended": SessionStateChanged(state="ended", previous="running"),
    "gap": Gap(first=1, last=2, reason="lost"),
    "another pid": SessionStarted(pid=1, incarnation=1),
    "another incarnation": SessionStarted(pid=PID + KEYS[0], incarnation=2**40),
    "itself as its successor": ConversationHandedOver(child=session_id(KEYS[0]), agent="a"),
    "another's session as its successor": ConversationHandedOver(child=session_id(KEYS[1]), agent="a"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_only_root_may_say(place: Place, what: str) -> None:
    """A worker cannot end its session by saying so, invent its history, or claim another process."""
    session, sibling = place.sessions
    before = session.info, sibling.info
    place.send(session, place.batch(session, TurnStarted(turn=1), FORBIDDEN[what]))
    assert [s for s, _ in place.lost] == [session.id]
    assert (session.info, sibling.info) == before and place.stored() == 0 and not session.has_ended


def test_who_has_a_conversation_is_followed_once(place: Place) -> None:
    """Whom no session is known for may become one; a circle, however it came about, has no answer of a model's."""
    first, second = place.sessions
    stranger = session_id(9)
    place.send(first, place.batch(first, ConversationHandedOver(child=stranger, agent="a")))
    assert not place.lost and first.info.handed_to == stranger and not place.table.is_a_models(first.info)
    place.table.update(first, replace(first.info, handed_to=second.id))
    assert place.table.is_a_models(first.info)
    place.table.update(second, replace(second.info, handed_to=first.id))
    assert not place.table.is_a_models(first.info) and not place.table.is_a_models(second.info)
    place.table.update(second, replace(second.info, handed_to=second.id))
    assert not place.table.is_a_models(first.info)


WRONG_RECORDS: dict[str, Callable[[Place, Session, Session], bytes]] = {
    "of another session": lambda p, s, other: p.batch(s, TurnStarted(turn=1), session_key=other.key),
    "of another incarnation": lambda p, s, _: p.batch(s, TurnStarted(turn=1), incarnation=2),
    "with a hole before it": lambda p, s, _: p.batch(s, TurnStarted(turn=1), first_seq=s.next_seq + 1),
    "with a seq beyond all": lambda p, s, _: p.batch(s, TurnStarted(turn=1), first_seq=2**64 - 1),
    "that overlaps": lambda p, s, _: p.batch(s, *[TurnStarted(turn=1)] * 2, first_seq=s.next_seq - 1),
    "that miscounts": lambda p, s, _: p.batch(s, TurnStarted(turn=1), count=2),
    "of nothing": lambda p, s, _: p.batch(s, count=0),
    "with a lane that is none": lambda p, s, _: p.batch(s, TurnStarted(turn=1), lane=7),
    "cut off": lambda p, s, _: p.batch(s, TurnStarted(turn=1))[:-1],
    "empty": lambda p, s, _: b"",
}


@pytest.mark.parametrize("what", WRONG_RECORDS)
def test_a_wrong_record_ends_its_sender_and_nobody_else(place: Place, what: str) -> None:
    """It is not stored, and the worker that lost count is given up."""
    session, sibling = place.sessions
    place.send(session, place.batch(session, TurnStarted(turn=1)))
    place.send(session, WRONG_RECORDS[what](place, session, sibling))
    assert [s for s, _ in place.lost] == [session.id] and place.stored() == 1
    place.send(sibling, place.batch(sibling, TurnStarted(turn=1)))
    assert place.stored() == 2 and sibling.info.turn == 1


def test_a_repeated_batch_is_stored_once(place: Place) -> None:
    """What was not acknowledged is sent again; it is no offence and no second copy."""
    session = place.sessions[0]
    record = place.batch(session, TurnStarted(turn=1))
    for _ in range(3):
        place.send(session, record)
    assert place.stored() == 1 and session.next_seq == 2 and not place.lost


def test_nobody_answers_for_another(place: Place) -> None:
    """A command is answered by the session that was given it; an answer from elsewhere is an offence."""
    asked, liar = place.sessions

    async def scene() -> None:
        order = asyncio.ensure_future(place.gate.command(asked, DeliverInput(text="x"), timeout_s=5))
        await asyncio.sleep(0)
        number = cast(Any, place.wire.sent[-1][1]).id
        place.say(liar, CommandReply(id=number))
        await asyncio.sleep(0)
        assert not order.done() and [s for s, _ in place.lost] == [liar.id]
        place.say(asked, CommandReply(id=number))
        assert await order is None
        place.say(asked, CommandReply(id=number))
        place.say(asked, CommandReply(id=2**40))

    place.gate._loop.run_until_complete(scene())
    assert len(place.lost) == 1


def test_a_last_word_of_any_length_fits_an_event(place: Place) -> None:
    """Root ends the session with what the worker said of its end: cut, never too large to be said."""
    session = place.sessions[0]
    long = "é" * 300_000
    cause = Cause(kind="failed", message=long, signal=long, code=long)
    place.say(session, Exiting(cause=cause, last_seq=session.next_seq - 1, result=long))
    assert session.incarnation is not None
    said = session.incarnation.exiting
    assert said is not None and said.truncated and len(said.result.encode()) <= MAX_EVENT_TEXT_BYTES
    event = SessionExited(cause=said.cause, result=said.result, truncated=said.truncated)
    place.hub.append_events(session.key, session.next_seq, 1, [event], 1)
    assert place.stored() == 1


def test_a_wrong_secret_changes_nothing(place: Place) -> None:
    """Neither on a fresh connection nor on one that is known already."""
    session = place.sessions[0]
    wrongs: list[dict[str, Any]] = [
        {"secret": b""},
        {"secret": SECRET},
        {"incarnation": 2},
        {"session": session_id(99)},
        {"protocol": 0},
    ]
    for wrong in wrongs:
        for identity in (b"stranger", session.id.encode()):
            hello = place.hello(session, **wrong)
            place.gate.handle([identity, b"M" + worker_messages.encode(hello)])
            assert isinstance(place.wire.sent[-1][1], WorkerRejected)
    place.send(session, place.batch(session, TurnStarted(turn=1)))
    assert place.stored() == 1 and not place.lost


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_from_an_authenticated_worker(place: Place, seed: int) -> None:
    """10,000 spoiled messages and records with the secret shown: the gate never raises, the sibling never notices."""
    chance = random.Random(seed)
    session, sibling = place.sessions
    events: tuple[Event, ...] = (
        TurnStarted(turn=1, input="hi"),
        UsageUpdated(model="m", provider="p", usage=Usage(calls=1), total=Usage(calls=1)),
        ItemCompleted(item="1", kind="plan", data={"a": [1, {"b": None}]}),
        SessionStateChanged(state="running", previous="idle"),
    )
    for number in range(10_000):
        match chance.randrange(4):
            case 0:
                message = chance.choice(
                    (
                        place.hello(session),
                        Heartbeat(lag_ms=0.5, unacked_bytes=7),
                        CommandReply(id=3),
                        Exiting(cause=Cause(kind="completed"), last_seq=session.next_seq - 1),
                    )
                )
                frames = [b"M" + mutated(chance, [worker_messages.encode(message)])]
            case 1:
                entry = mutated(chance, [encode_entry(9, chance.choice(events))])
                payload = join_entries([entry])[: 90 * 1024]
                fields = {"session_key": session.key, "first_seq": session.next_seq, "incarnation": 1}
                lane = chance.choice((LANE_STATE, LANE_DELTA))
                frames = [b"B" + build_record(payload, count=1, lane=lane, **fields)]
            case 2:
                record = bytearray(place.batch(session, ContentDelta(stream="text", text="x"), lane=LANE_DELTA))
                record[chance.randrange(len(record))] = chance.randrange(256)
                frames = [b"B" + bytes(record)]
            case _:
                frames = random_frames(chance)
        place.gate.handle([session.id.encode(), *frames])
        if number % 100 == 0:
            place.send(sibling, place.batch(sibling, ContentDelta(stream="text", text="ok"), lane=LANE_DELTA))
    assert not session.has_ended and sibling.next_seq == 101
    assert {s for s, _ in place.lost} == {session.id}
    mine = place.ring.read(1, session_key=sibling.key, max_bytes=4 << 20)
    seqs = [h.first_seq for run in mine.items if isinstance(run, bytes) for h, _ in split_run(run)]
    assert seqs == list(range(1, 101))
