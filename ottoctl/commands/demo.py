"""`ottoctl demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Literal

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import FAILED, OK, status_of_cause
from ottod.errors import OttoError

TASK = "The tests fail. Find out why and repair the code."
KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
MODELS = {"scripted": "", "anthropic": "default", "openai": "openai:gpt-5.5"}
SCRIPT_PRICES = {"*": {"input": 3.0, "output": 15.0, "cache_read": 0.3, "cache_write": 3.75}}
"""What the scripted tokens would cost at a common model's prices, so that the cost table shows something."""


@command
def demo(
    console: Console,
    what: Annotated[
        Literal["agent", "team"], typer.Argument(metavar="agent|team", help="One agent, or teams in workflows")
    ] = "agent",
    workflow: Annotated[
        str, typer.Option("--workflow", metavar="NAME|all", help="With `team`: which of the built-in workflows (all)")
    ] = "",
    provider: Annotated[
        Literal["scripted", "anthropic", "openai"],
        typer.Option("--provider", help="Who answers: a script (no key, no network), or a real model"),
    ] = "scripted",
    model: Annotated[str, typer.Option("-m", "--model", help="Another model of the provider")] = "",
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the files afterwards, to look at")] = True,
) -> int:
    """Run real sessions on a small project with a real bug, in a daemon of its own

    The agent reads, searches, edits and runs the project's real tests until they pass. A second client attaches in
    the middle and gets the same events from the beginning. With `team` the built-in workflows run at the same time,
    each with its agents on a copy of the project under git, and what they claim is checked. Nothing outside a
    temporary directory is touched.

    Example: `ottoctl demo team --workflow bug-fix-loop`
    """
    if workflow and what != "team":
        raise OttoError("--workflow belongs to `ottoctl demo team`", code="usage")
    _check(provider)
    from ottoctl.endings import Endings
    from ottoctl.private import PrivateDaemon

    settings: dict[str, object] = {"providers": {"scripted": {"prices": SCRIPT_PRICES}}}
    key = KEYS.get(provider, "")
    env = {key: os.environ[key]} if key else {}
    chosen = model or MODELS[provider]
    if chosen and ":" not in chosen and provider != "scripted" and chosen != "default":
        chosen = f"{provider}:{chosen}"
    if what == "team":
        from ottoctl.demo import team

        workflows = team.chosen(workflow)
        with Endings() as endings, PrivateDaemon({**settings, **team.SETTINGS}, env=env, keep=keep) as daemon:
            return endings.run(team.show(console, daemon, workflows, chosen))
    with Endings() as endings, PrivateDaemon(settings, env=env, keep=keep) as daemon:
        project = daemon.workdir / "tally"
        with as_file(files("ottoctl") / "demo" / "project") as source:
            shutil.copytree(source, project, ignore=shutil.ignore_patterns("__pycache__"))
        return endings.run(_show(console, daemon, project, chosen))


def _check(provider: str) -> None:
    key = KEYS.get(provider, "")
    if key and not os.environ.get(key):
        raise OttoError(f"{key} is not set", mend=f"export {key}=…, or leave --provider away", code="auth")
    found = subprocess.run([sys.executable, "-P", "-c", "import pytest"], capture_output=True, check=False)
    if found.returncode:
        raise OttoError(
            "the demonstration runs a real pytest, and there is none", mend=f"{sys.executable} -m pip install pytest"
        )


async def _show(console: Console, daemon: object, project: Path, model: str) -> int:
    from ottoctl.commands.view import View, watch
    from ottoctl.demo.report import report
    from ottoctl.demo.witness import Witness
    from ottoctl.private import PrivateDaemon
    from ottoctl.results import run_result

    assert isinstance(daemon, PrivateDaemon)
    before = _sources(project)
    path = os.pathsep.join([str(Path(sys.executable).parent), daemon.env["PATH"]])
    console.message(f"a daemon of its own runs in {daemon.base} (pid {daemon.pid})")
    console.message(f"project: {project}, task: {TASK}\n")
    async with daemon.async_client() as otto:
        session = await otto.start("fixer", TASK, cwd=project, model=model, env={**os.environ, "PATH": path})
        view = View(console, live=True, show_input=False, show_turns=False)
        witness = Witness(daemon, session.id)
        events = witness.listen(session.events(session.from_offset))
        await watch(view, events)
        second = await witness.finish()
        info = await session.info()
        status = await otto.status()
    after, tests = _sources(project), _run_tests(project)
    text = report(
        before=before,
        after=after,
        tests=tests,
        result=run_result(info),
        second=second,
        status=status,
        base=daemon.base if daemon.keep else None,
        color=console.color,
    )
    console.write(text)
    if second.difference:
        console.message(f"the second client saw something else: {second.difference}")
        return FAILED
    status_shown = status_of_cause(info.cause)
    # An agent that says it is done while the tests still fail has not done its task.
    return FAILED if status_shown == OK and "failed" in tests else status_shown


def _sources(project: Path) -> dict[str, str]:
    return {str(p.relative_to(project)): p.read_text() for p in sorted(project.rglob("*.py"))}


def _run_tests(project: Path) -> str:
    """The project's tests once more, by us and not by the agent: the last line of what pytest says."""
    from ottoctl.environment import shared_environment

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env={**shared_environment(os.environ), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[-1] if lines else done.stderr.strip()
