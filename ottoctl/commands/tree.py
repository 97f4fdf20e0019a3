"""`ottoctl tree`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import complete_sessions
from ottoctl.commands.frame import command
from ottoctl.console import Console, encode_json
from ottoctl.exits import OK
from ottod.errors import OttoError, UnreachableError

if TYPE_CHECKING:
    from ottod.protocol.requests import ListSessions
    from ottod.protocol.results import SessionInfo, SessionList

LIMIT = 10_000
WATCHED = 1000
"""The most of all the trees that are looked at anew for every picture."""


@command
def tree(
    console: Console,
    id: Annotated[
        str,
        typer.Argument(metavar="ID", help="Only this session and those below it", autocompletion=complete_sessions),
    ] = "",
    all: Annotated[bool, typer.Option("-a", "--all", help="Ended sessions too")] = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Draw it anew until q or Ctrl-C")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, metavar="SECONDS", help="With --watch: how often")
    ] = 1.0,
    full: Annotated[bool, typer.Option("--full", help="Whole ids")] = False,
) -> int | None:
    """Show which session runs below which, and which one waits for somebody

    Example: `ottoctl tree 7f3k --watch`
    """
    from ottod.protocol.requests import ListSessions

    body = ListSessions(all=all, tree=id, limit=WATCHED if watch and not id else LIMIT)
    if watch:
        if console.output != "text" or not console.is_tty:
            raise OttoError("--watch needs a terminal", mend="leave out --watch and -o, or the pipe", code="usage")
        return _watch(console, body, interval, full)
    with console.connect() as otto:
        found = otto.list_with(body)
    if console.output == "text":
        if found.sessions:
            console.write(_picture(console, found, full))
        else:
            console.message(_nothing(id, all))
    else:
        _records(console, found.sessions)
    if found.truncated:
        console.message(
            "only the newest session is shown"
            if body.limit == 1
            else f"only the newest {body.limit} sessions are shown"
        )
    return None


def _nothing(id: str, all: bool) -> str:
    if id:
        return f"{id} has ended, and nothing below it is live; `ottoctl tree {id} --all` shows it"
    return "no sessions" if all else "no live sessions; `ottoctl tree --all` shows ended ones"


def _picture(console: Console, found: SessionList, full: bool, width: int | None = None) -> str:
    from ottoctl.rendering.tree import tree_table

    return tree_table(
        found.sessions,
        now_ns=time.time_ns(),
        width=console.width if width is None else width,
        color=console.color,
        full_ids=full,
    )


def _records(console: Console, sessions: tuple[SessionInfo, ...]) -> None:
    from ottoctl.rendering.tree import tree_records

    records = tree_records(sessions)
    if console.output == "jsonl":
        console.write("".join(encode_json(record) + "\n" for record in records))
    else:
        console.write(encode_json(records, indent=2) + "\n")


def _watch(console: Console, body: ListSessions, interval_s: float, full: bool) -> int:
    from ottoctl.screen import Screen

    picture = ""
    with console.connect(follows=True) as otto:
        found = otto.list_with(body)
        try:
            with Screen() as screen:
                console.announce = lambda text: screen.draw(f"{text}\n{picture}")
                while True:
                    try:
                        found, trouble = otto.list_with(body), ""
                    except UnreachableError as error:
                        trouble = f"{error.message}\n"
                    picture = _picture(console, found, full, screen.size[0]) if found.sessions else ""
                    screen.draw(trouble + (picture or _nothing(body.tree, body.all)))
                    if screen.wait(interval_s) in ("q", "\x1b", "\x04"):
                        return OK
        except KeyboardInterrupt:
            return OK
