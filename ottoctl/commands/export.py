"""`ottoctl export`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command, completed, one_of
from ottoctl.console import Console, encode_json

FORMATS = ("markdown", "json", "jsonl")


@command
def export(
    console: Console,
    id: SessionId,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="|".join(FORMATS),
            help="What to print it as (markdown)",
            callback=one_of(FORMATS),
            autocompletion=completed(FORMATS),
        ),
    ] = None,
) -> int | None:
    """Print a session's whole history, from its journal

    What was said, what the model answered, each tool call with its result. JSON has every entry as it was noted.

    Example: `ottoctl export 7f3k > session.md`
    """
    import msgspec

    from ottoctl.rendering.ansi import printable
    from ottoctl.rendering.transcript import transcript

    form = output or ("markdown" if console.output == "text" else console.output)
    with console.connect() as otto:
        session = otto.session(id)
        info = session.info()
        entries = session.journal()
    if form == "markdown":
        # A document is shown sooner or later, and what a tool has printed must not drive anybody's terminal.
        console.write(printable(transcript(info, entries)))
    elif form == "jsonl":
        console.write("".join(encode_json(msgspec.to_builtins(entry)) + "\n" for entry in entries))
    else:
        whole = {"session": msgspec.to_builtins(info), "entries": msgspec.to_builtins(entries)}
        console.write(encode_json(whole, indent=2) + "\n")
    return None
