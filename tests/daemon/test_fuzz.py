"""Bytes that nobody should send, on both sockets of a real daemon: it answers errors, or nothing, and serves on."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from ottod.ids import session_key
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.cause import Cause
from ottod.protocol.control import Grant, Hello, Rejected, Reply, Request, client_messages, server_messages
from ottod.protocol.events import ContentDelta, SessionExited, SessionStateChanged
from ottod.protocol.records import LANE_DELTA, LANE_STATE, build_record, encode_entry, join_entries
from ottod.protocol.requests import (
    GetSession,
    GetStatus,
    KillSession,
    ListApprovals,
    ListSessions,
    Ping,
    RemoveSession,
    RequestBody,
    ResolveApproval,
    SendInput,
    StartSession,
    StopDaemon,
    StopSession,
    Subscribe,
    Unsubscribe,
    WaitSession,
)
from ottod.protocol.specs import AgentSpec, Budgets
from ottod.protocol.worker import (
    CommandReply,
    Exiting,
    Heartbeat,
    WorkerHello,
    WorkerRejected,
    root_to_worker,
    worker_messages,
)
from ottod.root.daemon import MAX_CLIENT_MESSAGE_BYTES, MAX_WORKER_MESSAGE_BYTES
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.mutations import mutated, random_frames
from tests.daemon.raw import RawClient, raw_client

FRAMES = 10_000
BURST = 250
ABSENT = "s-zzzzzzzzzz"

FUZZ_ID = 7_000_000_007
"""None that the test's own requests have: their answers come when they come."""
BODIES: tuple[RequestBody, ...] = (
    StartSession(agent="nobody", cwd="/nonexistent/otto", task="x", env={"PATH": "/bin"}, key="k"),
    StartSession(spec=AgentSpec(name="a", model="scripted:x", budgets=Budgets(usd=1.0)), cwd="/nonexistent/otto"),
    ListSessions(all=True, states=("ended", "idle"), limit=3),
    GetSession(session=ABSENT),
    SendInput(session=ABSENT, text="hello"),
    WaitSession(session=ABSENT, idle=True),
    StopSession(session=ABSENT, grace_s=1.0, reason="r"),
    KillSession(session=ABSENT, reason="r"),
    RemoveSession(session=ABSENT),
    ListApprovals(),
    ResolveApproval(session=ABSENT, approval="a-zzzzzzzzzz", decision="approved"),
    ResolveApproval(approval="a-", decision="denied", scope="session", reason="r"),
    Subscribe(from_offset=1, session=ABSENT, follow=False, credit_bytes=1000),
    Subscribe(from_offset=0),
    Unsubscribe(subscription=1),
    GetStatus(),
    Ping(),
)
CLIENT_SEEDS = [
    client_messages.encode(Hello(protocol=PROTOCOL_VERSION, client="fuzz", version="0", pid=1)),
    client_messages.encode(Grant(subscription=1, bytes=100)),
    *(client_messages.encode(Request(id=FUZZ_ID, body=body)) for body in BODIES),
]
STOP = client_messages.encode(Request(id=FUZZ_ID, body=StopDaemon(grace_s=0.0)))


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """One daemon for all: whatever it has been through, the next test must find it whole."""
    with running_daemon() as started:
        yield started


@pytest.fixture(autouse=True)
def unharmed(daemon: RealDaemon) -> Iterator[None]:
    """After each test: a session runs to its end, a bystander still listens, and the log knows of no defect."""
    with daemon.client() as otto:
        talk = daemon.script("talk", {"text": "one"}, {"text": "two"})
        bystander = otto.start(spec=daemon.agent(talk), task="x", cwd=daemon.workdir, mode="conversation")
        bystander.wait(idle=True, timeout_s=30)
        said = len(daemon.log)
        yield
        hello = daemon.script("hello", {"text": "hello"})
        assert otto.run(spec=daemon.agent(hello), task="x", cwd=daemon.workdir).result == "hello"
        bystander.send("more")
        wait_for("the bystander answers", lambda: bystander.info().turn == 2 and bystander.info().state == "idle")
        assert bystander.stop(grace_s=5).remaining_pids == ()
        log = daemon.log[said:]
        assert "Traceback" not in log and "internal error" not in log, log[-4000:]


