"""Both clients against a daemon that restarts, forgets, is slow, and talks nonsense."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from ottoctl import Otto
from ottoctl.blocking import BlockingConnection
from ottoctl.connection import Connection
from ottoctl.dialogue import MAX_REQUEST_BYTES
from ottoctl.feed import MIN_CREDIT_BYTES, SessionEvent
from ottoctl.outage import Outage
from ottoctl.policy import DEFAULT_TIMEOUT_S
from ottoctl.results import RunResult
from ottod.errors import Failure, OttoError, RefusedError, RemoteProtocolError, UnreachableError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.cause import Cause
from ottod.protocol.control import Reply, server_messages
from ottod.protocol.events import ContentDelta, Gap
from ottod.protocol.requests import (
    GetSession,
    GetStatus,
    Ping,
    ResumeSession,
    SendInput,
    StartSession,
    Subscribe,
    Unsubscribe,
    UpgradeDaemon,
    WaitSession,
)
from ottod.protocol.results import DaemonStatus, Done, SessionInfo, SessionStartedResult
from ottod.protocol.specs import AgentSpec
from ottod.root.daemon import MAX_CLIENT_MESSAGE_BYTES
from tests.fakes.fake_daemon import NO_ANSWER, FakeDaemon

T = TypeVar("T")
Runner = Callable[[Any], Any]

DEADLINE_S = 60.0
RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def delta(text: str) -> ContentDelta:
    return ContentDelta(stream="text", text=text)


def fill(fake: FakeDaemon, sid: str, batches: int, *, events: int = 10, size: int = 4) -> None:
    """Batches of deltas."""
    for _ in range(batches):
        fake.append(sid, [delta("x" * size)] * events, lane=1)


async def until(condition: Callable[[], bool]) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)


def with_otto(fake: FakeDaemon, body: Callable[[Otto], Awaitable[T]], run: Runner = asyncio.run, **options: Any) -> T:
    """Runs `body` with a connected client."""

    async def whole() -> T:
        async with asyncio.timeout(DEADLINE_S):
            async with Otto.connect(fake.endpoint, **options) as otto:
                return await body(otto)

    result: T = run(whole())
    return result


@RUNNERS
def test_the_hello_says_who_and_which_protocol(tmp_path: Path, run: Runner) -> None:
    """A connection begins with one hello, and knows the daemon afterwards."""
    with FakeDaemon(tmp_path) as fake:

        async def body(otto: Otto) -> None:
            assert otto.daemon.instance == "i-1"
            assert (await otto.status()).uptime_s == 61.0

        with_otto(fake, body, run, client="test")
        (hello,) = fake.hellos
        assert (hello.protocol, hello.client, hello.pid) == (PROTOCOL_VERSION, "test", os.getpid())


@pytest.mark.parametrize("connect", ["async", "sync"])
def test_another_protocol_is_an_error_that_names_both(tmp_path: Path, connect: str) -> None:
    """A mismatch names both versions and the mend, and is not a time-out."""
    with FakeDaemon(tmp_path, protocol=PROTOCOL_VERSION + 6) as fake:
        started = time.monotonic()
        with pytest.raises(OttoError) as caught:
            if connect == "async":
                with_otto(fake, lambda otto: otto.status())
            else:
                Otto.connect_sync(fake.endpoint)
        assert caught.value.code == "protocol_mismatch"
        assert f"protocol {PROTOCOL_VERSION + 6}" in caught.value.message
        assert f"protocol {PROTOCOL_VERSION}" in caught.value.message
        assert "ottoctl daemon stop" in caught.value.mend
        assert time.monotonic() - started < DEFAULT_TIMEOUT_S


@pytest.mark.parametrize("stale", [False, True], ids=["absent", "stale"])
def test_without_a_daemon_the_answer_comes_at_once(tmp_path: Path, stale: bool) -> None:
    """No socket, or one that nobody listens on any more: unreachable without waiting."""
    path = tmp_path / "control.sock"
    if stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    started = time.monotonic()
    for connect in (lambda: Otto.connect_sync(str(path)), lambda: asyncio.run(_enter(str(path)))):
        with pytest.raises(UnreachableError, match="no daemon is running") as caught:
            connect()
        assert "ottoctl daemon start" in caught.value.mend
    assert time.monotonic() - started < DEFAULT_TIMEOUT_S


async def _enter(endpoint: str) -> None:
    async with Otto.connect(endpoint):
        pass


def test_a_daemon_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    """A listener that says nothing costs the time-out and no more."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen()
        for connect in (
            lambda: Otto.connect_sync(str(tmp_path / "control.sock"), timeout_s=0.2),
            lambda: asyncio.run(_enter_quickly(str(tmp_path / "control.sock"))),
        ):
            started = time.monotonic()
            with pytest.raises(UnreachableError, match=r"within 0\.2 s"):
                connect()
            assert 0.15 < time.monotonic() - started < DEFAULT_TIMEOUT_S


