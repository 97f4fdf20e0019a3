"""`ottoctl providers`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console


@command
def providers(
    console: Console,
    names: Annotated[list[str] | None, typer.Argument(metavar="[PROVIDER]...", help="Only these")] = None,
) -> int | None:
    """Show the model providers: breakers, pauses, limits, and how many calls wait for how long

    One line for each model that was asked for since the daemon began.

    Example: `ottoctl providers -o json`
    """
    with console.connect() as otto:
        found = [p for p in otto.providers() if not names or p.provider in names]
    if console.output != "text":
        console.records(found)
    elif found:
        import time

        from ottoctl.rendering.providers import providers_table

        console.write(providers_table(found, now_ns=time.time_ns(), width=console.width, color=console.color))
    else:
        console.message("no model has been asked for yet")
    return None
