"""`ottoctl workflow run` and `ottoctl workflow status`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ottoctl.commands.arguments import NewName, complete_sessions
from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand
from ottoctl.commands.workflow import WorkflowName, app
from ottoctl.console import Console
from ottoctl.exits import OK
from ottod.errors import OttoError

if TYPE_CHECKING:
    from ottoctl.sync import SyncOtto
    from ottod.protocol.requests import StartSession
    from ottod.protocol.results import SessionInfo
    from ottod.protocol.workflows import WorkflowSpec

MAX_SESSIONS = 10_000


@app.command("run", cls=QuickCommand)
@command
def run(
    console: Console,
    workflow: WorkflowName,
    task: Annotated[str, typer.Argument(metavar="TASK", help="What it is about")] = "",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=TEXT|NAME=@FILE", help="An artifact that it begins with"),
    ] = None,
    cwd: Annotated[Path | None, typer.Option("--cwd", metavar="DIR", help="Where to work (here)")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Print the id and leave it running")] = False,
    model: Annotated[str, typer.Option("-m", "--model", help="Another model than those of its agents")] = "",
    headless: Annotated[bool, typer.Option("--headless", help="Nobody can answer questions: refuse at once")] = False,
    title: Annotated[str, typer.Option("--title", help="A name for lists")] = "",
    name: NewName = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do, with whom, for how much at most")
    ] = False,
) -> int | None:
    """Run a workflow and watch its steps; starts the daemon if none is running

    One line for each step goes to stderr, the result to stdout. The exit status is the outcome. Ctrl-C stops the
    workflow and everything below it; pressed again, it leaves at once. With --dry-run nothing is started, not even a
    daemon: what files show to be wrong is refused, and the rest is shown. Keys, the isolation that agents require,
    and whether sessions may work there, are the daemon's to look at, when it starts the workflow.

    Example: `ottoctl workflow run plan-implement-review "add a --json flag"`
    """
    if cwd is not None and not os.path.isdir(cwd):
        raise OttoError(f"no such directory: {cwd}", mend="create it, or name another with --cwd", code="bad_cwd")
    given = read_inputs(inputs or ())
    if dry_run:
        return _show_plan(console, workflow, task, given, cwd, model)
    request = _request(workflow, task, given, cwd=cwd, model=model, headless=headless, title=title, name=name)
    return asyncio.run(_run(console, request, detach=detach))


def _show_plan(
    console: Console, workflow: str, task: str, given: dict[str, bytes], cwd: Path | None, model: str
) -> int:
    """What a run would do; what would refuse it is raised."""
    from ottoctl.rendering.workflow_plan import plan_record, plan_table
    from ottoctl.workflows import workflow_entry, workflow_plan
    from ottod.settings.workflow_start import check_inputs, check_repository

    if "@" in workflow:
        raise OttoError(
            "--dry-run looks at files, and an earlier version is the daemon's to know",
            mend=f"leave out the digest, or: ottoctl workflow show {workflow}",
            code="usage",
        )
    entry = workflow_entry(workflow, cwd)
    if entry.spec is None:
        raise entry.errors[0]
    where = os.path.realpath(cwd or Path())
    check_inputs(entry.spec, given, where)
    check_repository(entry.spec, where)
    plan = workflow_plan(entry.spec, task, cwd, model=model)
    if console.output == "text":
        console.write(plan_table(plan, width=console.width, color=console.color))
    else:
        console.record(plan_record(plan, task=task, given=tuple(given)))
    return OK


def _request(workflow: str, task: str, inputs: dict[str, bytes], *, cwd: Path | None, **more: Any) -> StartSession:
    """The start of a workflow of that name, or of what is in a file."""
    from ottoctl.results import workflow_request
    from ottoctl.workflows import is_file, workflow_entry

    if not is_file(workflow):
        return workflow_request(workflow, task, inputs=inputs, cwd=cwd, **more)
    entry = workflow_entry(workflow, cwd)
    if entry.spec is None:
        raise entry.errors[0]
    return workflow_request(spec=entry.spec, task=task, inputs=inputs, cwd=cwd, **more)


def read_inputs(given: Sequence[str]) -> dict[str, bytes]:
    """`NAME=TEXT` or `NAME=@FILE`, by name. Raises OttoError."""
    found: dict[str, bytes] = {}
    for each in given:
        name, is_said, value = each.partition("=")
        if not is_said or not name:
            raise OttoError(
                f"--input {each!r} names no artifact", mend="--input NAME=TEXT, or NAME=@FILE", code="usage"
            )
        if not value.startswith("@"):
            found[name] = value.encode(errors="replace")
            continue
        try:
            found[name] = Path(value[1:]).read_bytes()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise OttoError(
                f"--input {name}: cannot read {Path(value[1:]).absolute()}: {why}",
                mend=f"name a file that is there, or say it: --input {name}=TEXT",
                code="usage",
            ) from error
    return found


async def _run(console: Console, request: StartSession, *, detach: bool) -> int:
    from ottoctl.commands.run import connect_or_start, start_session, watch_to_end

    otto = await connect_or_start(console)
    try:
        session = await start_session(console, otto, request)
        if detach:
            if console.output == "text":
                console.write(f"{session.id}\n")
            else:
                from ottoctl.results import info_record

                console.record(info_record(await session.info()))
            return OK
        return await watch_to_end(console, session, request)
    finally:
        await otto.close()


@app.command("status", cls=QuickCommand)
@command
def status(
    console: Console,
    session: Annotated[
        str, typer.Argument(metavar="ID", help="A workflow's session", autocompletion=complete_sessions)
    ],
) -> int | None:
    """Show where a workflow is: a line for each step, with its state, agent, session, time and cost

    Those that have not begun come last; one that asks for permission names the command that gives it, and one that
    got it while the workflow is paused the command that lets it go on.

    While steps wait because their block, or the workflow, lets no more run at once, the first line says how many.

    Example: `ottoctl workflow status 7f3k`
    """
    from ottoctl.rendering.sessions import backlog_text
    from ottoctl.rendering.steps import step_rows, steps_record, steps_table, waiting_rows

    with console.connect() as otto:
        workflow = otto.session(session)
        info = workflow.info()
        if info.kind != "workflow":
            raise OttoError(
                f"{workflow.id} is no workflow, but a session of {info.agent}",
                mend=f"ottoctl inspect {workflow.id}",
                code="usage",
            )
        paused = info.session if info.state == "paused" else ""
        rows = step_rows(workflow.journal(), _sessions_of(otto, info), now_ns=time.time_ns(), paused=paused)
        rows += waiting_rows(info, _spec_of(otto, info), rows)
    if console.output == "text":
        head = f"{info.session}  {info.agent}  {info.state}" + (f"  {info.cause}" if info.cause is not None else "")
        head += f"  {waits}" if (waits := backlog_text(info.backlog)) else ""
        console.write(head + "\n" + steps_table(rows, width=console.width, color=console.color))
    else:
        console.record(steps_record(info, rows))
    return None


def _sessions_of(otto: SyncOtto, info: SessionInfo) -> dict[str, SessionInfo]:
    """The sessions below a workflow, and below those that it goes on from as far as they are on record, by id."""
    from ottod.protocol.requests import ListSessions

    found: dict[str, SessionInfo] = {}
    origin = info.session
    while origin and origin not in found:
        try:
            listed = otto.list_with(ListSessions(all=True, tree=origin, limit=MAX_SESSIONS)).sessions
        except OttoError as error:
            if error.code != "no_such_session":
                raise
            break  # It has been removed, and nobody knows what it cost.
        found |= {each.session: each for each in listed}
        origin = found[origin].resumed_from if origin in found else ""
    return found


def _spec_of(otto: SyncOtto, info: SessionInfo) -> WorkflowSpec | None:
    """The workflow as the session was started with it; None if that is not on record."""
    try:
        return otto.definition("workflow", info.agent, info.agent_digest).workflow
    except OttoError:
        return None
