"""An MCP server as a source of tools: `SERVER__TOOL`, described by the server, believed by nobody.

What a server says of its tools and gives as results is untrusted: names are made to fit, schemas are plain and
bounded, texts are cut, and results say where they come from. That a tool only reads, or may be repeated, is the
server's word as well; it decides only what happens to a call whose result was lost with the worker.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from ottod.core.server_life import ServerLife
from ottod.errors import ToolError
from ottod.protocol.specs import McpServer
from ottod.protocol.toolio import Programs
from ottod.settings.tool_names import chosen, qualified, source_of
from ottod.tools.base import OpenArguments, Permission, Tool, ToolContext, ToolOutput
from ottod.tools.json_references import without_references
from ottod.tools.keep_whole import keep_whole
from ottod.tools.source import Notice

if TYPE_CHECKING:
    import mcp_types

    from ottod.tools.mcp_server import McpConnection
    from ottod.tools.mcp_transport import Loss, Streams

MAX_DESCRIPTION_CHARS = 4000


class McpSource:
    """One server. `tools` are the agent's own; without one of this server among them it may use all."""

    def __init__(
        self,
        server: McpServer,
        *,
        programs: Programs,
        tools: Sequence[str],
        headers: dict[str, str],
        notice: Notice,
        life: ServerLife | None = None,
    ) -> None:
        self._server = server
        self._life = life
        self._programs = programs
        self._patterns = [tool for tool in tools if source_of(tool) == server.name]
        self._headers = headers
        self._notice = notice
        self._connection: McpConnection | None = None

    @property
    def name(self) -> str:
        """The server's."""
        return self._server.name

    async def open(self) -> tuple[Tool[Any], ...]:
        """See `ToolSource.open`. The SDK is imported with the first server."""
        try:
            module = await asyncio.to_thread(importlib.import_module, "ottod.tools.mcp_server")
        except ImportError as error:
            message = f"MCP servers need the package mcp, which is not installed ({error.name})"
            raise ToolError(message, code="mcp_unavailable", mend="install otto-daemon[mcp]") from error
        connection: McpConnection = module.McpConnection(
            self._server, self._connect, notice=self._notice, life=self._life
        )
        self._connection = connection
        await connection.open()
        offered = [tool for tool in connection.tools if self._is_offered(tool.name)]
        tools: dict[str, Tool[Any]] = {}
        for tool in offered:
            made = self._tool(tool, connection)
            if not self._patterns or chosen(made.name, self._patterns):
                tools.setdefault(made.name, made)
        missing = [name for name in self._patterns if not set(name) & set("*?[") and name not in tools]
        if missing:
            self._notice(self.name, "missing_tools", f"{self.name} has no {', '.join(missing)}")
        return tuple(tools.values())

    async def aclose(self) -> None:
        """Ends the server."""
        if self._connection is not None:
            await self._connection.aclose()

    def _connect(self, on_loss: Loss) -> AbstractAsyncContextManager[Streams]:
        from ottod.tools.mcp_transport import http_transport, program_transport

        if self._server.url:
            return http_transport(self._server.url, self._headers, on_loss=on_loss)
        return program_transport(
            lambda: self._programs.start(named=self._server.name, has_input=True), on_loss=on_loss
        )

    def _is_offered(self, name: str) -> bool:
        server = self._server
        return (server.include is None or chosen(name, server.include)) and not chosen(name, server.exclude)

    def _tool(self, tool: mcp_types.Tool, connection: McpConnection) -> Tool[OpenArguments]:
        hints = tool.annotations
        is_harmless = hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
        permissions: frozenset[Permission] = frozenset({"net"} if self._server.url else {"exec"})
        if self._server.network:
            permissions |= {"net"}

        async def run(arguments: OpenArguments, context: ToolContext) -> ToolOutput:
            from ottod.tools.mcp_result import from_server, text_of
            from ottod.tools.mcp_server import CallRefused

            try:
                result = await connection.call(tool.name, arguments.values, timeout_s=context.timeout_s)
            except CallRefused as refused:
                text, is_error = str(refused), True
            else:
                text, is_error = text_of(result), bool(result.is_error)
            shown = await keep_whole(
                text, context, name=f"{self.name}-output.txt", room_bytes=context.max_output_bytes
            )
            return from_server(shown, server=self.name, is_error=is_error)

        return Tool(
            name=qualified(self.name, tool.name),
            description=(tool.description or tool.title or tool.name)[:MAX_DESCRIPTION_CHARS],
            arguments=OpenArguments,
            parameters=without_references(tool.input_schema),
            permissions=permissions,
            idempotent=is_harmless,
            run=run,
            timeout_s=self._server.call_timeout_s,
        )
