"""`ottoctl send`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottod.errors import OttoError


@command
def send(
    console: Console,
    id: SessionId,
    text: Annotated[list[str], typer.Argument(metavar="TEXT|-", help="What to say; - reads it from stdin")],
    steer: Annotated[
        bool, typer.Option("--steer", help="Say it to the turn that runs, before its next model call")
    ] = False,
) -> int | None:
    """Say something to a session; it is heard at the start of its next turn

    Example: `ottoctl send 7f3k "and now the tests"`
    """
    said = sys.stdin.read() if text == ["-"] else " ".join(text)
    if not said.strip():
        raise OttoError("nothing to say", mend="give a text, or - to read it from stdin", code="usage")
    with console.connect() as otto:
        session = otto.session(id)
        session.send(said, steer=steer)
    console.message(f"sent to {session.id}")
    return None
