"""`ottoctl cost`: what model calls have cost."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.moments import since_ns_of

By = Literal["agent", "model", "session", "day"]


@command
def cost(
    console: Console,
    by: Annotated[By, typer.Option("--by", help="What to sum by")] = "agent",
    since: Annotated[
        str,
        typer.Option("--since", metavar="WHEN", help="Only later calls: 90m, 12h, 7d, or a date such as 2026-11-27"),
    ] = "",
) -> int | None:
    """Show what model calls have cost, also those of sessions that are gone

    Example: `ottoctl cost --by model --since 7d`
    """
    since_ns = since_ns_of(since, now_s=time.time()) if since else 0
    with console.connect() as otto:
        rows = otto.cost(by, since_ns=since_ns)
    if console.output != "text":
        console.records(list(rows))
    elif rows:
        from ottoctl.rendering.cost import cost_table

        console.write(cost_table(rows, by=by, width=console.width, color=console.color))
    else:
        console.message("no model call has been paid for")
    return None
