"""`ottoctl approvals`, `ottoctl approve` and `ottoctl deny`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import COMPLETION_TIMEOUT_S, complete_sessions
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import worst
from ottod.errors import OttoError, UnreachableError

if TYPE_CHECKING:
    from ottoctl.results import Scope
    from ottoctl.sync import SyncOtto
    from ottod.protocol.results import ApprovalResult, WaitingApproval


def complete_approvals(incomplete: str) -> list[tuple[str, str]]:
    """Ids of approvals that wait; nothing when no daemon answers quickly."""
    from ottoctl.rendering.tools import argument_summary
    from ottoctl.sync import SyncOtto

    try:
        with SyncOtto.connect(timeout_s=COMPLETION_TIMEOUT_S, client="completion") as otto:
            waiting = [(w.agent, w.approval) for w in otto.approvals()]
    except OttoError:
        return []
    wanted = incomplete if incomplete.startswith("a-"[: len(incomplete)]) else f"a-{incomplete}"
    return [
        (pending.approval, f"{agent}: {pending.tool} {argument_summary(pending.arguments)}"[:60])
        for agent, pending in waiting
        if pending.approval.startswith(wanted)
    ]


ApprovalIds = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids or beginnings of ids", autocompletion=complete_approvals)
]
ForSession = Annotated[
    bool, typer.Option("--session", help="Answer for the tool, for as long as the session lives, and not only once")
]
ForAgent = Annotated[
    bool,
    typer.Option(
        "--agent", help="Permission for exactly this stands for the agent in that directory until it is revoked"
    ),
]


@command
def approvals(
    console: Console,
    session: Annotated[
        str,
        typer.Option(
            "--session",
            metavar="ID",
            help="Only of this session and those below it",
            autocompletion=complete_sessions,
        ),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until there is one")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids")] = False,
    full: Annotated[bool, typer.Option("--full", help="Whole ids")] = False,
) -> int | None:
    """List the tool calls that wait for somebody's permission, oldest first

    Example: `ottoctl approvals -o json`
    """
    with console.connect(follows=wait) as otto:
        waiting = _until_some(otto, session) if wait else otto.approvals(session=session)
    if console.output != "text":
        console.records(list(waiting))
    elif quiet:
        console.write("".join(f"{w.approval.approval}\n" for w in waiting))
    elif waiting:
        import time

        from ottoctl.rendering.approvals import approvals_table

        console.write(
            approvals_table(waiting, now_ns=time.time_ns(), width=console.width, color=console.color, full_ids=full)
        )
    else:
        console.message("nothing waits for approval")
    return None


def _until_some(otto: SyncOtto, session: str) -> tuple[WaitingApproval, ...]:
    """What waits, once something does. What is asked after the first look is heard of."""
    from ottod.protocol.events import ApprovalRequested, Gap

    head = otto.status().ring_head
    waiting = otto.approvals(session=session)
    if not waiting:
        for event in otto.events(head):
            if isinstance(event.event, ApprovalRequested | Gap) and (waiting := otto.approvals(session=session)):
                return waiting
        raise UnreachableError("the daemon stopped before there was one", mend="start one: `ottoctl daemon start`")
    return waiting


@command
def approve(
    console: Console,
    ids: ApprovalIds,
    for_session: ForSession = False,
    for_agent: ForAgent = False,
    expires: Annotated[
        str, typer.Option("--for", metavar="TIME", help="With --agent: how long it stands, such as 8h")
    ] = "",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it goes on record")] = "",
) -> int | None:
    """Let tool calls go on that wait for permission

    Example: `ottoctl approve 7f3k`
    """
    if for_session and for_agent:
        raise OttoError(
            "--session and --agent exclude each other: one is for this session, the other for its agent",
            mend=f"`{_approve(ids)} --session`, or `{_approve(ids)} --agent`",
            code="usage",
        )
    if expires and not for_agent:
        raise OttoError(
            "--for says how long permission for the agent stands, and needs --agent",
            mend=f"`{_approve(ids)} --agent --for {expires}`, or leave out --for",
            code="usage",
        )
    expires_s = _seconds(expires) if expires else None
    scope: Scope = "agent" if for_agent else "session" if for_session else "once"

    def let_go(otto: SyncOtto, approval: str) -> ApprovalResult:
        return otto.approve(approval, scope=scope, reason=reason, expires_s=expires_s)

    return _answer_each(console, ids, let_go)


def _approve(ids: list[str]) -> str:
    return shlex.join(["ottoctl", "approve", *ids])


def _seconds(text: str) -> float:
    from ottod.settings.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise OttoError(f"--for: {error}", mend="write 30m, 8h or 7d", code="usage") from error
    if seconds <= 0:
        raise OttoError("--for: the time must be more than nothing", mend="write 30m, 8h or 7d", code="usage")
    return seconds


@command
def deny(
    console: Console,
    ids: ApprovalIds,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; the model is told")] = "",
    for_session: ForSession = False,
) -> int | None:
    """Refuse tool calls that wait for permission; the session goes on without them

    Example: `ottoctl deny 7f3k --reason "not on a Friday"`
    """

    def refuse(otto: SyncOtto, approval: str) -> ApprovalResult:
        return otto.deny(approval, reason=reason, for_session=for_session)

    return _answer_each(console, ids, refuse)


def _answer_each(console: Console, ids: list[str], answer: Callable[[SyncOtto, str], ApprovalResult]) -> int:
    statuses, results = [], []
    with console.connect() as otto:
        for approval in ids:
            try:
                result = answer(otto, approval)
            except OttoError as error:
                statuses.append(console.error(error))
                continue
            results.append(result)
            if console.output == "text":
                console.write(f"{result.approval}\n")
            if result.grant:
                console.message(f"it stands as {result.grant}; `ottoctl policy revoke {result.grant}` ends it")
            if result.is_kept:
                console.message(f"{result.session} does not listen now; it hears the answer as soon as it does")
    if console.output != "text":
        console.records(list(results))
    return worst(statuses)