# ---------------------------------------------------------------- the control socket


def _pelt(raw: RawClient, make: Callable[[], list[bytes]], seen: Callable[[list[bytes]], None]) -> None:
    """Sends FRAMES messages in bursts; after each the daemon must answer a ping."""
    for _ in range(FRAMES // BURST):
        for _ in range(BURST):
            raw.socket.send_multipart(make())
        raw.say_hello_again()
        assert raw.ask(Ping()).failure is None
        raw.drain(seen)


def _check_reply(frames: list[bytes]) -> None:
    """What comes back follows the protocol, and no answer speaks of a defect."""
    if frames[0] != b"M":
        return
    message = server_messages.decode(frames[1])
    if isinstance(message, Reply | Rejected) and message.failure is not None:
        assert message.failure.code != "internal", message
        assert message.failure.message


def test_random_frames_on_the_control_socket(daemon: RealDaemon) -> None:
    """10,000 messages of noise between greetings and pings."""
    chance = random.Random(11)
    with raw_client(daemon.endpoint) as raw, daemon.client() as otto:
        before = otto.status().counters["bad_client_messages"]
        _pelt(raw, lambda: random_frames(chance), _check_reply)
        assert otto.status().counters["bad_client_messages"] == before + FRAMES


@pytest.mark.parametrize("says_hello", [False, True])
def test_mutated_messages_on_the_control_socket(daemon: RealDaemon, says_hello: bool) -> None:
    """10,000 spoiled messages of every kind; from a stranger an order to stop the daemon is among them."""
    chance = random.Random(12)
    seeds = CLIENT_SEEDS if says_hello else [*(s for s in CLIENT_SEEDS if b"hello" not in s), STOP]
    with raw_client(daemon.endpoint, hello=says_hello) as raw:
        if says_hello:
            _pelt(raw, lambda: [mutated(chance, seeds)], _check_reply)
            return
        for number in range(FRAMES):
            raw.socket.send(mutated(chance, seeds))
            if number % BURST == BURST - 1:
                # Nothing but a refusal is said to somebody who has not said hello.
                refused = raw.ask(Ping()).failure
                assert refused is not None and refused.code == "hello_required"
                raw.drain(_check_reply)


def test_sizes_up_to_the_limit_and_beyond(daemon: RealDaemon) -> None:
    """The largest message is answered with an error; one byte more costs the sender its connection, nobody else."""
    with raw_client(daemon.endpoint) as raw:
        raw.socket.send(b"\xc1" * MAX_CLIENT_MESSAGE_BYTES)
        answer = raw.message()
        assert isinstance(answer, Rejected) and answer.failure.code == "bad_message"
        raw.socket.send(b"\xc1" * (MAX_CLIENT_MESSAGE_BYTES + 1))
        raw.socket.send_multipart([b"x" * 1000] * 1000)
    with raw_client(daemon.endpoint) as raw:
        assert raw.ask(Ping()).failure is None


def test_texts_of_any_length_are_refused_or_cut(daemon: RealDaemon) -> None:
    """Fields that end up in events are bounded: none of them leaves a session that can neither run nor end."""
    hello = daemon.script("fine", {"text": "hello"})
    long = "x" * 300_000
    with daemon.client() as otto, raw_client(daemon.endpoint) as raw:
        before = {i.session for i in otto.list()}
        for field in ("parent", "model", "title", "key", "agent"):
            body = StartSession(spec=daemon.agent(hello), cwd=str(daemon.workdir), task="x")
            raw.ask(msgspec.structs.replace(body, **{field: long}))
        wait_for("no session is stuck", lambda: {i.session for i in otto.list()} <= before)
        for kind in (StopSession, KillSession):
            slow = daemon.script("slow", {"stream": {"events": 100_000, "rate_hz": 50}})
            session = otto.start(spec=daemon.agent(slow), task="x", cwd=daemon.workdir)
            wait_for("it runs", lambda session=session: session.info().state == "running")
            raw.ask(kind(session=session.id, reason=long))
            assert session.wait(timeout_s=30).exit_status == 6


def test_what_is_not_even_zeromq(daemon: RealDaemon) -> None:
    """Noise on the bare unix sockets, and many connections that say nothing."""
    chance = random.Random(13)
    paths = [daemon.endpoint.removeprefix("ipc://"), str(daemon.base / "run" / "worker.sock")]
    silent = []
    for path in paths * 40:
        bare = socket.socket(socket.AF_UNIX)
        bare.connect(path)
        silent.append(bare)
        greeting = chance.choice((b"", b"\xff" + bytes(8) + b"\x7f\x03\x00NULL", b"GET / HTTP/1.1\r\n\r\n"))
        try:
            bare.sendall(greeting + chance.randbytes(chance.randrange(2000)))
        except OSError:
            pass  # It hung up at the first wrong byte.
    try:
        with raw_client(daemon.endpoint) as raw:
            assert raw.ask(Ping()).failure is None
    finally:
        for bare in silent:
            bare.close()


def test_one_client_cannot_ask_for_everything(daemon: RealDaemon) -> None:
    """Subscriptions and requests in work are bounded per client; beyond that it is told so."""
    with daemon.client() as otto, raw_client(daemon.endpoint) as raw:
        slow = daemon.script("slow", {"stream": {"events": 100_000, "rate_hz": 20}})
        session = otto.start(spec=daemon.agent(slow), task="x", cwd=daemon.workdir)
        codes = [reply.failure.code for _ in range(80) if (reply := raw.ask(Subscribe())).failure is not None]
        assert codes and set(codes) == {"too_many_subscriptions"}
        for number in range(300):
            raw.send(Request(id=10_000 + number, body=WaitSession(session=session.id)))
        refused: list[str] = []

        def note(frames: list[bytes]) -> None:
            if frames[0] == b"M" and isinstance(message := server_messages.decode(frames[1]), Reply):
                refused.extend([message.failure.code] if message.failure is not None else [])

        wait_for("the rest are refused", lambda: raw.drain(note) * 0 or len(refused) >= 300 - 256)
        assert set(refused) == {"too_many_requests"}
        assert session.stop(grace_s=5).remaining_pids == ()


# ---------------------------------------------------------------- the worker socket


class Impostor:
    """A DEALER on the worker socket that has no secret."""

    def __init__(self, daemon: RealDaemon) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(f"ipc://{daemon.base}/run/worker.sock")

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def say(self, kind: bytes, body: bytes) -> None:
        self.socket.send(kind + body)

    def hello(self, session: str, incarnation: int = 1, protocol: int = PROTOCOL_VERSION) -> WorkerRejected:
        """Says hello with a wrong secret; gives the answer, which must be a refusal."""
        hello = WorkerHello(protocol=protocol, session=session, incarnation=incarnation, secret=b"guess" * 7, pid=1)
        self.say(b"M", worker_messages.encode(hello))
        return self.answer()

    def answer(self) -> WorkerRejected:
        assert self.socket.poll(30_000), "no answer"
        frames = self.socket.recv_multipart()
        message = root_to_worker.decode(frames[0][1:])
        assert isinstance(message, WorkerRejected), message
        return message

    def flush(self) -> None:
        """Returns when root has handled all that was sent before."""
        while self.hello("s-0000000000", 77).failure.code != "unknown_worker":
            pass


def _batch(session: str, seq: int, *, event: object = None, incarnation: int = 1) -> bytes:
    said = event if event is not None else ContentDelta(stream="text", text="forged")
    lane = LANE_DELTA if isinstance(said, ContentDelta) else LANE_STATE
    payload = join_entries([encode_entry(1, said)])  # type: ignore[arg-type]
    key = session_key(session)
    return build_record(payload, session_key=key, first_seq=seq, count=1, lane=lane, incarnation=incarnation)


def _worker_seeds(session: str) -> list[bytes]:
    hello = WorkerHello(protocol=PROTOCOL_VERSION, session=session, incarnation=1, secret=b"x" * 32, pid=1)
    messages = (hello, Heartbeat(lag_ms=1.0), CommandReply(id=1), Exiting(cause=Cause(kind="completed"), last_seq=1))
    return [
        *(b"M" + worker_messages.encode(m) for m in messages),
        b"B" + _batch(session, 1),
        b"B" + _batch(session, 2, event=SessionStateChanged(state="ended", previous="idle")),
    ]


@pytest.mark.parametrize("kind", ["random", "mutated"])
def test_noise_on_the_worker_socket(daemon: RealDaemon, kind: str) -> None:
    """10,000 messages from somebody who is no worker: none is believed."""
    chance = random.Random(14)
    with daemon.client() as otto, Impostor(daemon) as impostor:
        (live,) = otto.list()
        seeds = _worker_seeds(live.session)
        before = otto.session(live.session).info()

        def make() -> list[bytes]:
            if kind == "random":
                return random_frames(chance)
            data = chance.choice(seeds)
            return [data[:1] + mutated(chance, [data[1:]])] if data[:1] == b"M" else [_spoiled(chance, data)]

        for _ in range(FRAMES // BURST):
            for _ in range(BURST):
                impostor.socket.send_multipart(make())
            impostor.flush()
        after = otto.session(live.session).info()
        assert (after.state, after.last_seq, after.pid) == (before.state, before.last_seq, before.pid)


def _spoiled(chance: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randrange(4)):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out[: chance.choice((len(out), len(out), chance.randrange(len(out) + 1)))])


def test_oversized_messages_on_the_worker_socket(daemon: RealDaemon) -> None:
    """Too much for a record costs the sender its connection."""
    with Impostor(daemon) as impostor:
        impostor.socket.send(b"B" + bytes(MAX_WORKER_MESSAGE_BYTES + 1))
    with Impostor(daemon) as impostor:
        impostor.socket.send(b"B" + bytes(MAX_WORKER_MESSAGE_BYTES - 1))
        impostor.flush()


def test_an_impostor_is_refused(daemon: RealDaemon) -> None:
    """Without the secret: no hello, no event, no reply, and above all no end of somebody else's session."""
    with daemon.client() as otto, Impostor(daemon) as impostor:
        (live,) = otto.list()
        session = otto.session(live.session)
        before = session.info()
        assert impostor.hello(live.session).failure.code == "unknown_worker"
        assert impostor.hello(live.session, incarnation=2).failure.code == "unknown_worker"
        assert impostor.hello("s-0000000000").failure.code == "unknown_worker"
        forged = (
            (b"B", _batch(live.session, before.last_seq + 1)),
            (b"B", _batch(live.session, before.last_seq + 1, event=SessionExited(cause=Cause(kind="completed")))),
            (b"M", worker_messages.encode(Heartbeat())),
            (b"M", worker_messages.encode(CommandReply(id=1))),
            (b"M", worker_messages.encode(Exiting(cause=Cause(kind="completed"), last_seq=before.last_seq))),
        )
        for kind, body in forged:
            impostor.say(kind, body)
            assert impostor.answer().failure.code == "hello_required"
        after = session.info()
        assert (after.state, after.last_seq, after.pid, after.cause) == (
            before.state,
            before.last_seq,
            before.pid,
            before.cause,
        )
        assert [e.seq for e in session.events(follow=False)] == list(range(1, before.last_seq + 1))