async def _enter_quickly(endpoint: str) -> None:
    async with Otto.connect(endpoint, timeout_s=0.2):
        pass


def test_a_request_without_an_answer_times_out_and_the_connection_lives(tmp_path: Path) -> None:
    """One lost answer does not spoil the next request, and a late answer is ignored."""
    with FakeDaemon(tmp_path) as fake:
        fake.answers[GetStatus] = lambda body: NO_ANSWER

        async def body(otto: Otto) -> None:
            with pytest.raises(UnreachableError, match="no answer"):
                await otto.connection.call(GetStatus(), timeout_s=0.3)
            fake.answers.clear()
            fake.send_frames([b"M", server_messages.encode(Reply(id=1, failure=Failure(code="x", message="late")))])
            assert (await otto.status()).instance == "i-1"

        with_otto(fake, body)
        with Otto.connect_sync(fake.endpoint) as otto:
            fake.answers[GetStatus] = lambda body: NO_ANSWER
            with pytest.raises(UnreachableError, match="no answer"):
                otto.connection.call(GetStatus(), timeout_s=0.3)
            fake.answers.clear()
            assert otto.status().instance == "i-1"


def test_a_refusal_keeps_its_code_and_mend(tmp_path: Path) -> None:
    """Failures are values on the wire and OttoErrors here."""
    with FakeDaemon(tmp_path) as fake:
        fake.answers[StartSession] = lambda body: Failure(code="too_many_sessions", message="full", mend="wait")
        with Otto.connect_sync(fake.endpoint) as otto, pytest.raises(RefusedError) as caught:
            otto.start("coder", "x")
        assert (caught.value.code, caught.value.mend) == ("too_many_sessions", "wait")


@RUNNERS
def test_all_events_across_restarts_exactly_once(tmp_path: Path, run: Runner) -> None:
    """The daemon restarts twice and forgets its clients once while a reader reads: nothing is missed or doubled."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        # More than the credit, so that every incident finds events both in the backlog and not yet sent.
        fill(fake, sid, 400, size=600)

        async def body(otto: Otto) -> list[int]:
            session = await otto.session(sid)
            seen: list[int] = []
            async for event in session.events(credit_bytes=MIN_CREDIT_BYTES):
                seen.append(event.offset)
                if len(seen) in (500, 2500):
                    fake.restart(f"i-{len(seen)}")
                if len(seen) == 1500:
                    fake.forget_clients()
                if len(seen) == 4000:
                    fake.end_session(sid, Cause(kind="completed"))
            assert otto.connection.instance_changes == 2
            return seen

        assert with_otto(fake, body, run) == list(range(1, 4002))
        assert len(fake.bodies(Subscribe)) == 4


def test_the_blocking_reader_survives_the_same(tmp_path: Path) -> None:
    """The synchronous twin resumes as well, in the middle of records."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 400, size=600)
        seen: list[int] = []
        with Otto.connect_sync(fake.endpoint) as otto:
            for event in otto.session("00").events(credit_bytes=MIN_CREDIT_BYTES):
                seen.append(event.offset)
                if len(seen) in (505, 2505):
                    fake.restart(f"i-{len(seen)}")
                if len(seen) == 1505:
                    fake.forget_clients()
                if len(seen) == 4000:
                    fake.end_session(sid, Cause(kind="completed"))
        assert seen == list(range(1, 4002))


