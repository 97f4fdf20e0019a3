"""`ottoctl events`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer

from ottoctl.commands.arguments import complete_sessions
from ottoctl.commands.frame import command
from ottoctl.console import Console, encode_json


@command
def events(
    console: Console,
    start: Annotated[
        int | None,
        typer.Option(
            "--from", min=0, metavar="OFFSET", help="From this offset on (all there are; with -f: new ones)"
        ),
    ] = None,
    session: Annotated[
        str, typer.Option("--session", metavar="ID", help="Of one session", autocompletion=complete_sessions)
    ] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as they come")] = False,
) -> int | None:
    """Print raw events, of all sessions or of one; JSON lines unless on a terminal

    A gap in the history is printed as an event of type `gap`.

    Example: `ottoctl events --session 7f3k --from 0 -f -o jsonl`
    """
    return asyncio.run(_events(console, start, session, follow))


async def _events(console: Console, start: int | None, prefix: str, follow: bool) -> int | None:
    from ottoctl.rendering.events import event_line
    from ottoctl.results import event_record

    first = start if start is not None or follow else 0
    as_text = console.chosen_output == "text" or (console.chosen_output is None and console.is_tty)
    async with console.connect_async() as otto:
        source = await otto.session(prefix) if prefix else otto
        async with aclosing(source.events(first, follow=follow)) as found:
            if console.output == "json":
                console.records([event_record(event) async for event in found])
                return None
            color, width = console.color, console.width
            async for event in found:
                line = event_line(event, color=color, width=width) if as_text else encode_json(event_record(event))
                console.write(line + "\n")
                if follow:
                    console.flush()
    return None
