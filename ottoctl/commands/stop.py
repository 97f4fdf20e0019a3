"""`ottoctl stop` and `ottoctl kill`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import SessionIds
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import FAILED, worst
from ottod.errors import OttoError

if TYPE_CHECKING:
    from ottoctl.sync import SyncSession
    from ottod.protocol.control import StopResult

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the record")]


@command
def stop(
    console: Console,
    ids: SessionIds,
    grace: Annotated[
        float | None,
        typer.Option("--grace", min=0, max=3600, metavar="SECONDS", help="Time to end by itself (the agent's own)"),
    ] = None,
    reason: Reason = "",
) -> int | None:
    """Stop sessions, with grace, and prove that nothing of them is left

    Example: `ottoctl stop 7f3k --grace 30`
    """
    return _stop_each(console, ids, lambda session: session.stop(grace, reason=reason))


@command
def kill(console: Console, ids: SessionIds, reason: Reason = "") -> int | None:
    """Stop sessions without grace

    Example: `ottoctl kill 7f3k`
    """
    return _stop_each(console, ids, lambda session: session.kill(reason=reason))


def _stop_each(console: Console, ids: list[str], stop_one: Callable[[SyncSession], StopResult]) -> int:
    statuses, results = [], []
    with console.connect() as otto:
        for prefix in ids:
            try:
                result = stop_one(otto.session(prefix))
            except OttoError as error:
                statuses.append(console.error(error))
                continue
            results.append(result)
            statuses.append(FAILED if result.remaining_pids else 0)
            _tell(console, result)
    if console.output != "text":
        console.records(list(results))
    return worst(statuses)


def _tell(console: Console, result: StopResult) -> None:
    if result.remaining_pids:
        pids = ", ".join(map(str, result.remaining_pids))
        console.message(f"{result.session} has ended ({result.cause}), but these processes remain: {pids}")
    elif console.output == "text":
        if result.already_ended:
            console.message(f"{result.session} had ended already ({result.cause})")
        console.write(f"{result.session}\n")
