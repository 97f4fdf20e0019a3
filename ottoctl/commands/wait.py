"""`ottoctl wait`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionIds
from ottoctl.commands.frame import command
from ottoctl.console import Console, encode_json
from ottoctl.exits import status_of_cause, worst


@command
def wait(
    console: Console,
    ids: SessionIds,
    idle: Annotated[bool, typer.Option("--idle", help="Until it waits for input, if that comes first")] = False,
) -> int | None:
    """Wait until sessions have ended; the exit status is the outcome of the first that did not complete

    Example: `ottoctl wait 7f3k 9d2m`
    """
    from ottoctl.results import info_record

    statuses, results = [], []
    with console.connect(follows=True) as otto:
        sessions = [otto.session(prefix) for prefix in ids]
        for session in sessions:
            result = session.wait(idle=idle)
            is_idle = idle and result.cause is None and result.state != "parked"
            statuses.append(0 if is_idle else status_of_cause(result.cause))
            if console.output == "text":
                console.write(f"{session.id} {result.cause or result.state}\n")
                console.flush()
            elif console.output == "jsonl":
                console.write(encode_json(info_record(result.info)) + "\n")
                console.flush()
            results.append(info_record(result.info))
    if console.output == "json":
        console.records(list(results))
    return worst(statuses)
