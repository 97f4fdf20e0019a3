"""`ottoctl ps`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console

DEFAULT_LIMIT = 1000


def complete_filter(incomplete: str) -> list[str]:
    """What can stand there."""
    from ottoctl.filters import complete_filter

    return complete_filter(incomplete)


@command
def ps(
    console: Console,
    all: Annotated[bool, typer.Option("-a", "--all", help="Ended sessions too")] = False,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only sessions in this state; repeatable")
    ] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--filter",
            metavar="KEY=VALUE",
            help="Only with this state or outcome, agent, parent or name, the latter two perhaps with *; repeatable",
            autocompletion=complete_filter,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=1, max=10_000, help="At most so many (1000)")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole ids")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids, a line each")] = False,
) -> int | None:
    """List sessions, newest first

    Of several filters of one key any fits, of two keys both must. A state or outcome that only ended sessions have
    shows those.

    Example: `ottoctl ps -a --state ended -o json`; `ottoctl ps --filter state=failed --filter "agent=code*"`;
    `ottoctl stop $(ottoctl ps -q)`
    """
    from ottoctl.filters import filtered
    from ottod.protocol.requests import ListSessions

    body = filtered(ListSessions(all=all, limit=limit or DEFAULT_LIMIT), filter or (), state or ())
    with console.connect() as otto:
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
        is_all = all or bool(state or filter)
        console.message("no sessions" if is_all else "no live sessions; `ottoctl ps -a` shows ended ones")
    if found.truncated and len(found.sessions) < body.limit:
        console.message("only the newest 10000 ended sessions were looked at: older ones may fit, too")
    elif found.truncated:
        console.message(f"only the newest {body.limit} are shown; see --limit")
    return None
