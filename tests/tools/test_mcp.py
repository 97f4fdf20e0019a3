from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ottod.core.server_life import ServerLife
from ottod.errors import ToolError
from ottod.isolation import bubblewrap, processes
from ottod.isolation.launch_config import NamedProgram
from ottod.protocol.specs import McpServer
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import Tool, ToolOutput
from ottod.tools.mcp_source import McpSource
from ottod.tools.shell import SHELL
from ottod.tools.source import open_all
from tests.fakes.session_place import SessionPlace, run
from tests.gateway.rig import reserved_port

pytest.importorskip("mcp", reason="needs the extra otto-daemon[mcp]")

ROGUE = Path(__file__).parents[1] / "fakes/mcp_rogue.py"
Work = Callable[["Rig", dict[str, Tool[Any]]], Awaitable[None]]


class Rig:
    """A session's place with one MCP server among its programs."""

    def __init__(self, base: Path, *, mode: str = "", network: bool = False, **server: Any) -> None:
        argv = (sys.executable, "-I", "mcp_rogue.py", *((mode,) if mode else ()))
        self.server = McpServer(name="rogue", command=argv, network=network, **server)
        named = NamedProgram(name="rogue", argv=argv, env={"SECRET": "its own"}, has_network=network)
        self.place = SessionPlace(base, named=(named,))
        shutil.copy(ROGUE, self.place.project)
        self.notices: list[tuple[str, str, str]] = []
        self.life = ServerLife()

    def source(self, *tools: str) -> McpSource:
        return McpSource(
            self.server,
            programs=self.place.programs,
            tools=tools,
            headers={},
            notice=lambda *words: self.notices.append(words),
            life=self.life,
        )

    def use(self, work: Work, *tools: str) -> None:
        """Opens the server, works with it, closes it, and looks for what it left."""

        async def whole() -> None:
            source = self.source(*tools)
            try:
                opened = await source.open()
                await work(self, {tool.name: tool for tool in opened})
            finally:
                await source.aclose()

        run(whole())
        assert self.place.leftovers() == []

    async def call(self, tool: Tool[Any], arguments: str = "{}", **limits: Any) -> ToolOutput:
        return await tool.run(decode_arguments(tool, arguments), self.place.context(**limits))

    async def say(self, tools: dict[str, Tool[Any]], name: str, text: str = "", **limits: Any) -> str:
        """What the server says; none of it is in words that count as the tool's own."""
        output = await self.call(tools[f"rogue__{name}"], f'{{"text": "{text}"}}', **limits)
        assert (output.text, output.untrusted_source) == ("", "the MCP server rogue")
        return output.untrusted


@contextmanager
def rig(base: Path, **server: Any) -> Iterator[Rig]:
    made = Rig(base, **server)
    try:
        yield made
    finally:
        made.place.close()
        assert processes.survivors(made.place.session) == []


async def until(what: str, probe: Callable[[], object], deadline_s: float = 30.0) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not probe():
        assert time.monotonic() < give_up_at, what
        await asyncio.sleep(0.02)


def test_a_servers_tools_are_the_agents(tmp_path: Path) -> None:
    """They are called SERVER__TOOL, with plain schemas; results are text, failures marked; hints are used."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        assert "rogue__echo" in tools and len(tools) == 12
        odd = next(tool for name, tool in tools.items() if name.startswith("rogue__files_at_"))
        assert odd.schema().parameters["properties"] == {
            "at": {"type": "object", "properties": {"x": {"type": "number"}}}
        }
        assert tools["rogue__echo"].idempotent and not tools["rogue__env"].idempotent
        assert tools["rogue__echo"].permissions == {"exec"}
        assert await rig.say(tools, "echo", "hello") == "hello"
        assert await rig.say(tools, "echo") == "(no output)"
        refused = await rig.call(tools["rogue__refuse"])
        assert refused.is_error and refused.untrusted == "no such ticket"
        big = await rig.call(tools["rogue__big"], '{"text": "100000"}', max_output_bytes=1000)
        assert big.truncated and len(big.untrusted) < 1100
        with pytest.raises(ToolError, match="invalid answer"):
            await rig.call(tools["rogue__wrong"])
        assert await rig.say(tools, "echo", "again") == "again"

    with rig(tmp_path) as made:
        made.use(work)


def test_only_the_server_has_its_variables(tmp_path: Path) -> None:
    """What a server is given by name, no other program of the session sees."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        assert await rig.say(tools, "env", "SECRET") == "its own"
        assert await rig.say(tools, "env", "OTTO_SESSION") == rig.place.session
        assert (await rig.call(SHELL, '{"command": "echo ${SECRET-none}"}')).text == "none"

    with rig(tmp_path) as made:
        made.use(work)


