"""Each wrong definition is refused before anything starts: by `validate`, by `run`, and from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ottod.errors import OttoError
from ottod.protocol.specs import AgentSpec, Budgets
from ottod.protocol.workflows import Output, Step, WorkflowSpec
from tests.daemon.harness import RealDaemon

WRONG: dict[str, tuple[str, int, str, str]] = {
    "cycle": (
        "mode: graph\nsteps:\n  - {id: a, agent: coder, needs: b}\n  - {id: b, agent: coder, needs: a}\n",
        3,
        "a cycle: a needs b needs a",
        "remove one of these needs or inputs",
    ),
    "unknown-agent": (
        "steps:\n  - {agent: codr}\n",
        2,
        "unknown agent 'codr' — did you mean 'coder'?",
        "known agents",
    ),
    "unknown-input": (
        "steps:\n  - {agent: coder, outputs: [notes]}\n  - {agent: reviewer, inputs: [note]}\n",
        3,
        "unknown input 'note' of step 'reviewer'",
        "did you mean 'notes'?",
    ),
    "mismatch": (
        (
            "steps:\n  - {agent: coder, outputs: [{name: plan, kind: ticket}]}\n"
            "  - {agent: reviewer, inputs: [{name: plan, kind: design}]}\n"
        ),
        3,
        "expects 'plan' to be a design, and it is a ticket",
        "write 'ticket'",
    ),
    "unbounded": ("mode: loop\nsteps:\n  - {agent: coder}\n", 1, "a loop without a bound", "add `max_iterations:`"),
    "too-dear": (
        "budgets: {usd: 1}\nsteps:\n  - {agent: coder, budgets: {usd: 2}}\n",
        3,
        "$2.00, and the workflow has $1.00",
        "write $1.00 or less",
    ),
}
"""Name → what the file says, the line of the mistake, and words of what is said of it and of its mend."""


def ottoctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ottoctl", *arguments]
    return subprocess.run(argv, env=daemon.env, cwd=daemon.workdir, capture_output=True, timeout=60, text=True)


def test_wrong_files_are_refused_with_their_place(daemon: RealDaemon) -> None:
    """By validate, by a dry run and by a run in the same words; no session is made of any."""
    directory = daemon.workdir / ".otto" / "workflows"
    directory.mkdir(parents=True)
    for name, (text, *_) in WRONG.items():
        (directory / f"{name}.yml").write_text(text)
    validated = ottoctl(daemon, "workflow", "validate", *WRONG, "-o", "json")
    assert validated.returncode == 2
    for verdict in json.loads(validated.stdout):
        _, line, message, mend = WRONG[verdict["workflow"]]
        error = verdict["errors"][0]
        assert len(verdict["errors"]) == (2 if verdict["workflow"] == "unbounded" else 1)
        assert error["file"].endswith(f"{verdict['workflow']}.yml") and error["line"] == line, error
        assert message in error["message"] and mend in error["mend"], error
    for name, (_, line, message, mend) in WRONG.items():
        run = ottoctl(daemon, "workflow", "run", name, "go")
        assert run.returncode == 2, (name, run.stdout, run.stderr)
        assert f"{name}.yml:{line}:" in run.stderr and message in run.stderr and mend in run.stderr, run.stderr
    dry = ottoctl(daemon, "workflow", "run", "cycle", "go", "--dry-run")
    assert dry.returncode == 2 and "cycle.yml:3:" in dry.stderr
    with daemon.client() as otto:
        assert otto.list(all=True) == ()


def step(name: str, agent: str = "coder", **fields: Any) -> Step:
    return Step(id=name, agent=agent, **fields)


PYTHON: dict[str, tuple[WorkflowSpec, str]] = {
    "cycle": (
        WorkflowSpec(name="w", mode="graph", steps=(step("a", needs=("b",)), step("b", needs=("a",)))),
        "steps[0].needs: a cycle: a needs b needs a",
    ),
    "unknown-agent": (
        WorkflowSpec(name="w", steps=(step("a", "codr"),)),
        "steps[0].agent: unknown agent 'codr' — did you mean 'coder'?",
    ),
    "unknown-input": (
        WorkflowSpec(name="w", steps=(step("a", inputs=("note",)),)),
        "steps[0].inputs[0]: unknown input 'note'",
    ),
    "mismatch": (
        WorkflowSpec(
            name="w",
            steps=(
                step("a", outputs=(Output(name="plan", kind="ticket"),)),
                step("b", inputs=("plan",), expects={"plan": "design"}),
            ),
        ),
        "steps[1].expects.plan: step 'b' expects 'plan' to be a design",
    ),
    "unbounded": (WorkflowSpec(name="w", mode="loop", steps=(step("a"),)), "a loop without a bound"),
    "too-dear": (
        WorkflowSpec(name="w", budgets=Budgets(usd=1), steps=(step("a", budgets=Budgets(usd=2)),)),
        "steps[0].budgets.usd: budgets.usd of step 'a' is $2.00, and the workflow has $1.00",
    ),
}


def test_wrong_objects_are_refused_by_their_path(daemon: RealDaemon) -> None:
    """The library sends what Python made; the daemon checks it as it would a file."""
    with daemon.client() as otto:
        for name, (spec, message) in PYTHON.items():
            with pytest.raises(OttoError) as failure:
                otto.start_workflow(spec=spec, task="go", cwd=daemon.workdir)
            assert failure.value.message.startswith(message) or name == "unbounded", (name, failure.value.message)
            assert failure.value.code == "bad_config" and failure.value.mend, name
        # Structs do not check their fields. The daemon would take such a message for a broken client's.
        for value in ("soon", object()):
            odd = WorkflowSpec(name="w", steps=(step("a", timeout_s=value),))
            with pytest.raises(OttoError, match="the spec is wrong") as failure:
                otto.start_workflow(spec=odd, task="go", cwd=daemon.workdir)
            assert failure.value.code == "bad_config"
        with pytest.raises(OttoError, match="unknown tool 'shel'"):
            otto.start(spec=AgentSpec(name="x", tools=("shel",)), task="go", cwd=daemon.workdir)
        assert otto.list(all=True) == ()
