"""`ottoctl ps`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottod.errors import OttoError

DEFAULT_LIMIT = 1000


@command
def ps(
    console: Console,
    all: Annotated[bool, typer.Option("-a", "--all", help="Ended sessions too")] = False,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only sessions in this state; repeatable")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=1, max=10_000, help="At most so many (1000)")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole ids")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids, a line each")] = False,
) -> int | None:
    """List sessions, newest first

    Example: `ottoctl ps -a --state ended -o json`; `ottoctl stop $(ottoctl ps -q)`
    """
    from ottoctl.rendering.sessions import STATE_STYLES
    from ottod.protocol.requests import ListSessions

    states = tuple(s for given in state or () for s in given.split(","))
    for name in states:
        if name not in STATE_STYLES:
            raise OttoError(f"no such state: {name}", mend=f"one of {', '.join(STATE_STYLES)}", code="usage")
    with console.connect() as otto:
        body = ListSessions(all=all or "ended" in states, states=states, limit=limit or DEFAULT_LIMIT)  # type: ignore[arg-type]
        found = otto.list_with(body)
    if console.output != "text":
        console.records(list(found.sessions))
    elif quiet:
        for info in found.sessions:
            console.write(f"{info.session}\n")
    elif found.sessions:
        import time

        from ottoctl.rendering.sessions import sessions_table

        console.write(
            sessions_table(
                found.sessions, now_ns=time.time_ns(), width=console.width, color=console.color, full_ids=full
            )
        )
    else:
        console.message("no sessions" if all or states else "no live sessions; `ottoctl ps -a` shows ended ones")
    if found.truncated:
        console.message(f"only the newest {limit or DEFAULT_LIMIT} are shown; see --limit")
    return None