def test_an_agent_chooses_among_a_servers_tools(tmp_path: Path) -> None:
    """Names and patterns choose; include and exclude bound what there is; a name that is not there is said."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        assert sorted(tools) == ["rogue__echo", "rogue__pid"]
        assert [kind for _, kind, _ in rig.notices] == ["serving", "missing_tools"]

    with rig(tmp_path, include=("e*", "p*"), exclude=("env",)) as made:
        made.use(work, "shell", "rogue__e*", "rogue__pid", "rogue__crash")


def test_an_empty_include_offers_nothing(tmp_path: Path) -> None:
    """A list of what is allowed, and nothing on it, allows nothing."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        assert not tools

    with rig(tmp_path, include=()) as made:
        made.use(work)


def test_a_server_that_crashes_is_started_again(tmp_path: Path) -> None:
    """The call that was under way says so, what comes meanwhile says so, and then it works again; nothing is left."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        first = await rig.say(tools, "pid")
        with pytest.raises(ToolError, match=r"lost during the call \(signal 9 ended it\).*may or may not"):
            await rig.call(tools["rogue__crash"])
        with pytest.raises(ToolError, match="is being started again"):
            await rig.say(tools, "pid")
        await until("it serves again", lambda: [kind for _, kind, _ in rig.notices].count("serving") == 2)
        assert await rig.say(tools, "echo", "back") == "back"
        assert first  # In a sandbox both have the same number.

    with rig(tmp_path) as made:
        made.use(work)


def test_a_server_that_keeps_ending_is_given_up(tmp_path: Path) -> None:
    """After so many ends in a row nobody tries again, and its tools say that it is gone."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        await until("it is given up", lambda: rig.notices[-1][1] == "given_up")
        with pytest.raises(ToolError, match="is gone for this session: it ended with exit status 3"):
            await rig.say(tools, "echo", "x")

    with rig(tmp_path, mode="brief") as made:
        made.life = ServerLife(max_failures=2)
        made.use(work)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("die", "it ended with exit status 1: no configuration found"),
        ("mute", "it gave no answer within 3 s"),
        ("unlisted", "it gave no answer within 3 s"),
        ("endless", "it sent a message of more than"),
    ],
)
def test_a_server_that_does_not_come_up_costs_its_own_tools_only(tmp_path: Path, mode: str, message: str) -> None:
    """Dead, mute or endless: opening ends in time and says why; the session goes on; nothing is left of it."""
    # Who says nothing runs out of time whatever it is; the others must have come to say what they do.
    with rig(tmp_path, mode=mode, start_timeout_s=3.0 if mode in ("mute", "unlisted") else 8.0) as made:

        async def work() -> None:
            source, again = made.source(), made.source()

            async def fails() -> None:
                with pytest.raises(ToolError, match=message):
                    await source.open()

            try:
                opening = open_all([again], notice=lambda *words: made.notices.append(words))
                _, tools = await asyncio.gather(fails(), opening)
                await again.aclose()
                assert tools == {} and made.notices[-1][1] == "unavailable"
            finally:
                await source.aclose()

        run(work())
        assert made.place.leftovers() == []


