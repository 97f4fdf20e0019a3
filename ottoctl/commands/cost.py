"""`ottoctl cost`: what model calls have cost."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Literal

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottod.errors import OttoError

By = Literal["agent", "model", "session", "day"]
UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


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


def since_ns_of(text: str, *, now_s: float) -> int:
    """A span before now, or a date, as wall clock nanoseconds. Raises OttoError."""
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if span is not None:
        return int(max(0.0, now_s - int(span[1]) * UNITS_S[span[2]]) * 1e9)
    try:
        return int(max(0.0, datetime.fromisoformat(text).timestamp()) * 1e9)
    except (ValueError, OverflowError, OSError) as error:
        raise OttoError(
            f"--since {text!r} is neither a span nor a date", code="usage", mend="write 90m, 12h, 7d or 2026-11-27"
        ) from error
