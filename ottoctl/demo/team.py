"""The demonstration of teams: shipped workflows with their agents, at the same time, on copies of a project."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ottoctl.console import Console
from ottoctl.demo.findings import claims, look, wanted_artifacts
from ottoctl.demo.live import watch
from ottoctl.demo.stage import NO_PLUGINS, Stage
from ottoctl.demo.team_report import report
from ottoctl.exits import FAILED, OK
from ottoctl.private import PrivateDaemon
from ottoctl.rendering.amounts import duration
from ottoctl.workflows import workflow_entry
from ottod.errors import OttoError
from ottod.settings.sections import DEFAULT_ENV

SETTINGS: dict[str, object] = {"env": [*DEFAULT_ENV, NO_PLUGINS]}
"""Of the daemon."""
TASKS = {
    "bug-fix-loop": "The tests fail. Find out why and repair the code.",
    "plan-implement-review": "Customers want to read their invoice.",
    "refactor-swarm": "Give the arithmetic of money a module of its own.",
    "parallel-scaffold": "Quotes: a shop wants to show on a page what an order will cost.",
}
"""What each workflow is told."""


def chosen(workflow: str) -> tuple[str, ...]:
    """The workflows to run. Raises OttoError for one that is not shown."""
    if workflow in ("", "all"):
        return tuple(TASKS)
    if workflow not in TASKS:
        raise OttoError(
            f"there is no demonstration of {workflow!r}", mend=f"one of {', '.join(TASKS)}, all", code="usage"
        )
    return (workflow,)


async def show(console: Console, daemon: PrivateDaemon, workflows: Sequence[str], model: str) -> int:
    """Runs the workflows and reports; the status says whether everything was found to be as it is claimed.

    Without a `model` the agents play scripts.
    """
    begun_s = time.monotonic()
    stages = {name: Stage(name, daemon.workdir / name / "tally") for name in workflows}
    for stage in stages.values():
        stage.directory.parent.mkdir()
        stage.prepare()
    before = dict(
        zip(stages, await asyncio.gather(*(asyncio.to_thread(s.tests) for s in stages.values())), strict=True)
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), daemon.env["PATH"]])
    console.message(f"a daemon of its own runs in {daemon.base} (pid {daemon.pid})")
    async with daemon.async_client() as otto:
        sessions = {}
        for name, stage in stages.items():
            sessions[name] = await otto.start_workflow(
                name,
                TASKS[name],
                inputs={"failure": before[name].output} if name == "bug-fix-loop" else {},
                cwd=stage.directory,
                model=model or stage.scripts(),
                env={**os.environ, "PATH": path, NO_PLUGINS: "1"},
                title=TASKS[name],
            )
        given = await watch(console, otto, sessions)
        looks = [
            look(otto, sessions[name], stage, task=TASKS[name], before=before[name], wanted=_wanted(name))
            for name, stage in stages.items()
        ]
        found = await asyncio.gather(*looks)
    holds = True
    for each in found:
        said = claims(each, is_scripted=not model)
        holds = holds and all(claim.holds for claim in said)
        console.write(report(each, said, is_only=len(found) == 1, width=console.width, color=console.color))
    for line in given:
        console.message(line)
    _say_goodbye(console, daemon, len(found), time.monotonic() - begun_s)
    return OK if holds else FAILED


def _wanted(workflow: str) -> tuple[str, ...]:
    entry = workflow_entry(workflow, Path("/"))
    assert entry.spec is not None
    return tuple(dict.fromkeys(wanted_artifacts(entry.spec.steps)))


def _say_goodbye(console: Console, daemon: PrivateDaemon, count: int, seconds: float) -> None:
    what = "one workflow" if count == 1 else f"{count} workflows at the same time"
    console.message(f"\n{what}, {duration(seconds)} in all; the daemon ends now, with everything below it")
    if daemon.keep:
        console.message(f"files: {daemon.workdir}, log: {daemon.log_path}; remove it all: rm -r {daemon.base}")