def test_a_reader_comes_back_with_its_offset(tmp_path: Path) -> None:
    """A new client that names the next offset goes on exactly there, also in the middle of a record."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 5)
        with Otto.connect_sync(fake.endpoint) as otto:
            events = otto.session(sid).events()
            first = [next(events).offset for _ in range(23)]
            events.close()
        fake.end_session(sid, Cause(kind="completed"))
        with Otto.connect_sync(fake.endpoint) as otto:
            rest = [e.offset for e in otto.session(sid).events(first[-1] + 1)]
        assert first + rest == list(range(1, 52))


def test_a_slow_reader_stops_the_flow(tmp_path: Path) -> None:
    """A reader that does not read gets its credit and not a byte more, and everything once it reads."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 600, size=500)

        async def body(otto: Otto) -> int:
            session = await otto.session(sid)
            batches = session.batches(follow=False, credit_bytes=MIN_CREDIT_BYTES)
            first = await anext(batches)
            assert not isinstance(first, Gap)
            (sub,) = fake.subscriptions.values()
            await until(lambda: sub.credit_bytes <= 0)
            await asyncio.sleep(0.05)
            assert sub.granted_bytes == MIN_CREDIT_BYTES
            assert sub.sent_bytes < MIN_CREDIT_BYTES + 64 * 1024
            total = first.header.event_count
            async for item in batches:
                assert not isinstance(item, Gap)
                total += item.header.event_count
            return total

        assert with_otto(fake, body) == 6000


def test_one_slow_stream_does_not_delay_a_request(tmp_path: Path) -> None:
    """Requests pass streams that nobody reads."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 600, size=500)
        with Otto.connect_sync(fake.endpoint) as otto:
            events = otto.session(sid).events()
            next(events)
            assert otto.status().instance == "i-1"
            events.close()


def test_a_gap_is_an_event_in_its_place(tmp_path: Path) -> None:
    """What has left the ring is told, exactly, before what is left."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 5)
        fake.evict(sid, last=30)
        with Otto.connect_sync(fake.endpoint) as otto:
            gap, *rest = list(otto.session(sid).events(follow=False))
        assert gap == SessionEvent(
            1, 0, sid, 0, "state", Gap(first=1, last=30, reason="evicted", session=sid, next_seq=31)
        )
        assert [e.offset for e in rest] == list(range(31, 51))


def test_a_hole_without_a_gap_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    """Loss is never silent, also when the daemon does not know of it."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 2)
        fake.append(sid, [delta("after")], skip_seqs=4)

        async def body(otto: Otto) -> list[int]:
            seen = []
            with pytest.raises(RemoteProtocolError, match="without a gap"):
                async for event in (await otto.session(sid)).events():
                    seen.append(event.seq)
            assert (await otto.status()).instance == "i-1"
            return seen

        assert with_otto(fake, body) == list(range(1, 21))


GARBAGE = [
    [b""],
    [b"M"],
    [b"M", b"\xc1"],
    [b"M", b"\x80", b"x"],
    [b"R\0\0", b""],
    [b"Z", b"\x80"],
    [b"M", b"\x81\xa4type\xa5reply"],
]


@pytest.mark.parametrize("frames", GARBAGE, ids=range(len(GARBAGE)))
def test_nonsense_from_the_daemon_is_an_error_and_never_a_hang(tmp_path: Path, frames: list[bytes]) -> None:
    """Whoever waits is told; the next request gets a fresh connection."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)

        async def body(otto: Otto) -> None:
            waiting = asyncio.create_task((await otto.session(sid)).wait())
            await until(lambda: len(fake.received) >= 3)
            fake.send_frames(frames)
            with pytest.raises(RemoteProtocolError):
                await waiting
            assert (await otto.status()).instance == "i-1"

        with_otto(fake, body)


def test_a_wait_survives_a_restart_and_a_message_does_not(tmp_path: Path) -> None:
    """What may be asked twice is asked again of the new daemon; what may not fails and says so."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fake.answers[SendInput] = lambda body: NO_ANSWER

        async def body(otto: Otto) -> None:
            session = await otto.session(sid)
            waiting = asyncio.create_task(session.wait())
            sending = asyncio.create_task(session.send("hello"))
            await until(lambda: len(fake.bodies(SendInput)) == 1)
            fake.restart("i-2")
            with pytest.raises(UnreachableError, match="is unknown"):
                await sending
            assert len(fake.bodies(SendInput)) == 1
            fake.end_session(sid, Cause(kind="completed"), result="done")
            assert (await waiting).result == "done"

        with_otto(fake, body)


def test_a_request_that_was_turned_away_unknown_is_sent_again(tmp_path: Path) -> None:
    """`hello_required` proves that a request was not carried out: even a message is safe to repeat then."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)

        async def body(otto: Otto) -> None:
            session = await otto.session(sid)
            fake.forget_clients()
            await session.send("hello")

        with_otto(fake, body)
        with Otto.connect_sync(fake.endpoint) as otto:
            session = otto.session(sid)
            fake.forget_clients()
            session.send("hello")
        assert len(fake.hellos) == 4


