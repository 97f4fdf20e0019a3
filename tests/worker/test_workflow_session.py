"""A workflow's session that is told something while it takes what its workflow begins with."""

from __future__ import annotations

import os

import pytest

from ottod.core.resume import workflow_heir
from ottod.errors import RefusedError
from ottod.protocol import journal as j
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker import SetPause, StopTurn
from ottod.protocol.workflows import ResolvedWorkflow, Sink, Step, WorkflowSpec
from tests.fakes.fake_root import FakeRoot

FLOW = ResolvedWorkflow(
    spec=WorkflowSpec(name="w", steps=(Step(id="a", agent="a"),), sinks=(Sink(to="git_branch"),), summarizer=""),
    agents=(AgentSpec(name="a"),),
)


class SlowGit:
    """A git that looks at the working directory for as long as one likes."""

    def __init__(self, root: FakeRoot) -> None:
        self.asked, self._on = root.workdir / "asked", root.workdir / "on"
        self._bin = root.workdir / "bin"
        self._bin.mkdir()
        program = self._bin / "git"
        program.write_text(f"#!/bin/sh\n: > {self.asked}\nwhile [ ! -e {self._on} ]; do sleep 0.02; done\n")
        program.chmod(0o755)
        self.env = {"PATH": f"{self._bin}:{os.environ['PATH']}"}

    def bear(self, root: FakeRoot) -> None:
        """An incarnation that takes what its workflow begins with, and goes on doing so."""
        self.asked.unlink(missing_ok=True)
        root.bear("git", workflow=FLOW, env=self.env)
        root.until("it looks at the working directory", self.asked.exists)

    def go_on(self) -> None:
        self._on.touch()


def of_workflow(root: FakeRoot) -> list[j.JournalEntry]:
    return [e for e in root.journal() if isinstance(e, j.WorkflowEntry)]  # type: ignore[arg-type, misc]


def test_one_that_is_stopped_while_it_takes_its_inputs_never_began(root: FakeRoot) -> None:
    """Nobody may resume it and be told that it completed."""
    git = SlowGit(root)
    git.bear(root)
    assert root.command(StopTurn(reason="enough")) is None
    git.go_on()
    assert root.finish().cause.kind == "cancelled"
    assert not of_workflow(root) and not root.requests
    with pytest.raises(RefusedError, match="had not begun"):
        workflow_heir(root.journal(), origin=root.session, at_ns=1)


def test_one_that_is_paused_while_it_takes_its_inputs_begins_in_its_next_process(
    root_with_children: FakeRoot,
) -> None:
    """It was killed before it could note that it begins; what it has noted is not that it has begun."""
    root = root_with_children
    git = SlowGit(root)
    git.bear(root)
    assert root.command(SetPause(paused=True)) is None
    root.kill()
    git.bear(root)
    git.go_on()
    root.until("it begins", lambda: any(isinstance(e, j.WorkflowBegun) for e in of_workflow(root)))
    assert root.command(SetPause(paused=False)) is None
    root.until("its step", lambda: root.requests)
