"""`ottoctl stop` and `ottoctl kill`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import SessionIds
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import FAILED, worst
from ottod.errors import OttoError, UnreachableError

if TYPE_CHECKING:
    from ottoctl.sync import SyncOtto
    from ottod.protocol.requests import RequestBody
    from ottod.protocol.results import StopResult

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
    """Stop sessions and all below them, with grace, and prove that nothing of them is left

    Several are stopped at the same time. The exit status is 1 if a process remains.

    Example: `ottoctl stop 7f3k --grace 30`
    """
    from ottoctl.policy import STOP_ANSWER_S
    from ottod.protocol.requests import StopSession

    def order(session: str) -> RequestBody:
        return StopSession(session=session, grace_s=grace, reason=reason)

    return _stop_all(console, ids, order, limit_s=None if grace is None else grace + STOP_ANSWER_S)


@command
def kill(console: Console, ids: SessionIds, reason: Reason = "") -> int | None:
    """Stop sessions and all below them without grace

    Example: `ottoctl kill 7f3k`
    """
    from ottoctl.policy import STOP_ANSWER_S
    from ottod.protocol.requests import KillSession

    def order(session: str) -> RequestBody:
        return KillSession(session=session, reason=reason)

    return _stop_all(console, ids, order, limit_s=STOP_ANSWER_S)


def _stop_all(console: Console, ids: list[str], order: Callable[[str], RequestBody], *, limit_s: float | None) -> int:
    """Orders all stops at once and reports them in the order of the ids."""
    from ottod.protocol.results import StopResult

    results: list[StopResult] = []
    statuses = []
    with console.connect(follows=True) as otto:
        found = [_find(otto, prefix) for prefix in ids]
        known = list(dict.fromkeys(session for session in found if isinstance(session, str)))
        answers = dict(
            zip(known, otto.connection.call_each([order(s) for s in known], timeout_s=limit_s), strict=True)
        )
    for session in dict.fromkeys(found):
        answer = answers[session] if isinstance(session, str) else session
        if isinstance(answer, StopResult):
            results.append(answer)
            statuses.append(FAILED if answer.remaining_pids else 0)
            _tell(console, answer)
        elif isinstance(answer, OttoError):
            statuses.append(console.error(answer))
    if console.output != "text":
        console.records(list(results))
    return worst(statuses)


def _find(otto: SyncOtto, prefix: str) -> str | OttoError:
    """The whole id, or what is wrong with this one."""
    try:
        return otto.session(prefix).id
    except UnreachableError:
        raise
    except OttoError as error:
        return error


def _tell(console: Console, result: StopResult) -> None:
    from ottoctl.rendering.stops import stop_line

    console.message(stop_line(result))
    if console.output == "text" and not result.remaining_pids:
        console.write(f"{result.session}\n")
