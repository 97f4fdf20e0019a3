"""`ottoctl logs`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command
from ottoctl.console import Console


@command
def logs(
    console: Console,
    id: SessionId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the session ends")] = False,
    start: Annotated[int, typer.Option("--from", min=0, metavar="OFFSET", help="Only from this offset on")] = 0,
) -> int | None:
    """Show what a session said and did, for people to read

    Example: `ottoctl logs -f 7f3k`
    """
    return asyncio.run(_logs(console, id, follow, start))


async def _logs(console: Console, prefix: str, follow: bool, start: int) -> int | None:
    from ottoctl.commands.view import View, watch
    from ottoctl.results import event_record

    async with console.connect_async() as otto:
        session = await otto.session(prefix)
        events = session.events(start, follow=follow)
        if console.output == "json":
            async with aclosing(events):
                console.records([event_record(event) async for event in events])
            return None
        view = View(console, live=follow, all_to_stdout=True, show_input=True, show_turns=True)
        await watch(view, events, parked_from=None)
    return None
