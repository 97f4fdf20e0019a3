"""How the MCP client reaches a server: a confined program's pipes, or one HTTP endpoint; both guarded.

What a server sends is a stranger's. A line or a body has a bound, what nobody asked for comes no faster than it can
be thrown away, and answers are checked by nobody's schema but ours: the server's own could hold a regular expression
that never ends.

The MCP SDK is imported here and in `mcp_server` only, and by nobody before a session has servers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import anyio
import httpx2
import mcp_types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from ottod.tools.base import LiveProgram

MAX_LINE_BYTES = 8 * 1024 * 1024
"""One message on a pipe."""
MAX_BODY_BYTES = 8 * 1024 * 1024
"""One JSON body over HTTP, and one event of a stream."""
MAX_BURST = 64
"""Messages taken without a rest."""
REST_S = 0.02
MAX_UNANSWERED = 64
"""Requests of a server that may wait for it to take our answers."""
MAX_ERROR_BYTES = 4096
"""Of a server's last words on its standard error."""
CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 300.0

Item = SessionMessage | Exception
Streams = tuple[Any, Any]
Loss = Callable[[str, str], None]
"""Hears why nothing more will come, and the server's own last words."""


def silence_sdk() -> None:
    """The SDK logs each strange message of a server; that is no news for the daemon's log."""
    log = logging.getLogger("mcp")
    log.addHandler(logging.NullHandler())
    log.propagate = False


class Unanswered:
    """The requests of a server that have no answer yet: the SDK keeps each of them, and a task for it."""

    def __init__(self) -> None:
        self._ids: set[mcp_types.RequestId] = set()

    def came(self, message: object) -> str:
        """A message of the server's. Why no more is heard of it; empty if all is well."""
        if isinstance(message, mcp_types.JSONRPCRequest):
            if message.id in self._ids:
                return "it asked twice under one number"
            self._ids.add(message.id)
            if len(self._ids) > MAX_UNANSWERED:
                return f"it asked {len(self._ids)} times without hearing the answers"
        elif isinstance(message, mcp_types.JSONRPCNotification) and message.method == "notifications/cancelled":
            number = (message.params or {}).get("requestId")
            if isinstance(number, str | int):
                self._ids.discard(number)
        return ""

    def went(self, message: object) -> None:
        """A message was taken to be sent."""
        if isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError) and message.id is not None:
            self._ids.discard(message.id)


