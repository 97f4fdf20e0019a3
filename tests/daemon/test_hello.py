"""The hello: protocol versions that do not fit are a clear error on both sides, and nothing is heard before it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from ottoctl.sync import SyncOtto
from ottod import __version__
from ottod.errors import OttoError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import Grant, Hello, Rejected, Reply, Request, ServerMessage, Welcome, server_messages
from ottod.protocol.requests import GetStatus, Ping, StopDaemon, Subscribe
from ottod.protocol.worker import WorkerHello, WorkerRejected, root_to_worker, worker_messages
from tests.daemon.harness import RealDaemon, running_daemon
from tests.daemon.raw import raw_client


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """One daemon for all."""
    with running_daemon() as started:
        yield started


@pytest.mark.parametrize("protocol", [PROTOCOL_VERSION + 1, PROTOCOL_VERSION - 1, -5, 2**63])
def test_a_client_of_another_protocol(daemon: RealDaemon, protocol: int) -> None:
    """Older or newer: refused with both versions and a mend, and nothing else of it is heard."""
    with raw_client(daemon.endpoint, hello=False) as raw:
        raw.send(Hello(protocol=protocol, client="other", version="9.9.9"))
        answer = raw.message()
        assert isinstance(answer, Rejected) and answer.protocol == PROTOCOL_VERSION
        failure = answer.failure
        assert failure.code == "protocol_mismatch" and failure.mend
        for word in (str(protocol), str(PROTOCOL_VERSION), "9.9.9", __version__):
            assert word in failure.message
        refused = raw.ask(Ping()).failure
        assert refused is not None and refused.code == "hello_required"
        # It is a refusal of that hello, not of the client for ever.
        assert raw.say_hello().protocol == PROTOCOL_VERSION


def test_nothing_is_heard_before_hello(daemon: RealDaemon) -> None:
    """Requests are answered by id with `hello_required`; a grant, which has none, with a rejection."""
    with raw_client(daemon.endpoint, hello=False) as raw:
        for body in (Ping(), GetStatus(), Subscribe(from_offset=0), StopDaemon()):
            raw.send(Request(id=41, body=body))
            answer = raw.message()
            assert isinstance(answer, Reply) and answer.id == 41 and answer.result is None
            assert answer.failure is not None and answer.failure.code == "hello_required"
        raw.send(Grant(subscription=1, bytes=5))
        answer = raw.message()
        assert isinstance(answer, Rejected) and answer.failure.code == "hello_required"
        raw.say_hello()
        assert raw.ask(Ping()).failure is None


def test_hello_twice_changes_nothing(daemon: RealDaemon) -> None:
    """A repeated hello is welcomed again; the subscription that was open goes on."""
    with raw_client(daemon.endpoint) as raw, daemon.client() as otto:
        subscribed = raw.subscribe(None)
        first, second = raw.say_hello(), raw.say_hello()
        assert first == second
        model = daemon.script("hi", {"text": "hi"})
        assert otto.run(spec=daemon.agent(model), task="x", cwd=daemon.workdir).ok
        assert raw.items(subscribed.subscription)


def test_a_worker_of_another_protocol(daemon: RealDaemon) -> None:
    """Root refuses it with its own version and says so in its log, but not as often as somebody likes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.connect(f"ipc://{daemon.base}/run/worker.sock")
        for _ in range(300):
            hello = WorkerHello(protocol=99, session="s-0000000000", incarnation=1, secret=b"x", pid=1)
            socket.send(b"M" + worker_messages.encode(hello))
            assert socket.poll(30_000)
            answer = root_to_worker.decode(socket.recv()[1:])
            assert isinstance(answer, WorkerRejected) and answer.protocol == PROTOCOL_VERSION
            assert answer.failure.code == "protocol_mismatch" and "99" in answer.failure.message
        assert 1 <= daemon.log.count("protocol 99") <= 100
    finally:
        context.destroy(linger=0)


# ---------------------------------------------------------------- the other side


class OtherDaemon:
    """A ROUTER that answers a hello as a daemon of another protocol would."""

    def __init__(self, path: Path, answer: Callable[[bytes], list[bytes]]) -> None:
        self.endpoint = f"ipc://{path}"
        self._answer = answer
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self.endpoint)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> OtherDaemon:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(10)
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._is_over.is_set():
            if self._socket.poll(20):
                identity, data = self._socket.recv_multipart()
                self._socket.send_multipart([identity, *self._answer(data)])


def _says(message: ServerMessage) -> Callable[[bytes], list[bytes]]:
    return lambda _: [b"M", server_messages.encode(message)]


ANSWERS: dict[str, Callable[[bytes], list[bytes]]] = {
    "a newer daemon's welcome": _says(Welcome(protocol=PROTOCOL_VERSION + 1, version="9.9.9", instance="x", pid=1)),
    "an older daemon's refusal": _says(
        Rejected(
            failure=OttoError("the daemon speaks protocol 0", code="protocol_mismatch", mend="upgrade").failure(),
            protocol=PROTOCOL_VERSION - 1,
        )
    ),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_daemon_of_another_protocol(tmp_path: Path, daemon: RealDaemon, what: str) -> None:
    """The library raises `protocol_mismatch`, the command line exits with 3; both say what to do."""
    with OtherDaemon(tmp_path / "x.sock", ANSWERS[what]) as other:
        with pytest.raises(OttoError) as caught:
            SyncOtto.connect(other.endpoint, timeout_s=5)
        assert caught.value.code == "protocol_mismatch" and caught.value.mend
        done = subprocess.run(
            [sys.executable, "-m", "ottoctl", "ps", "--endpoint", other.endpoint],
            env={**daemon.env, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 3 and "protocol" in done.stderr and "mend:" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("noise", [[b""], [b"M"], [b"M", b"\xc1"], [b"R\x00\x00\x00\x01", b"x"], [b"a", b"b", b"c"]])
def test_a_daemon_that_talks_nonsense(tmp_path: Path, noise: list[bytes]) -> None:
    """No hang and no defect: the client says that what is there is not the daemon that it knows."""
    with OtherDaemon(tmp_path / "x.sock", lambda _: noise) as other, pytest.raises(OttoError) as caught:
        SyncOtto.connect(other.endpoint, timeout_s=1)
    assert caught.value.code in ("bad_message", "unreachable")