@pytest.mark.parametrize(
    ("mode", "why"), [("asks", "65 times without hearing"), ("echoes", "twice under one number")]
)
def test_a_server_that_asks_and_does_not_listen_is_let_go(tmp_path: Path, mode: str, why: str) -> None:
    """Each question would be kept until it takes the answer."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        await until("it is given up", lambda: rig.notices[-1][1] == "given_up")
        assert why in rig.notices[-1][2]
        assert (await rig.call(SHELL, '{"command": "echo fine"}')).text == "fine"

    with rig(tmp_path, mode=mode) as made:
        made.life = ServerLife(max_failures=1)
        made.use(work)


@pytest.mark.parametrize("mode", ["chatter", "garbage"])
def test_noise_hurts_nobody(tmp_path: Path, mode: str) -> None:
    """A server that talks all the time, or prints what is no message, still answers, and others go on meanwhile."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        worst = 0.0

        async def tick() -> None:
            nonlocal worst
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - before)

        ticking = asyncio.ensure_future(tick())
        for _ in range(3):
            assert await rig.say(tools, "echo", "through the noise") == "through the noise"
        await rig.say(tools, "flood")
        assert (await rig.call(SHELL, '{"command": "echo fine"}')).text == "fine"
        ticking.cancel()
        # Not a measure of speed: a loop that a flood holds would not turn for the whole of it.
        assert worst < 5.0

    with rig(tmp_path, mode=mode) as made:
        made.use(work)


def test_a_call_that_stalls_ends_in_time(tmp_path: Path) -> None:
    """The time-out is the call's; the server, which is busy with it, is asked again and answers no more calls."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        with pytest.raises(ToolError, match=r"gave no answer within 0\.5 s"):
            await rig.call(tools["rogue__stall"], timeout_s=0.5)
        assert (await rig.call(SHELL, '{"command": "echo fine"}')).text == "fine"

    with rig(tmp_path) as made:
        made.use(work)


def test_what_a_server_starts_goes_with_it(tmp_path: Path) -> None:
    """A child in a session of its own does not outlive the server's connection."""

    async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
        assert int(await rig.say(tools, "child")) > 1

    with rig(tmp_path) as made:
        made.use(work)


@pytest.mark.skipif(not bubblewrap.find(), reason="bubblewrap is not installed")
@pytest.mark.parametrize("network", [False, True])
def test_a_server_has_the_network_only_if_granted(tmp_path: Path, network: bool) -> None:
    """The host's loopback can be reached by a server whose spec says so, and by no other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        async def work(rig: Rig, tools: dict[str, Tool[Any]]) -> None:
            said = await rig.say(tools, "reach", str(port))
            assert (said == "reached") is network, said
            shell = await rig.call(SHELL, f'{{"command": "exec 3<>/dev/tcp/127.0.0.1/{port} && echo in"}}')
            assert "in" not in shell.text.split()

        with rig(tmp_path, network=network) as made:
            made.use(work)


def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    """A session that is stopped while its servers start ends them."""
    with rig(tmp_path, mode="mute") as made:

        async def work() -> None:
            source = made.source()
            opening = asyncio.ensure_future(open_all([source], notice=lambda *words: None))
            await asyncio.sleep(0.5)
            opening.cancel()
            await asyncio.wait({opening})
            await source.aclose()

        run(work())
        assert made.place.leftovers() == []


# ---------------------------------------------------------------- servers made with the SDK

SDK_SERVER = '''
import sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")

@server.tool(description="Add two numbers.")
def add(a: int, b: int) -> int:
    return a + b

@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("no notes here")

if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run("stdio")
'''


def test_a_server_made_with_the_sdk_over_stdio(tmp_path: Path) -> None:
    """The real thing: typed tools, structured results, failures."""
    argv = (sys.executable, "-I", "notes.py")
    place = SessionPlace(tmp_path, named=(NamedProgram(name="notes", argv=argv),))
    (place.project / "notes.py").write_text(SDK_SERVER)
    source = McpSource(
        McpServer(name="notes", command=argv), programs=place.programs, tools=(), headers={}, notice=lambda *_: None
    )
    try:
        run(_exercise(source, place))
    finally:
        place.close()
    assert place.leftovers() == []


async def _exercise(source: McpSource, place: SessionPlace) -> None:
    try:
        tools = {tool.name: tool for tool in await source.open()}
        add = tools["notes__add"]
        assert add.schema().parameters["required"] == ["a", "b"]
        output = await add.run(decode_arguments(add, '{"a": 2, "b": 3}'), place.context())
        assert (output.untrusted, output.is_error) == ("5", False)
        failing = tools["notes__fail"]
        output = await failing.run(decode_arguments(failing, "{}"), place.context())
        assert output.is_error and "fail" in output.untrusted
    finally:
        await source.aclose()


class HttpServer:
    """The SDK's own server on loopback, in a process of its own."""

    def __init__(self, base: Path, port: int) -> None:
        import subprocess

        self.port = port
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        (base / "notes.py").write_text(SDK_SERVER)
        self._argv = [sys.executable, "-I", str(base / "notes.py"), str(self.port)]
        self._subprocess = subprocess
        self.start()

    def start(self) -> None:
        self.process = self._subprocess.Popen(
            self._argv, stdout=self._subprocess.DEVNULL, stderr=self._subprocess.DEVNULL
        )
        give_up_at = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < give_up_at and self.process.poll() is None
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_server_made_with_the_sdk_over_http(tmp_path: Path) -> None:
    """The same over streamable HTTP; when the server is gone calls say so, and when it is back they work again."""
    with reserved_port() as port:
        use_over_http(tmp_path, HttpServer(tmp_path, port))