def test_a_start_has_a_key_and_is_repeated_with_it(tmp_path: Path) -> None:
    """A start whose answer was lost with the daemon is asked again under the same key."""
    with FakeDaemon(tmp_path) as fake:
        answer = iter([NO_ANSWER])
        fake.answers[StartSession] = lambda body: next(answer, None) or fake._default(body)

        async def body(otto: Otto) -> str:
            starting = asyncio.create_task(otto.start("coder", "task"))
            await until(lambda: len(fake.bodies(StartSession)) == 1)
            fake.restart("i-2")
            return (await starting).id

        with_otto(fake, body)
        first, second = fake.bodies(StartSession)
        assert first.key == second.key != ""


@pytest.mark.parametrize("connect", ["async", "sync"])
def test_only_going_on_with_an_ended_session_has_a_key(tmp_path: Path, connect: str) -> None:
    """It begins another one, which the daemon knows again; a live one would be told its task twice."""
    with FakeDaemon(tmp_path) as fake:
        parked, ended = fake.add_session(3, state="parked"), fake.add_session(4, state="ended")
        fake.answers[ResumeSession] = lambda body: SessionStartedResult(session=body.session, from_offset=1)

        async def body(otto: Otto) -> None:
            for sid in (parked, ended):
                await (await otto.session(sid)).resume("go on")

        if connect == "async":
            with_otto(fake, body)
        else:
            with Otto.connect_sync(fake.endpoint) as otto:
                for sid in (parked, ended):
                    otto.session(sid).resume("go on")
        first, second = fake.bodies(ResumeSession)
        assert (first.session, first.key) == (parked, "")
        assert second.session == ended and second.key


def test_a_daemon_that_stays_away_fails_what_waits(tmp_path: Path) -> None:
    """After reconnect_s whoever waits is told, behind what had arrived."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 1)

        async def body(otto: Otto) -> list[int]:
            seen = []
            session = await otto.session(sid)
            with pytest.raises(UnreachableError):
                async for event in session.events():
                    seen.append(event.offset)
                    if len(seen) == 10:
                        fake.vanish()
            return seen

        assert with_otto(fake, body, reconnect_s=0.3) == list(range(1, 11))
        with pytest.raises(UnreachableError):
            Otto.connect_sync(fake.endpoint)


def test_many_that_fail_together_have_a_short_traceback_each(tmp_path: Path) -> None:
    """One error is raised in all of them; it does not gather the lines of each."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)

        async def body(otto: Otto) -> list[BaseException | RunResult]:
            session = await otto.session(sid)
            waiting = [asyncio.create_task(session.wait()) for _ in range(100)]
            await until(lambda: len(fake.bodies(WaitSession)) == 100)
            fake.vanish()
            return await asyncio.gather(*waiting, return_exceptions=True)

        for error in with_otto(fake, body, reconnect_s=0.1):
            assert isinstance(error, UnreachableError)
            assert len(traceback.extract_tb(error.__traceback__)) < 10


def test_an_outage_is_told_at_once_and_when_it_is_over(tmp_path: Path) -> None:
    """Both clients hear of it while they wait, once each time."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 1)
        told: list[Outage] = []

        def hear(outage: Outage) -> None:
            told.append(outage)
            if not outage.is_over:
                fake.come_back(f"i-{len(told)}")

        async def body(otto: Otto) -> None:
            async for event in (await otto.session(sid)).events():
                if event.offset == 10:
                    fake.vanish()
                    await until(lambda: len(told) == 2)
                    return

        with_otto(fake, body, on_outage=hear)
        assert [outage.is_over for outage in told] == [False, True]
        assert str(told[0]) == "the daemon has gone; waiting up to 30 s for it"
        told.clear()
        with Otto.connect_sync(fake.endpoint, reconnect_s=20.0, on_outage=hear) as otto:
            for event in otto.session(sid).events():
                if event.offset == 10:
                    fake.vanish()
                    fill(fake, sid, 1)
                elif event.offset == 11:
                    break
        assert [outage.is_over for outage in told] == [False, True] and told[0].seconds == 20.0


def test_the_end_of_the_daemon_ends_the_stream(tmp_path: Path) -> None:
    """An orderly stop is an end, not an error."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 1)
        with Otto.connect_sync(fake.endpoint) as otto:
            seen = []
            for event in otto.events(0):
                seen.append(event.offset)
                if len(seen) == 10:
                    fake.end_subscriptions("daemon_stop")
            assert seen == list(range(1, 11))


