"""Servers that others wrote, from the npm registry: `make mcp-peer` installs them and runs this."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ottod.isolation.launch_config import NamedProgram
from ottod.protocol.specs import McpServer
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import Tool
from ottod.tools.mcp_source import McpSource
from tests.fakes.session_place import SessionPlace, run

pytest.importorskip("mcp", reason="needs the extra otto-daemon[mcp]")

PEERS = Path(os.environ.get("MCP_PEERS", Path(__file__).parents[2] / "build/mcp-peer")) / "node_modules"
NODE = shutil.which("node") or ""
pytestmark = pytest.mark.skipif(
    not NODE or not PEERS.is_dir(), reason="no node, or no servers from npm: `make mcp-peer` installs them"
)


def opened(base: Path, package: str, *arguments: str) -> tuple[SessionPlace, McpSource]:
    """A server of that package as a program of a session that may read where it is installed."""
    argv = (NODE, str(PEERS / "@modelcontextprotocol" / package / "dist/index.js"), *arguments)
    place = SessionPlace(base, named=(NamedProgram(name="peer", argv=argv),), read_paths=(str(PEERS),))
    server = McpServer(name="peer", command=argv)
    source = McpSource(server, programs=place.programs, tools=(), headers={}, notice=lambda *_: None)
    return place, source


async def call(place: SessionPlace, tools: dict[str, Tool[Any]], name: str, **arguments: Any) -> Any:
    tool = tools[f"peer__{name}"]
    return await tool.run(decode_arguments(tool, json.dumps(arguments)), place.context())


def test_the_server_that_has_everything(tmp_path: Path) -> None:
    """The protocol's own showcase: its tools are listed with plain schemas, and answer in text, images and errors."""
    place, source = opened(tmp_path, "server-everything", "stdio")

    async def work() -> None:
        try:
            tools = {tool.name: tool for tool in await source.open()}
            assert {"peer__echo", "peer__get-sum"} <= set(tools), sorted(tools)
            assert all("$ref" not in json.dumps(tool.schema().parameters) for tool in tools.values())
            assert (await call(place, tools, "echo", message="hello")).untrusted == "Echo: hello"
            assert "5" in (await call(place, tools, "get-sum", a=2, b=3)).untrusted
            assert "image/png" in (await call(place, tools, "get-tiny-image")).untrusted
            assert (await call(place, tools, "get-sum", a="two", b=3)).is_error
        finally:
            await source.aclose()

    try:
        run(work())
    finally:
        place.close()
    assert place.leftovers() == []


def test_the_server_for_files_sees_what_the_session_sees(tmp_path: Path) -> None:
    """It may offer whatever it likes: the sandbox, not the server, says which files there are."""
    place, source = opened(tmp_path, "server-filesystem", str(tmp_path))
    (place.project / "inside.txt").write_text("inside\n")

    async def work() -> None:
        try:
            tools = {tool.name: tool for tool in await source.open()}
            inside = await call(place, tools, "read_text_file", path=str(place.project / "inside.txt"))
            assert inside.untrusted.strip() == "inside" and not inside.is_error
            outside = await call(place, tools, "read_text_file", path=str(place.outside / "secret.txt"))
            assert outside.is_error and "the secret" not in outside.untrusted
        finally:
            await source.aclose()

    try:
        run(work())
    finally:
        place.close()
    assert place.leftovers() == []
