"""One script, played by any provider: the scripted one, or a real SDK against the wire server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pytest
import uvloop

from ottod.errors import ProviderError
from ottod.protocol.model import (
    AssistantMessage,
    Message,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    ResponseCompleted,
    ToolCall,
    ToolResult,
    ToolResults,
    ToolSchema,
    UserMessage,
)
from ottod.protocol.specs import ModelTarget
from ottod.providers.base import Provider
from ottod.providers.registry import build_provider
from tests.fakes.wire_app import KEY, Recorded
from tests.fakes.wire_server import WireServer

WIRE_KINDS = ("anthropic", "openai-responses", "openai-chat")
KINDS = ("scripted", *WIRE_KINDS)
DEADLINE_S = 60.0

TOOLS = (
    ToolSchema(
        name="fs_read",
        description="Read a file.",
        parameters={"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    ),
)

T = TypeVar("T")


class Rig(NamedTuple):
    """A provider, and the server behind it unless it is the scripted one."""

    kind: str
    provider: Provider
    target: ModelTarget
    server: WireServer | None

    def requests(self) -> list[Recorded]:
        """What the server was asked."""
        return self.server.requests if self.server else []


def target_of(kind: str, *, url: str = "", script: Path | str = "", **fields: Any) -> ModelTarget:
    """The resolved model of a kind."""
    adapter, _, api = kind.partition("-")
    base_url = "" if not url else url if adapter == "anthropic" else f"{url}/v1"
    named = {"provider": adapter, "adapter": adapter, "api": api or "responses", "base_url": base_url}
    return ModelTarget(**cast(Any, named | {"model": str(script) if kind == "scripted" else "m-1"} | fields))


@contextmanager
def rig(kind: str, directory: Path, script: str, *, key: str = KEY) -> Iterator[Rig]:
    """A provider of that kind that plays that script."""
    path = directory / "script.yml"
    path.write_text(script)
    if kind == "scripted":
        target = target_of(kind, script=path)
        yield Rig(kind, build_provider(target), target, None)
        return
    with WireServer(path) as server:
        target = target_of(kind, url=server.url)
        yield Rig(kind, build_provider(target, key), target, server)


def request(*messages: Message, **fields: Any) -> ModelRequest:
    """A request with a task, a system prompt and a tool."""
    said = messages or (UserMessage(text="Fix the bug."),)
    defaults: dict[str, Any] = {"model": "m-1", "system": "You fix bugs.", "tools": TOOLS}
    defaults |= {"timeout_s": 20.0, "idle_timeout_s": 10.0}
    return ModelRequest(messages=said, **(defaults | fields))


async def play(provider: Provider, asked: ModelRequest) -> tuple[list[ModelEvent], ModelResponse]:
    """The whole stream: its events without the last, and the response that the last one holds."""
    events: list[ModelEvent] = []
    async with aclosing(cast(Any, provider.stream(asked))) as stream:
        async for event in stream:
            events.append(event)
    last = events.pop()
    assert isinstance(last, ResponseCompleted), events
    return events, last.response


async def failure(provider: Provider, asked: ModelRequest) -> tuple[list[ModelEvent], ProviderError]:
    """What came before the call failed, and how it failed."""
    events: list[ModelEvent] = []
    with pytest.raises(ProviderError) as caught:
        async with aclosing(cast(Any, provider.stream(asked))) as stream:
            async for event in stream:
                events.append(event)
    return events, caught.value


def answered(response: ModelResponse, *texts: str) -> tuple[Message, ...]:
    """The response as the conversation's next message, and a result for each of its calls."""
    calls = [block for block in response.blocks if isinstance(block, ToolCall)]
    results = tuple(ToolResult(call=c.call, tool=c.tool, text=t) for c, t in zip(calls, texts, strict=True))
    return (AssistantMessage(blocks=response.blocks), *((ToolResults(results=results),) if results else ()))


def run(main: Callable[[Provider], Awaitable[T]], provider: Provider) -> T:
    """Runs a test, closes the provider, and insists that neither a task nor a socket is left."""

    async def whole() -> T:
        before = _sockets()
        try:
            return await main(provider)
        finally:
            await provider.aclose()
            # An SDK leaves it to the loop to close the generators below its own, each in a task of a moment.
            await until(lambda: not _others(), _others)
            # The server shares this process and needs a moment to see that its peer has gone.
            await until(lambda: _sockets() <= before)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())


async def until(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    """Waits until the condition holds; fails with `what` there is at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true: {what()}"
        await asyncio.sleep(0.005)


def _others() -> set[asyncio.Task[Any]]:
    """What runs on this loop beside the caller."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _sockets() -> int:
    """Only sockets count: an event loop opens other descriptors when it first needs them."""
    return sum(_link(fd).startswith("socket:") for fd in os.listdir("/proc/self/fd"))


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""