def test_an_expired_subscription_is_taken_up_again(tmp_path: Path) -> None:
    """A reader that was silent for too long goes on where it stopped."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 1)
        with Otto.connect_sync(fake.endpoint) as otto:
            seen = []
            for event in otto.session(sid).events():
                seen.append(event.offset)
                if len(seen) == 10:
                    fake.end_subscriptions("expired")
                    fill(fake, sid, 1)
                    fake.end_session(sid, Cause(kind="completed"))
            assert seen == list(range(1, 22))


def test_following_an_ended_session_ends(tmp_path: Path) -> None:
    """An ended session says nothing more: its stream ends also when its last events are gone or behind."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 1)
        fake.end_session(sid, Cause(kind="completed"))
        with Otto.connect_sync(fake.endpoint) as otto:
            assert len(list(otto.session(sid).events())) == 11
            assert list(otto.session(sid).events(None)) == []
            fake.evict(sid, last=11)
            (gap,) = otto.session(sid).events()
            assert isinstance(gap.event, Gap)


def test_leaving_a_stream_unsubscribes(tmp_path: Path) -> None:
    """A reader that leaves costs the daemon nothing."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fill(fake, sid, 3)

        async def body(otto: Otto) -> None:
            events = (await otto.session(sid)).events()
            await anext(events)
            await events.aclose()
            await until(lambda: len(fake.bodies(Unsubscribe)) == 1)
            assert not fake.subscriptions

        with_otto(fake, body)


def test_pings_keep_a_waiting_connection_alive(tmp_path: Path) -> None:
    """Whoever waits pings, so that the daemon does not take it for gone."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)

        async def body() -> None:
            connection = await Connection.open(fake.endpoint, ping_interval_s=0.02)
            waiting = asyncio.create_task(connection.call(WaitSession(session=sid), forever=True))
            await until(lambda: len(fake.bodies(Ping)) >= 3)
            fake.end_session(sid, Cause(kind="completed"))
            await waiting
            await connection.close()

        asyncio.run(body())
        pinged = len(fake.bodies(Ping))
        blocking = BlockingConnection.open(fake.endpoint, ping_interval_s=0.02)
        with pytest.raises(UnreachableError):
            blocking.call(WaitSession(session=fake.add_session(4)), timeout_s=1.5)
        blocking.close()
        assert len(fake.bodies(Ping)) >= pinged + 3


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_an_unanswered_ping_means_a_new_connection(tmp_path: Path, kind: str) -> None:
    """A daemon that hangs is noticed by who waits; once it answers again, the wait goes on."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        silent = iter([NO_ANSWER])

        def ping(body: Ping) -> object:
            if next(silent, None) is NO_ANSWER:
                return NO_ANSWER
            fake.end_session(sid, Cause(kind="completed"))
            return Done()

        fake.answers[Ping] = ping

        async def waited() -> object:
            connection = await Connection.open(fake.endpoint, ping_interval_s=0.05, timeout_s=1.5)
            try:
                return await connection.call(WaitSession(session=sid), forever=True)
            finally:
                await connection.close()

        if kind == "async":
            info = asyncio.run(waited())
        else:
            blocking = BlockingConnection.open(fake.endpoint, ping_interval_s=0.7)
            info = blocking.call(WaitSession(session=sid), timeout_s=DEADLINE_S)
            blocking.close()
        assert isinstance(info, SessionInfo) and info.state == "ended"
        assert len(fake.hellos) == 2


def test_an_answer_that_nobody_has_read_is_no_silence(tmp_path: Path) -> None:
    """A blocking client that does other things between two calls keeps its connection, and its next message."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        answered: list[float] = []
        is_away = threading.Event()

        def late(body: Ping) -> Done:
            assert is_away.wait(DEADLINE_S)
            answered.append(time.monotonic())
            return Done()

        fake.answers[Ping] = late
        blocking = BlockingConnection.open(fake.endpoint, ping_interval_s=1.0)
        with pytest.raises(UnreachableError):
            # Long enough for one ping, not for a second one.
            blocking.call(WaitSession(session=sid), timeout_s=1.5)
        is_away.set()
        deadline_s = time.monotonic() + DEADLINE_S
        while not answered or time.monotonic() < answered[0] + 1.0:
            assert time.monotonic() < deadline_s, "no ping came"
            time.sleep(0.01)
        del fake.answers[Ping]
        blocking.call(SendInput(session=sid, text="hello"))
        blocking.close()
        assert len(fake.hellos) == 1 and len(fake.bodies(SendInput)) == 1


