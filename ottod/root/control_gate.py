"""The control socket: the public protocol, as root answers it.

A client is an identity that has said hello. Whatever bytes arrive, the worst that a client gets is an error and
the worst that root suffers is the time to decode it. Requests that take time run as tasks, bounded per client;
their replies are values, a failure included.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine
from typing import cast

import msgspec

from ottod import __version__
from ottod.errors import Failure, OttoError, RemoteProtocolError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import (
    KIND_MESSAGE,
    KIND_RECORDS,
    GapNotice,
    Grant,
    Hello,
    Rejected,
    Reply,
    Request,
    ServerMessage,
    SubscriptionEnded,
    Welcome,
    client_messages,
    server_messages,
)
from ottod.protocol.requests import RequestBody
from ottod.protocol.results import Result
from ottod.root.hub import Hub
from ottod.transport.socket import Outcome, Socket

CLIENT_SILENCE_S = 60.0
"""A client that has said nothing for this long is forgotten, with its subscriptions."""
MAX_PENDING = 256
"""Requests of one client that may be in work at once."""
SWEEP_S = 5.0
MAX_NAME_CHARS = 100
"""Of a client's name for itself, where it goes on record."""

Serve = Callable[[bytes, RequestBody], Coroutine[object, object, Result]]


class Client:
    """A connection that has said hello."""

    __slots__ = ("hello", "identity", "last_heard_s", "pending")

    def __init__(self, identity: bytes, hello: Hello, now_s: float) -> None:
        self.identity = identity
        self.hello = hello
        self.last_heard_s = now_s
        self.pending: set[asyncio.Task[None]] = set()


