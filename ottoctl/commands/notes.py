"""`ottoctl notes`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console

app = typer.Typer(
    cls=QuickGroup,
    help="Keep a project's OTTO.md up to date",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def notes() -> None:
    """Keep a project's OTTO.md up to date"""


@app.command("update", cls=QuickCommand)
@command
def update(
    console: Console,
    id: SessionId,
    model: Annotated[
        str, typer.Option("-m", "--model", metavar="NAME", help="Another model than the doc-maintainer's")
    ] = "",
) -> int | None:
    """Bring OTTO.md up to date with what a run has taught

    The doc-maintainer is told what the run of an ended session has left: how it went, what failed, its artifacts. Its
    id is printed. If there is something to learn it asks for permission, with the change as a diff: `ottoctl
    approvals` shows it, `ottoctl approve` makes it, `ottoctl deny` leaves the file as it is.

    Example: `ottoctl notes update 7f3k`
    """
    with console.connect() as otto:
        found = otto.session(id)
        session = found.update_notes(model=model)
        if console.output == "text":
            console.message(
                f"{session.id} looks what {found.id} has taught; `ottoctl approvals --wait --session {session.id}` "
                "shows the change it asks for"
            )
            console.write(f"{session.id}\n")
        else:
            console.record(session.info())
    return None
