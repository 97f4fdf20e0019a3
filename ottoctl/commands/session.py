"""`ottoctl session …`: what is asked of a session less than every day."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionId, SessionIds
from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import worst
from ottod.errors import OttoError

app = typer.Typer(cls=QuickGroup, help="What sessions need now and then", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def session() -> None:
    """What sessions need now and then"""


@app.command("checkpoint", cls=QuickCommand)
@command
def checkpoint(
    console: Console,
    id: SessionId,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Its name (after the turn)", show_default=False)] = "",
) -> int | None:
    """Note a point in a session that `ottoctl fork --at NAME` can begin at

    Example: `ottoctl session checkpoint 7f3k before-refactoring`
    """
    with console.connect() as otto:
        found = otto.session(id)
        found.checkpoint(name)
    console.message(f"checkpoint noted in {found.id}")
    return None


@app.command("unpark", cls=QuickCommand)
@command
def unpark(console: Console, ids: SessionIds) -> int | None:
    """Give parked sessions a fresh allowance of restarts, and another try

    Example: `ottoctl session unpark 7f3k`
    """
    statuses, infos = [], []
    with console.connect() as otto:
        for prefix in ids:
            try:
                found = otto.session(prefix)
                found.unpark()
                info = found.info()
            except OttoError as error:
                statuses.append(console.error(error))
                continue
            statuses.append(0)
            infos.append(info)
            if console.output == "text":
                console.message(f"unparked {found.id}: it is {info.state}")
                console.write(f"{found.id}\n")
    if console.output != "text":
        console.records(list(infos))
    return worst(statuses)
