"""The gateway's connection to root: hello, questions with answers, and knowing quickly that nobody is there.

ZeroMQ connects anew by itself and keeps nothing for a peer that is gone. What it does not tell is whether root still
answers, so the link pings. While root is away every question fails at once; a hello goes out at growing intervals
until somebody answers it. A root that has restarted is a new *instance*, with a new token.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import zmq

from ottod import __version__
from ottod.errors import RefusedError, RemoteProtocolError, UnreachableError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import (
    KIND_MESSAGE,
    ClientMessage,
    Hello,
    Rejected,
    Reply,
    Request,
    Welcome,
    client_messages,
    server_messages,
)
from ottod.protocol.requests import GetMetrics, Ping
from ottod.protocol.results import MetricsReport, Result
from ottod.transport.socket import Socket, connect_dealer

QUEUE_MESSAGES = 64
MAX_PENDING = 32
"""Questions that may wait for their answers at once."""
ANSWER_S = 2.0
"""Root answers within this, or is away. Far below the ten seconds that a scrape may take."""
PING_S = 1.0
HELLO_S = 0.05
HELLO_MAX_S = 1.0
"""Between two hellos to a root that is away; the interval doubles up to this."""
MAX_TOKEN_CHARS = 256


class RootLink:
    """One connection, for as long as the gateway lives. Used on one loop.

    `on_welcome` hears of each welcome, `on_mismatch` of a root that speaks another protocol.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        endpoint: str,
        token_file: Path,
        on_welcome: Callable[[Welcome], None] = lambda welcome: None,
        on_mismatch: Callable[[str], None] = lambda why: None,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._loop = loop
        self._token_file = token_file
        self._on_welcome = on_welcome
        self._on_mismatch = on_mismatch
        self._answer_s = answer_s
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        self._next_id = 1
        self._is_present = False
        self._why_away = "root has not answered yet"
        self._heard_s = loop.time()
        self._hello_s = HELLO_S
        self._pings: set[asyncio.Task[None]] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        raw = connect_dealer(self._context, endpoint, queue_messages=QUEUE_MESSAGES)
        self._socket = Socket(raw, loop=loop, on_message=self._handle)
        self._timer = loop.call_soon(self._tick)

    @property
    def is_present(self) -> bool:
        """Whether root answered the last thing that it was asked."""
        return self._is_present

    @property
    def silence_s(self) -> float:
        """How long nothing has been heard from root."""
        return self._loop.time() - self._heard_s

    async def metrics(self) -> MetricsReport:
        """Root's metrics. Raises UnreachableError when root is away, RefusedError when it has none."""
        result = await self._ask(GetMetrics())
        if not isinstance(result, MetricsReport):
            raise RefusedError(f"root answered with {type(result).__name__} instead of metrics")
        return result

    async def ping(self) -> None:
        """Returns if root answers. Raises UnreachableError, RefusedError."""
        await self._ask(Ping())

    async def _ask(self, body: GetMetrics | Ping) -> Result | None:
        if not self._is_present:
            raise UnreachableError(self._why_away)
        if len(self._pending) >= MAX_PENDING:
            raise RefusedError(f"{MAX_PENDING} questions wait for root already", code="too_many_requests")
        number, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[number] = future
        try:
            if not self._send(Request(id=number, body=body)):
                del self._pending[number]
                raise UnreachableError(self._lose("root is gone"))
            async with asyncio.timeout(self._answer_s):
                reply = await future
        except TimeoutError:
            raise UnreachableError(self._lose(f"root did not answer within {self._answer_s:g} s")) from None
        finally:
            self._pending.pop(number, None)
        if reply.failure is not None:
            raise RefusedError(reply.failure.message, code=reply.failure.code, mend=reply.failure.mend)
        return reply.result

    # ------------------------------------------------------------ in

    def _handle(self, frames: list[bytes]) -> None:
        if len(frames) != 2 or frames[0] != KIND_MESSAGE:
            return
        try:
            message = server_messages.decode(frames[1])
        except RemoteProtocolError:
            return  # A newer root says things that this gateway did not ask for.
        self._heard_s = self._loop.time()
        match message:
            case Welcome():
                self._is_present = True
                self._hello_s = HELLO_S
                self._on_welcome(message)
            case Rejected():
                self._lose(message.failure.message)
                if message.failure.code == "protocol_mismatch":
                    self._on_mismatch(message.failure.message)
            case Reply():
                self._replied(message)

    def _replied(self, reply: Reply) -> None:
        future = self._pending.get(reply.id)
        if reply.failure is not None and reply.failure.code == "hello_required":
            # A new root, or one that has forgotten this client.
            self._lose("root has restarted")
            self._tick()
        elif future is not None and not future.done():
            future.set_result(reply)

    def _lose(self, why: str) -> str:
        """Root is away: what waits for it fails now. Gives the reason."""
        self._is_present = False
        self._why_away = why
        for future in self._pending.values():
            if not future.done():
                future.set_exception(UnreachableError(why))
        return why

    # ------------------------------------------------------------ out

    def _send(self, message: ClientMessage) -> bool:
        return not self._socket.is_closed and self._socket.send([client_messages.encode(message)])

    def _tick(self) -> None:
        """Says hello to a root that is away, and pings one that is there."""
        self._timer.cancel()
        if self._is_present:
            if not self._pings:
                task = self._loop.create_task(self._check())
                self._pings.add(task)
                task.add_done_callback(self._pings.discard)
            self._timer = self._loop.call_later(PING_S, self._tick)
            return
        self._send(
            Hello(
                protocol=PROTOCOL_VERSION,
                client="gateway",
                version=__version__,
                pid=os.getpid(),
                token=self._read_token(),
            )
        )
        self._timer = self._loop.call_later(self._hello_s, self._tick)
        self._hello_s = min(HELLO_MAX_S, self._hello_s * 2)

    async def _check(self) -> None:
        try:
            await self.ping()
        except (UnreachableError, RefusedError):
            pass  # It is noted; the next tick says hello.

    def _read_token(self) -> str:
        """Root's token; empty while there is none. A file of one line in the page cache: no wait worth a thread."""
        try:
            with open(self._token_file, encoding="ascii", errors="replace") as file:
                return file.read(MAX_TOKEN_CHARS).strip()
        except OSError:
            return ""

    async def close(self) -> None:
        """Closes the connection; whoever still waits is told."""
        self._timer.cancel()
        self._lose("the gateway stops")
        if self._pings:
            await asyncio.wait(self._pings)
        self._socket.close()
        self._context.term()
