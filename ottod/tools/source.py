"""Where a session's tools come from when they are not built in: MCP servers, and Python files.

A source is opened once, before the session's first turn, and its tools stay what they were then as long as the
process lives: they are part of every request to the model, and a list that changed would void the provider's cache of
the whole conversation. What happens to a source later, a server that dies or says that its list has changed, shows in
the results of its tools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ottod.errors import ToolError
from ottod.tools.base import Tool

Notice = Callable[[str, str, str], None]
"""Tells watchers what became of a source: its name, one word, and a line for people."""


class ToolSource(Protocol):
    """Gives a session tools of its own."""

    @property
    def name(self) -> str:
        """What the names of its tools begin with, before `__`."""
        ...

    async def open(self) -> tuple[Tool[Any], ...]:
        """Its tools, within a bounded time.

        Raises ToolError if it has none to give, and the session goes on without them; ConfigError for a mistake of
        the user's, which ends it.
        """
        ...

    async def aclose(self) -> None:
        """Ends what it runs. Also after an `open` that failed or was cancelled; twice is harmless."""
        ...


async def open_all(sources: Sequence[ToolSource], *, notice: Notice) -> dict[str, Tool[Any]]:
    """The tools of all sources by name, in their order. A source that fails costs its own tools only.

    Raises ConfigError. A cancellation, or an error, leaves them to be closed.
    """
    opening = [asyncio.ensure_future(source.open()) for source in sources]
    try:
        if opening:
            await asyncio.wait(opening)
    finally:
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.wait(opening)
    tools: dict[str, Tool[Any]] = {}
    for source, task in zip(sources, opening, strict=True):
        try:
            found = task.result()
        except ToolError as error:
            notice(source.name, "unavailable", f"{source.name}: {error.message}")
            continue
        tools.update((tool.name, tool) for tool in found)
    return tools