class ControlGate:
    """Root's end of all clients."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hub: Hub,
        serve: Serve,
        *,
        instance: str,
        pid: int,
        token: str,
        max_clients: int,
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._hub = hub
        self._serve = serve
        self._instance = instance
        self._pid = pid
        self._token = token.encode()
        self._max_clients = max_clients
        self._log = log
        self._socket: Socket | None = None
        self._clients: dict[bytes, Client] = {}
        self.bad_messages = 0
        self._sweep_handle = loop.call_later(SWEEP_S, self._sweep)

    def attach(self, socket: Socket) -> None:
        self._socket = socket
        self._hub.attach(self._send_records, self._send_notice)

    @property
    def client_count(self) -> int:
        return len(self._clients)

    def name_of(self, identity: bytes) -> str:
        """What a client calls itself, for the record: `ottoctl (pid 4711)`. Nobody has checked it."""
        client = self._clients.get(identity)
        if client is None:
            return ""
        hello = client.hello
        return (hello.client[:MAX_NAME_CHARS] or "a client") + (f" (pid {hello.pid})" if hello.pid else "")

    # ------------------------------------------------------------ incoming

    def handle(self, frames: list[bytes]) -> None:
        """One message from the ROUTER. Never raises for what a client sent."""
        identity = frames[0]
        try:
            if len(frames) != 2:
                raise RemoteProtocolError(f"a message of {len(frames) - 1} frames; one was expected")
            message = client_messages.decode(frames[1])
        except RemoteProtocolError as error:
            self.bad_messages += 1
            self._send(identity, Rejected(failure=error.failure(), protocol=PROTOCOL_VERSION))
            return
        if isinstance(message, Hello):
            self._hello(identity, message)
            return
        client = self._clients.get(identity)
        if client is None:
            failure = Failure(code="hello_required", message="say hello first", retryable=True)
            if isinstance(message, Request):
                self._send(identity, Reply(id=message.id, failure=failure))
            else:
                self._send(identity, Rejected(failure=failure, protocol=PROTOCOL_VERSION))
            return
        client.last_heard_s = self._loop.time()
        match message:
            case Grant():
                self._hub.grant(identity, message.subscription, message.bytes)
            case Request():
                self._request(client, message)

    def _hello(self, identity: bytes, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            failure = Failure(
                code="protocol_mismatch",
                message=f"the client speaks protocol {hello.protocol} (version {hello.version or 'unknown'}), "
                f"the daemon speaks {PROTOCOL_VERSION} (version {__version__})",
                mend="use an ottoctl of the daemon's version, or restart the daemon after an upgrade",
            )
            self._send(identity, Rejected(failure=failure, protocol=PROTOCOL_VERSION))
            return
        if not hmac.compare_digest(hello.token.encode("utf-8", "replace"), self._token):
            failure = Failure(
                code="bad_token",
                message="the client does not know this daemon's token",
                mend="use an ottoctl of the daemon's version, as the user that runs it; a sandboxed tool may not",
            )
            self._send(identity, Rejected(failure=failure, protocol=PROTOCOL_VERSION))
            return
        if identity not in self._clients and len(self._clients) >= self._max_clients and not self._make_room():
            failure = Failure(code="too_many_clients", message=f"{self._max_clients} clients are connected already")
            self._send(identity, Rejected(failure=failure, protocol=PROTOCOL_VERSION))
            return
        if identity not in self._clients:
            self._clients[identity] = Client(identity, hello, self._loop.time())
        self._send(
            identity,
            Welcome(protocol=PROTOCOL_VERSION, version=__version__, instance=self._instance, pid=self._pid),
        )

    def _make_room(self) -> bool:
        """Forgets the client that has been silent longest, if it waits for nothing; short commands leave many."""
        idle = [c for c in self._clients.values() if not c.pending and not self._hub.has_subscriptions(c.identity)]
        if not idle:
            return False
        self._forget(min(idle, key=lambda c: c.last_heard_s).identity)
        return True

    def _request(self, client: Client, request: Request) -> None:
        if len(client.pending) >= MAX_PENDING:
            failure = Failure(
                code="too_many_requests",
                message=f"{MAX_PENDING} requests of this client are in work already",
                retryable=True,
                mend="wait for some of the answers",
            )
            self._send(client.identity, Reply(id=request.id, failure=failure))
            return
        task = self._loop.create_task(self._carry_out(client, request))
        client.pending.add(task)
        task.add_done_callback(client.pending.discard)

    async def _carry_out(self, client: Client, request: Request) -> None:
        reply = await self._answer(client, request)
        # Before the reply, which a quick client answers with its next request.
        client.pending.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            self._send(client.identity, reply)
        except (UnicodeEncodeError, msgspec.MsgspecError) as error:
            text = f"the answer cannot be put into a message: {error}"
            self._send(client.identity, Reply(id=request.id, failure=Failure(code="internal", message=text)))

    async def _answer(self, client: Client, request: Request) -> Reply:
        try:
            return Reply(id=request.id, result=await self._serve(client.identity, request.body))
        except OttoError as error:
            return Reply(id=request.id, failure=error.failure())
        except Exception as error:  # noqa: BLE001 - a defect in one handler must not take the daemon down
            self._loop.call_exception_handler({"message": "request failed", "exception": error})
            failure = Failure(code="internal", message=f"internal error: {error!r}", mend="see the daemon's log")
            return Reply(id=request.id, failure=failure)

    # ------------------------------------------------------------ outgoing

    def _send(self, identity: bytes, message: ServerMessage) -> None:
        """Sends a message. A client that is gone, or that does not read its replies, is forgotten."""
        assert self._socket is not None
        if not self._socket.send([identity, KIND_MESSAGE, server_messages.encode(message)]):
            self._forget(identity)

    def _send_notice(self, identity: bytes, message: GapNotice | SubscriptionEnded) -> Outcome:
        assert self._socket is not None
        outcome = self._socket.try_send([identity, KIND_MESSAGE, server_messages.encode(message)])
        return self._note_outcome(identity, outcome)

    def _send_records(self, identity: bytes, subscription: int, parts: list[bytes | memoryview]) -> Outcome:
        assert self._socket is not None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        outcome = self._socket.try_send([identity, KIND_RECORDS + subscription.to_bytes(4, "big"), body])
        return self._note_outcome(identity, outcome)

    def _note_outcome(self, identity: bytes, outcome: Outcome) -> Outcome:
        if outcome == "gone":
            self._forget(identity)
        return outcome

    def _forget(self, identity: bytes) -> None:
        client = self._clients.pop(identity, None)
        if client is None:
            return
        self._hub.drop_client(identity)
        for task in list(client.pending):
            # A start that is under way goes on: the client may ask for it again by its key.
            if task.get_name() == "wait":
                task.cancel()

    def _sweep(self) -> None:
        silent = self._loop.time() - CLIENT_SILENCE_S
        for client in list(self._clients.values()):
            # One that still waits for something is no exception: living ones ping while they wait, and dead ones
            # would otherwise fill the table for as long as the sessions last that they waited for.
            if client.last_heard_s < silent:
                self._forget(client.identity)
        self._sweep_handle = self._loop.call_later(SWEEP_S, self._sweep)

    def close(self, *, is_final: bool = True) -> None:
        """Lets what is queued leave, and closes. Subscribers are told if that is final; otherwise another root
        follows, and they go on with that one from where they are."""
        self._sweep_handle.cancel()
        if is_final:
            self._hub.end_all("daemon_stop")
        for client in self._clients.values():
            for task in client.pending:
                task.cancel()
        if self._socket is not None:
            self._socket.close(linger_ms=500)