def use_over_http(tmp_path: Path, server: HttpServer) -> None:
    place = SessionPlace(tmp_path)
    notices: list[str] = []
    source = McpSource(
        McpServer(name="notes", url=server.url),
        programs=place.programs,
        tools=(),
        headers={"X-Token": "t"},
        notice=lambda name, kind, message: notices.append(kind),
    )

    async def work() -> None:
        try:
            tools = {tool.name: tool for tool in await source.open()}
            add = tools["notes__add"]
            assert add.permissions == {"net"}

            async def sum_up() -> str:
                output = await add.run(decode_arguments(add, '{"a": 2, "b": 3}'), place.context(timeout_s=10))
                return output.untrusted

            assert await sum_up() == "5"
            await asyncio.to_thread(server.stop)
            try:
                assert await sum_up() != "5"
            except ToolError as error:
                assert "notes" in error.message
            await asyncio.to_thread(server.start)
            give_up_at = time.monotonic() + 60
            while True:
                try:
                    assert await sum_up() == "5"
                    break
                except ToolError:
                    assert time.monotonic() < give_up_at
                    await asyncio.sleep(0.2)
        finally:
            await source.aclose()

    try:
        run(work())
    finally:
        server.stop()
        place.close()


def answer_with(body: Callable[[socket.socket], None]) -> tuple[str, threading.Event]:
    """A server on loopback that gives every connection to `body`."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        listener.settimeout(0.1)
        with listener:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=_give, args=(body, connection), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", over


def _give(body: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with connection:
        try:
            connection.recv(65536)
            body(connection)
        except OSError:
            pass


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


def silent(connection: socket.socket) -> None:
    connection.recv(1 << 20)
    time.sleep(30)


def elsewhere(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 307 X\r\nLocation: http://localhost:9/mcp\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("body", [endless, silent, elsewhere])
def test_a_hostile_http_server_is_bounded(tmp_path: Path, body: Callable[[socket.socket], None]) -> None:
    """A body without end, no answer at all, or a way to another host: the start fails in its time."""
    url, over = answer_with(body)
    place = SessionPlace(tmp_path)
    source = McpSource(
        McpServer(name="far", url=url, start_timeout_s=4.0),
        programs=place.programs,
        tools=(),
        headers={},
        notice=lambda *_: None,
    )

    async def work() -> None:
        with pytest.raises(ToolError, match="far could not be started"):
            await source.open()
        await source.aclose()

    try:
        run(work())
    finally:
        over.set()
        place.close()