class GuardedSink:
    """What the SDK writes to."""

    def __init__(self, inner: Any, unanswered: Unanswered) -> None:
        self._inner = inner
        self._unanswered = unanswered

    async def send(self, item: SessionMessage) -> None:
        """Returns when the transport has taken it."""
        await self._inner.send(item)
        self._unanswered.went(item.message)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> GuardedSink:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class GuardedStream:
    """What the SDK reads from, at a bounded pace. It ends, and says so, when a server asks and does not listen."""

    def __init__(self, inner: Any, unanswered: Unanswered, on_loss: Loss) -> None:
        self._inner = inner
        self._unanswered = unanswered
        self._on_loss = on_loss
        self._burst = 0
        self._burst_ends_s = 0.0

    @property
    def last_context(self) -> Any:
        """The SDK asks for it."""
        return getattr(self._inner, "last_context", None)

    async def receive(self) -> Item:
        """The next message. Raises anyio.EndOfStream at the end."""
        await self._pace()
        item: Item = await self._inner.receive()
        if isinstance(item, Exception):
            return item
        if why := self._unanswered.came(item.message):
            self._on_loss(why, "")
            raise anyio.EndOfStream
        return _without_output_schemas(item)

    async def _pace(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._burst_ends_s:
            self._burst, self._burst_ends_s = 0, now_s + REST_S
        self._burst += 1
        if self._burst > MAX_BURST:
            await asyncio.sleep(REST_S)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __aiter__(self) -> GuardedStream:
        return self

    async def __anext__(self) -> Item:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> GuardedStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _without_output_schemas(item: SessionMessage) -> SessionMessage:
    """A listing without the schemas that the SDK would hold results to."""
    message = item.message
    if isinstance(message, mcp_types.JSONRPCResponse) and isinstance(message.result, dict):
        tools = message.result.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            if isinstance(tool, dict):
                tool.pop("outputSchema", None)
    return item


# ---------------------------------------------------------------- a program's pipes


@asynccontextmanager
async def program_transport(
    start: Callable[[], Awaitable[LiveProgram]], *, on_loss: Loss
) -> AsyncGenerator[Streams, None]:
    """One message a line on a program's standard input and output. The program lives as long as the context.

    Raises ToolError if the program cannot be started.
    """
    program = await start()
    inbound, received = anyio.create_memory_object_stream[Item](0)
    outbound, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    said = ErrorTail()
    workers = [
        asyncio.create_task(_read_lines(program, inbound, said, on_loss)),
        asyncio.create_task(said.follow(program)),
        asyncio.create_task(_write_lines(program, to_send)),
    ]
    unanswered = Unanswered()
    try:
        yield GuardedStream(received, unanswered, on_loss), GuardedSink(outbound, unanswered)
    finally:
        for worker in workers:
            worker.cancel()
        try:
            await asyncio.wait(workers)
        finally:
            for stream in (inbound, received, outbound, to_send):
                stream.close()
            await program.aclose()


class ErrorTail:
    """The last words of a server on its standard error."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque(maxlen=4)

    async def follow(self, program: LiveProgram) -> None:
        """Reads until there is no more, so that the server never waits for it."""
        while data := await program.read_errors():
            self._pieces.append(data[-MAX_ERROR_BYTES:])
            await asyncio.sleep(0 if len(data) < MAX_ERROR_BYTES else REST_S)

    def line(self) -> str:
        """The last line that says something."""
        lines = b"".join(self._pieces).decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


async def _read_lines(program: LiveProgram, inbound: Any, said: ErrorTail, on_loss: Loss) -> None:
    reason = ""
    try:
        async for line in _lines(program):
            try:
                item: Item = SessionMessage(mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError as error:
                item = error
            await inbound.send(item)
        await program.wait_ended()
        await asyncio.sleep(0)  # What it said last may be on its way.
        status = program.exit_status
        reason = (
            f"it ended with exit status {status}" if status is None or status >= 0 else f"signal {-status} ended it"
        )
    except ValueError as error:
        reason = str(error)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # Nobody listens any more: the connection is being closed.
    on_loss(reason, said.line())
    inbound.close()


async def _lines(program: LiveProgram) -> AsyncIterator[bytes]:
    """The lines of its output. Raises ValueError for one without an end."""
    buffer = bytearray()
    while data := await program.read():
        *whole, rest = data.split(b"\n")
        for piece in whole:
            line = bytes(buffer + piece).strip()
            buffer.clear()
            if line:
                yield line
        buffer += rest
        if len(buffer) > MAX_LINE_BYTES:
            raise ValueError(f"it sent a message of more than {MAX_LINE_BYTES} bytes")


async def _write_lines(program: LiveProgram, to_send: Any) -> None:
    try:
        async for item in to_send:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            await program.write(text.encode() + b"\n")
    except OSError:
        pass  # It reads no more; its end, which follows, is what is told.


# ---------------------------------------------------------------- HTTP


@asynccontextmanager
async def http_transport(url: str, headers: dict[str, str], *, on_loss: Loss) -> AsyncGenerator[Streams, None]:
    """Streamable HTTP with one endpoint. The SDK follows no redirect to another host; no proxy is used."""
    timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=IDLE_TIMEOUT_S)
    headers = {**headers, "Accept-Encoding": "identity"}
    client = httpx2.AsyncClient(headers=headers, timeout=timeout, transport=BoundedBodies())
    async with (
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_BODY_BYTES) as (received, outbound),
    ):
        unanswered = Unanswered()
        yield GuardedStream(received, unanswered, on_loss), GuardedSink(outbound, unanswered)


class BoundedBodies(httpx2.AsyncHTTPTransport):
    """Ends a response whose body is longer than any message. A stream of events may be as long as it likes."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise httpx2.ReadError("the server sent a compressed body, which nobody asked for")
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedBody(response.stream)
        return response


class _BoundedBody(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_BODY_BYTES
        async for piece in self._inner:
            left -= len(piece)
            if left < 0:
                raise httpx2.ReadError(f"the server sent more than {MAX_BODY_BYTES} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()
