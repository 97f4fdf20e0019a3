"""One MCP server and the connection to it, kept alive: started, greeted, asked for its tools, started again.

    starting ──listed──> serving ──lost──> pausing ──> starting …      after too many failures in a row: given_up

The connection belongs to one task, because the SDK's contexts must be left by the task that entered them. Calls come
from other tasks; one that is under way when the connection is lost fails, and so does one that comes while there is
none: nobody waits for a server that may never come back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, TypeVar

import mcp_types
from mcp import Client
from mcp.shared.exceptions import MCPError

from ottod.core.server_life import ServerLife
from ottod.errors import ToolError
from ottod.protocol.specs import McpServer
from ottod.settings.units import plural
from ottod.tools.mcp_transport import Loss, Streams, silence_sdk
from ottod.tools.source import Notice

MAX_TOOLS = 500
MAX_PAGES = 100
CLOSE_TIMEOUT_S = 15.0
"""For a connection to be left in order: more than a program takes to be ended."""
MAX_REASON_CHARS = 500
GONE = {
    "Session terminated": "it does not know this session any more",
    "Connection closed": "the connection was closed",
}
"""How the SDK says that an HTTP server is not there any more, or does not know us."""

T = TypeVar("T")
State = Literal["starting", "serving", "pausing", "given_up", "closed"]
Connect = Callable[[Loss], AbstractAsyncContextManager[Streams]]


class CallRefused(Exception):
    """The server answered with an error, in its own words."""


class McpConnection:
    """`connect` makes a transport; it is told whom to tell of a loss that the SDK would not notice."""

    def __init__(
        self, server: McpServer, connect: Connect, *, notice: Notice, life: ServerLife | None = None
    ) -> None:
        self._server = server
        self._connect = connect
        self._notice = notice
        self._life = life or ServerLife()
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._lost: asyncio.Future[str] | None = None
        self._settled = asyncio.Event()
        self._reason = ""
        self._said = ""
        self.state: State = "starting"
        self.tools: tuple[mcp_types.Tool, ...] = ()
        """As they were listed when it was opened."""

    async def open(self) -> None:
        """Returns once it serves. Raises ToolError if it does not within its time; then nobody tries any more."""
        silence_sdk()
        self._task = asyncio.get_running_loop().create_task(self._keep())
        try:
            async with asyncio.timeout(self._server.start_timeout_s):
                await self._settled.wait()
        except TimeoutError:
            self._reason = self._reason or f"it gave no answer within {self._server.start_timeout_s:g} s"
        if self.state != "serving":
            reason = self._said_reason()
            await self.aclose()
            raise ToolError(f"MCP server {self._server.name} could not be started: {reason}", code="mcp_unavailable")

    async def call(self, tool: str, arguments: dict[str, Any], *, timeout_s: float) -> mcp_types.CallToolResult:
        """One call. Raises ToolError in words that the model can act upon."""
        client, lost = self._client, self._lost
        if client is None or lost is None or lost.done():
            raise self._unavailable()
        call = asyncio.ensure_future(client.call_tool(tool, arguments))
        either: set[asyncio.Future[Any]] = {call, lost}
        try:
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
        except MCPError as error:
            if error.message in GONE and not lost.done():
                self._reason = GONE[error.message]
                lost.set_result(self._reason)
            if not lost.done() and client is self._client:
                raise CallRefused(error.message) from error
        except Exception as error:
            # Its answer was no such answer as the protocol knows.
            raise ToolError(f"MCP server {self._server.name} gave an invalid answer", code="mcp_error") from error
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call}, timeout=CLOSE_TIMEOUT_S)
        if lost.done() or client is not self._client:
            why = lost.result() if lost.done() and not lost.cancelled() else self._reason or "the connection was lost"
            raise ToolError(
                f"MCP server {self._server.name} was lost during the call ({why}); the call may or may not have had "
                "its effect",
                code="mcp_lost",
            )
        raise ToolError(f"{self._server.name} gave no answer within {timeout_s:g} s", code="timeout")

    def _unavailable(self) -> ToolError:
        name = self._server.name
        if self.state == "given_up":
            text = f"MCP server {name} is gone for this session: {self._reason}"
        else:
            text = f"MCP server {name} is being started again ({self._reason or 'it was lost'}); try again later"
        return ToolError(text, code="mcp_unavailable")

    def _said_reason(self) -> str:
        """Why it does not serve, with its own last words: for people. A model gets no strange words unmarked."""
        return f"{self._reason}: {self._said}" if self._said else self._reason

    async def aclose(self) -> None:
        """Ends the server. Twice is harmless."""
        self.state = "closed"
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=2 * CLOSE_TIMEOUT_S)

    # ------------------------------------------------------------ the connection's own task

    async def _keep(self) -> None:
        while True:
            served_ns = await self._serve()
            pause_s = self._life.ended(served_ns=served_ns, random=random.random())
            if pause_s is None:
                self._move("given_up", f"{self._said_reason()}; it is not tried again")
                self._settled.set()
                return
            self._move("pausing", self._said_reason())
            await asyncio.sleep(pause_s)
            self.state = "starting"

    async def _serve(self) -> int:
        """One connection, from its start to its end. How many nanoseconds it served; `_reason` says why no longer."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        began_ns = 0

        def on_loss(reason: str, said: str = "") -> None:
            if not lost.done():
                lost.set_result(reason[:MAX_REASON_CHARS])
                self._reason, self._said = lost.result(), said[:MAX_REASON_CHARS]

        try:
            async with asyncio.timeout(self._server.start_timeout_s) as limit:
                async with Client(_Transport(self._connect(on_loss)), cache=None) as client:
                    tools = await _unless_lost(_list_tools(client), lost)
                    if tools is not None:
                        limit.reschedule(None)
                        began_ns = time.monotonic_ns()
                        self._serves(client, lost, tools)
                    await asyncio.wait({lost})
        except TimeoutError:
            on_loss(f"it gave no answer within {self._server.start_timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever a server does to the SDK is that server's end, and no more
            # How a program ended says more than that its answer did not come.
            on_loss("the connection failed", first_line(error))
        finally:
            self._client = None
            on_loss("the session ends")
        return time.monotonic_ns() - began_ns if began_ns else 0

    def _serves(self, client: Client, lost: asyncio.Future[str], tools: tuple[mcp_types.Tool, ...]) -> None:
        is_first = not self._settled.is_set()
        if is_first:
            self.tools = tools
        self._client, self._lost = client, lost
        changed = "" if {t.name for t in tools} == {t.name for t in self.tools} else ", with other tools than before"
        self._move("serving", plural(len(tools), "tool") + changed)
        self._settled.set()

    def _move(self, state: State, message: str) -> None:
        if self.state != "closed":
            self.state = state
            self._notice(self._server.name, state, message)


class _Transport:
    """A context manager by another name: the SDK tells transports from servers by type."""

    def __init__(self, inner: AbstractAsyncContextManager[Streams]) -> None:
        self._inner = inner

    async def __aenter__(self) -> Streams:
        return await self._inner.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._inner.__aexit__(*error)


async def _unless_lost(work: Coroutine[Any, Any, T], lost: asyncio.Future[str]) -> T | None:
    """The work's result; None if the connection was lost before. Raises what the work raises."""
    task = asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {task, lost}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return None if lost.done() else task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Nobody may be left to look at it.


async def _list_tools(client: Client) -> tuple[mcp_types.Tool, ...]:
    """All pages, within bounds."""
    tools: list[mcp_types.Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor or len(tools) >= MAX_TOOLS:
            break
    return tuple(tools[:MAX_TOOLS])


def first_line(error: BaseException) -> str:
    """The innermost of grouped errors, in one line."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
