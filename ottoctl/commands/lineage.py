"""`ottoctl resume`, `fork` and `rollback`: going on from what a session has been."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottod.settings.units import plural

if TYPE_CHECKING:
    from ottoctl.results import Mode
    from ottoctl.sync import SyncSession

Task = Annotated[list[str] | None, typer.Argument(metavar="[TASK]", help="What it is to do next", show_default=False)]
Stays = Annotated[
    bool, typer.Option("--conversation", help="Stay for more input after the task, whatever the first one did")
]


@command
def resume(
    console: Console,
    id: SessionId,
    task: Task = None,
    conversation: Stays = False,
    fresh_budget: Annotated[
        bool, typer.Option("--fresh-budget", help="Begin its budgets anew; else what was spent is spent")
    ] = False,
) -> int | None:
    """Go on with a session that has ended, is parked or paused

    What goes on with an ended session is a new one: it has the conversation, and without a task takes up the turn
    that was open, and what is left of its budgets. Its id is printed. Parked and paused ones go on as themselves.

    Example: `ottoctl resume 7f3k "now write the changelog"`
    """
    with console.connect() as otto:
        found = otto.session(id)
        mode: Mode | None = "conversation" if conversation else None
        session = found.resume(" ".join(task or ()), mode=mode, fresh_budget=fresh_budget)
        _tell_new(console, session, f"{session.id} goes on" + (f" from {found.id}" if session.id != found.id else ""))
    return None


@command
def fork(
    console: Console,
    id: SessionId,
    task: Task = None,
    at: Annotated[
        str,
        typer.Option("--at", metavar="TURN|NAME", help="A turn's number, or a checkpoint's name (the newest turn)"),
    ] = "",
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="A title for the new session")] = "",
    conversation: Stays = False,
) -> int | None:
    """Start a session with another one's conversation, as it was at the end of a turn

    The other one is left as it is, and so are the files. Without a task the new session waits for input.

    Example: `ottoctl fork 7f3k --at 2 "try it without the cache"`
    """
    mode: Mode | None = "conversation" if conversation else None
    with console.connect() as otto:
        found = otto.session(id)
        is_turn = at.isdecimal()
        session = found.fork(
            " ".join(task or ()),
            turn=int(at) if is_turn else None,
            checkpoint="" if is_turn else at,
            mode=mode,
            title=title,
        )
        _tell_new(console, session, f"{session.id} goes on from {found.id}" + (f" at {at}" if at else ""))
    return None


@command
def rollback(
    console: Console,
    id: SessionId,
    turns: Annotated[int, typer.Option("--turns", min=1, metavar="N", help="How many")] = 1,
) -> int | None:
    """Let a session forget its last turns; what they did to files stays done

    It must wait for input, or be parked.

    Example: `ottoctl rollback 7f3k --turns 2`
    """
    with console.connect() as otto:
        session = otto.session(id)
        session.rollback(turns)
        _tell(
            console,
            session,
            f"{session.id} has forgotten {plural(turns, 'turn')}; files are unchanged",
        )
    return None


def _tell_new(console: Console, session: SyncSession, message: str) -> None:
    """Of one that goes on by itself: a reader at a terminal is told how to watch it."""
    if console.output == "text" and console.is_tty:
        message += f"; to watch it: `ottoctl attach {session.id}`, or `ottoctl logs -f {session.id}`"
    _tell(console, session, message)


def _tell(console: Console, session: SyncSession, message: str) -> None:
    if console.output == "text":
        console.message(message)
        console.write(f"{session.id}\n")
    else:
        console.record(session.info())