def test_several_requests_are_answered_together(tmp_path: Path) -> None:
    """Each answer stands in its request's place, failures and silence among them."""
    with FakeDaemon(tmp_path) as fake:
        sid = fake.add_session(3)
        fake.answers[SendInput] = lambda body: NO_ANSWER if body.text == "?" else Done(detail=body.text)
        blocking = BlockingConnection.open(fake.endpoint)
        bodies = [SendInput(session=sid, text="a"), GetSession(session="s-9"), SendInput(session=sid, text="?")]
        first, second, third = blocking.call_each(bodies, timeout_s=1.5)
        blocking.close()
        assert first == Done(detail="a")
        assert isinstance(second, OttoError) and second.code == "no_such_session"
        assert isinstance(third, UnreachableError)


def test_a_request_beyond_the_daemons_bound_is_not_sent(tmp_path: Path) -> None:
    """The daemon hangs up on it; the client knows the bound, says so, and the connection lives on."""
    assert MAX_REQUEST_BYTES == MAX_CLIENT_MESSAGE_BYTES
    with FakeDaemon(tmp_path) as fake:
        spec = AgentSpec(name="mine", system_prompt="é" * MAX_REQUEST_BYTES)
        with Otto.connect_sync(fake.endpoint) as otto:
            with pytest.raises(OttoError, match="bytes") as refused:
                otto.start(spec=spec, task="t", cwd=tmp_path)
            assert refused.value.code == "too_large"
            assert otto.status().instance == "i-1"
        assert len(fake.hellos) == 1 and not fake.bodies(StartSession)


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_an_upgrade_that_fails_is_told(tmp_path: Path, kind: str) -> None:
    """Nobody new in time, or another process in the daemon's place: an error, and never a hang."""
    with FakeDaemon(tmp_path) as fake:
        fake.answers[UpgradeDaemon] = lambda body: Done()

        async def upgraded(timeout_s: float) -> None:
            async with Otto.connect(fake.endpoint) as otto:
                await otto.upgrade_daemon(timeout_s=timeout_s)

        def ask(timeout_s: float = DEADLINE_S) -> None:
            if kind == "async":
                asyncio.run(upgraded(timeout_s))
            else:
                with Otto.connect_sync(fake.endpoint) as otto:
                    otto.upgrade_daemon(timeout_s=timeout_s)

        with pytest.raises(OttoError) as late:
            ask(timeout_s=0.2)
        assert late.value.code == "upgrade_failed" and "no new daemon" in late.value.message
        status = DaemonStatus(
            version="2", protocol=1, pid=1, instance="i-2", started_at_ns=0, uptime_s=0.0, sessions={}
        )
        fake.answers[GetStatus] = lambda body: status
        with pytest.raises(OttoError, match="in its place"):
            ask()


def test_a_spec_travels_whole(tmp_path: Path) -> None:
    """An agent made in Python arrives as it was."""
    with FakeDaemon(tmp_path) as fake:
        spec = AgentSpec(name="mine", tools=("grep",), system_prompt="look")
        with Otto.connect_sync(fake.endpoint) as otto:
            otto.start(spec=spec, task="t", cwd=tmp_path, env={"LANG": "C", "API_KEY": "x"}, mode="conversation")
        (body,) = fake.bodies(StartSession)
        assert body.spec == spec
        assert (body.cwd, body.env, body.mode) == (str(tmp_path), {"LANG": "C"}, "conversation")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """A hundred connections leave no file descriptor and no thread."""
    with FakeDaemon(tmp_path) as fake:
        with_otto(fake, lambda otto: otto.status())
        Otto.connect_sync(fake.endpoint).close()
        files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        for _ in range(50):
            Otto.connect_sync(fake.endpoint).close()
            with_otto(fake, lambda otto: otto.status())
        # The daemon is in this process too, and needs a moment to see that the last of them has gone.
        deadline = time.monotonic() + DEADLINE_S
        while len(os.listdir("/proc/self/fd")) > files + 3 or len(os.listdir("/proc/self/task")) > threads + 1:
            assert time.monotonic() < deadline, "descriptors or threads are left"
            time.sleep(0.005)
