"""`ottoctl policy …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ottoctl.commands.arguments import complete_agents, complete_sessions
from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import OK, worst
from ottod.errors import OttoError

app = typer.Typer(
    cls=QuickGroup,
    help="Explain permissions, see what was decided, end permission that stands",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("explain", cls=QuickCommand)
@command
def explain(
    console: Console,
    agent: Annotated[
        str, typer.Argument(metavar="AGENT|SESSION", help="An agent's name, or with --session a session's id")
    ],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="A tool's name")],
    arguments: Annotated[str, typer.Argument(metavar="ARGS", help="The call's arguments, as JSON")] = "{}",
    session: Annotated[
        bool, typer.Option("--session", help="The first word is a live session: with all that binds it from above")
    ] = False,
    cwd: Annotated[
        Path | None, typer.Option("--cwd", metavar="DIR", help="As a session in this directory would get it (here)")
    ] = None,
    headless: Annotated[bool, typer.Option("--headless", help="As a session where nobody can be asked")] = False,
) -> int | None:
    """Say what would become of a tool call, which rule decides, and why no other

    Nothing is called.

    Example: `ottoctl policy explain coder shell '{"command": "git push"}'`
    """
    _check_json(arguments)
    with console.connect() as otto:
        found = otto.explain(
            "" if session else agent,
            tool,
            arguments,
            session=agent if session else "",
            cwd=cwd,
            headless=headless,
        )
    if console.output == "text":
        from ottoctl.rendering.policy import explanation_page

        console.write(explanation_page(found, color=console.color))
    else:
        console.record(found)
    return OK


def _check_json(arguments: str) -> None:
    """A typing error here is the user's, and not what a model may have written."""
    import json

    example = """as in '{"path": "src/a.py"}', in single quotes for the shell"""
    try:
        found = json.loads(arguments)
    except ValueError as error:
        raise OttoError(
            f"the arguments are not JSON: {error}", mend=f"one object, {example}", code="usage"
        ) from error
    if not isinstance(found, dict):
        raise OttoError("the arguments are JSON, but no object", mend=f"one object, {example}", code="usage")


@app.command("audit", cls=QuickCommand)
@command
def audit(
    console: Console,
    session: Annotated[
        str,
        typer.Option("--session", metavar="ID", help="Only of this session", autocompletion=complete_sessions),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="At most so many, the newest")] = 200,
) -> int | None:
    """List what was denied, asked, answered and let pass by permission that stood, oldest first

    Example: `ottoctl policy audit --session 7f3k -o jsonl`
    """
    with console.connect() as otto:
        entries = otto.audit(session=session, limit=limit)
    if console.output != "text":
        console.records(list(entries))
    elif entries:
        from ottoctl.rendering.policy import audit_table

        console.write(audit_table(entries, width=console.width, color=console.color))
    else:
        console.message("nothing is on record")
    return OK


@app.command("grants", cls=QuickCommand)
@command
def grants(
    console: Console,
    agent: Annotated[
        str, typer.Option("--agent", metavar="NAME", help="Only of this agent", autocompletion=complete_agents)
    ] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids")] = False,
) -> int | None:
    """List the permission that stands for agents, oldest first

    Example: `ottoctl policy grants`
    """
    with console.connect() as otto:
        found = otto.grants(agent=agent)
    if console.output != "text":
        console.records(list(found))
    elif quiet:
        console.write("".join(f"{grant.grant}\n" for grant in found))
    elif found:
        import time

        from ottoctl.rendering.policy import grants_table

        console.write(grants_table(found, now_ns=time.time_ns(), width=console.width, color=console.color))
    else:
        console.message("no permission stands")
    return OK


@app.command("revoke", cls=QuickCommand)
@command
def revoke(
    console: Console,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids or beginnings of ids")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it goes on record")] = "",
) -> int | None:
    """End permission that stands; what it has let begin goes on

    Example: `ottoctl policy revoke g-7f3k`
    """
    statuses = [OK]
    with console.connect() as otto:
        for grant in ids:
            try:
                console.write(f"{otto.revoke(grant, reason=reason)}\n")
            except OttoError as error:
                statuses.append(console.error(error))
    return worst(statuses)
