"""`ottoctl interrupt`, `pause` and `unpause`: what a running session is told beside words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import SessionId, SessionIds
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import worst
from ottod.errors import OttoError

if TYPE_CHECKING:
    from ottoctl.sync import SyncSession

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the record")]
Below = Annotated[bool, typer.Option("--tree", help="The sessions below it as well")]


@command
def interrupt(
    console: Console,
    id: SessionId,
    text: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]", help="What it is to do instead", show_default=False)
    ] = None,
    reason: Reason = "",
) -> int | None:
    """Cancel the turn that runs; the session stays, and waits for what it is told

    The model call or tool call in flight is cancelled, finished tool results are kept. With a text the session goes
    on with that.

    Example: `ottoctl interrupt 7f3k "leave the tests alone, fix the parser"`
    """
    said = " ".join(text or ())
    with console.connect() as otto:
        session = otto.session(id)
        session.interrupt(reason=reason)
        if said.strip():
            session.send(said)
    console.message(f"interrupted {session.id}" + ("; it goes on with what you said" if said.strip() else ""))
    return None


@command
def pause(console: Console, ids: SessionIds, tree: Below = False, reason: Reason = "") -> int | None:
    """Let sessions begin no model call and no tool call; what runs goes on to its result

    They stay paused when their process or the daemon is replaced.

    Example: `ottoctl pause 7f3k --tree`
    """
    return _each(console, ids, lambda session: session.pause(reason=reason, below=tree), "paused")


@command
def unpause(console: Console, ids: SessionIds, tree: Below = False) -> int | None:
    """Let paused sessions go on

    Example: `ottoctl unpause 7f3k`
    """
    return _each(console, ids, lambda session: session.unpause(below=tree), "unpaused")


def _each(console: Console, ids: list[str], order: Callable[[SyncSession], None], done: str) -> int:
    statuses, infos = [], []
    with console.connect() as otto:
        for prefix in ids:
            try:
                session = otto.session(prefix)
                order(session)
                info = session.info()
            except OttoError as error:
                statuses.append(console.error(error))
                continue
            statuses.append(0)
            infos.append(info)
            if console.output == "text":
                console.message(f"{done} {session.id}: it is {info.state}")
                console.write(f"{session.id}\n")
    if console.output != "text":
        console.records(list(infos))
    return worst(statuses)
