"""`ottoctl research`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console

app = typer.Typer(
    cls=QuickGroup,
    help="List and forget what agents have found out",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def research() -> None:
    """List and forget what agents have found out"""


@app.command("list", cls=QuickCommand)
@command
def list_(
    console: Console,
    agent: Annotated[str, typer.Argument(metavar="[AGENT]", help="Only what this agent found out")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many")] = 100,
) -> int | None:
    """List results that are kept, newest first: who was asked what, and how often that was saved

    Example: `ottoctl research list researcher`
    """
    with console.connect() as otto:
        found = otto.research(agent, limit=limit)
    if console.output != "text":
        console.records(list(found))
    elif found:
        import time

        from ottoctl.rendering.research import research_table

        console.write(research_table(found, now_ns=time.time_ns(), width=console.width, color=console.color))
    else:
        console.message("nothing is kept")
    return None


@app.command("forget", cls=QuickCommand)
@command
def forget(
    console: Console,
    agent: Annotated[str, typer.Argument(metavar="[AGENT]", help="Only what this agent found out")] = "",
) -> int | None:
    """Forget what is kept, of one agent or all of it: the next one who asks has it found out anew

    Example: `ottoctl research forget researcher`
    """
    with console.connect() as otto:
        count = otto.forget_research(agent)
    from ottod.settings.units import plural

    console.message(f"{plural(count, 'result')} {'is' if count == 1 else 'are'} forgotten")
    return None
