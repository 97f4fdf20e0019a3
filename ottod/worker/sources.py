"""The tools of a session that are not built in: its MCP servers and its Python files, and what is told of them."""

from __future__ import annotations

from ottod.isolation.programs import ConfinedPrograms
from ottod.protocol.birth import Birth
from ottod.protocol.events import LogWarning, ProviderNotice
from ottod.tools.mcp_source import McpSource
from ottod.tools.python_source import PythonSource
from ottod.tools.source import Notice, ToolSource
from ottod.worker.link import Link
from ottod.worker.text import cut

MAX_NOTICE_BYTES = 1000
BAD_NEWS = frozenset({"unavailable", "pausing", "given_up", "missing_tools"})


def sources_for(birth: Birth, programs: ConfinedPrograms, notice: Notice) -> tuple[ToolSource, ...]:
    """The session's sources, none of them opened yet."""
    servers = (
        McpSource(
            server,
            programs=programs,
            tools=birth.spec.tools,
            headers=birth.server_headers.get(server.name, server.headers),
            notice=notice,
        )
        for server in birth.spec.mcp_servers
    )
    return (*servers, *(PythonSource(file, programs=programs) for file in birth.tool_files))


def notices(link: Link) -> Notice:
    """Tells watchers what becomes of a source."""

    def notice(name: str, kind: str, message: str) -> None:
        text = cut(message, MAX_NOTICE_BYTES)[0]
        if kind in BAD_NEWS:
            link.emit(LogWarning(message=f"MCP server {name} ({kind}): {text}", code="mcp"))
        else:
            link.emit(ProviderNotice(provider=f"mcp:{name}", kind=kind, message=text))

    return notice
