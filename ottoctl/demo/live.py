"""The demonstration's view of the workflows that run: a tree that is drawn anew, or lines where there is no terminal.

It also is whoever is asked for permission, and says yes: what an agent may reach here is a copy of a project.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from ottoctl.client import Otto
from ottoctl.console import Console
from ottoctl.rendering.amounts import duration
from ottoctl.rendering.ansi import clip, one_line, paint
from ottoctl.rendering.steps import step_line
from ottoctl.rendering.tree import tree_table
from ottoctl.screen import Screen
from ottoctl.session import Session
from ottod.errors import RefusedError
from ottod.protocol.results import SessionInfo
from ottod.settings.units import plural

LOOK_S = 0.25
MAX_SESSIONS = 10_000
WRITTEN_WIDTH = 80


async def watch(console: Console, otto: Otto, sessions: dict[str, Session]) -> list[str]:
    """Shows the workflows, by name, until all have ended; gives what was approved on the way."""
    ids = {session.id for session in sessions.values()}
    asked = Permission(otto)
    on_screen = console.is_tty and console.output == "text"
    following = [] if on_screen else [asyncio.create_task(_follow(console, name, s)) for name, s in sessions.items()]
    begun_s = time.monotonic()
    try:
        with Screen() if on_screen else contextlib.nullcontext() as screen:
            while True:
                infos = await otto.list(all=True, limit=MAX_SESSIONS)
                await asked.give()
                if screen is not None:
                    screen.draw(picture(infos, asked.given, time.monotonic() - begun_s, screen.size, console.color))
                if all(info.state == "ended" for info in infos if info.session in ids):
                    break
                await asyncio.sleep(LOOK_S)
        await asyncio.gather(*following)
    finally:
        for task in following:
            task.cancel()
    if on_screen:
        console.write(tree_table(infos, now_ns=time.time_ns(), width=console.width, color=console.color))
    return asked.given


def picture(
    infos: Sequence[SessionInfo], given: Sequence[str], elapsed_s: float, size: tuple[int, int], color: bool
) -> str:
    """The tree as it fits: where lines are few, sessions that have ended give way, the oldest first."""
    columns, lines = size
    live = [info for info in infos if info.state != "ended" or not info.parent]
    ended = sorted((info for info in infos if info.state == "ended" and info.parent), key=lambda i: -i.created_at_ns)
    room = max(0, lines - 3 - len(given) - len(live))
    head = paint(f"{plural(len(infos), 'session')}, {duration(elapsed_s)}", "bold", color=color)
    shown = [*live, *ended[:room]]
    table = tree_table(shown, now_ns=time.time_ns(), width=columns, color=color)
    return "\n".join([head, *given, table])


class Permission:
    """Answers whoever asks, once."""

    def __init__(self, otto: Otto) -> None:
        self._otto = otto
        self.given: list[str] = []

    async def give(self) -> None:
        """Approves what waits."""
        for waiting in await self._otto.approvals():
            try:
                await self._otto.approve(waiting.approval.approval, reason="the demonstration agrees")
            except RefusedError:
                continue  # It went away meanwhile.
            what = one_line(", ".join(waiting.approval.claims) or waiting.approval.tool)
            written = _written(waiting.approval.diff)
            self.given.append(f"? {one_line(waiting.agent)} asked for permission and was given it: {what}{written}")


def _written(diff: str) -> str:
    """What a change puts in, in a few words."""
    lines = [line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    text = one_line(" ".join(lines))
    return f": {clip(text, WRITTEN_WIDTH)}" if text else ""


async def _follow(console: Console, name: str, session: Session) -> None:
    """A line for each event of a workflow."""
    async for event in session.events(session.from_offset):
        line = step_line(event.event)
        if line is not None:
            console.message(f"{name}  {paint(line[0], line[1], color=console.color_err)}")
