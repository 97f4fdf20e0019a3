"""A workflow's process that goes on with what another one noted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ottod.core.workflow import WorkflowMachine
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker_requests import SpawnChild
from ottod.protocol.workflows import Compensation, ResolvedWorkflow, Step, WorkflowSpec
from ottod.worker.workflow_run import WorkflowRun
from ottod.worker.workflow_step import Workshop
from tests.fakes.nursery import Nursery
from tests.fakes.session_place import FakeArtifacts
from tests.worker.test_workflow_artifacts import of_steps

DEADLINE_S = 10.0
AGENT = AgentSpec(name="a")
SIDE_BY_SIDE = WorkflowSpec(
    name="w",
    mode="parallel",
    steps=(Step(id="x", agent="a", compensate=Compensation(agent="a", task="undo it")), Step(id="y", agent="a")),
)


def going_on(nursery: Nursery, spec: WorkflowSpec, past: list[j.WorkflowEntry]) -> tuple[WorkflowRun, Workshop]:
    nobody: Any = None
    machine = WorkflowMachine(ResolvedWorkflow(spec=spec, agents=(AGENT,)))
    line: Any = nursery
    run = WorkflowRun(machine, line, journal=line, approvals=nobody, on_change=lambda: None)
    run.restore(past)
    artifacts = of_steps(FakeArtifacts(), spec)
    shop = Workshop(
        task="go", session="s-w", agents={"a": AGENT}, children=nursery.children, artifacts=artifacts, tree=None
    )
    return run, shop


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_step_that_was_being_stopped_when_its_process_was_lost(is_noted: bool) -> None:
    """What it had completed by then is undone; a session that could not be noted does not go on beside that."""
    broken = Failure(code="failed", message="y broke")
    past: list[j.WorkflowEntry] = [
        j.WorkflowBegun(at_ns=1),
        j.StepBegun(path="x", attempt=1, agent="a", at_ns=2),
        j.StepBegun(path="y", attempt=1, agent="a", at_ns=2),
        j.StepEnded(path="y", attempt=1, outcome="failed", at_ns=3, is_final=True, failure=broken),
    ]

    async def main() -> None:
        nursery = Nursery()
        nursery.start(SpawnChild(agent="a", task="go", key="x#1"))
        if is_noted:
            nursery.end("x#1", "done")
            nursery.entries.append(j.ChildStarted(child="x#1", agent="a", task="go", key="x#1", is_reported=False))
            nursery.entries.append(j.ChildEnded(child="x#1", agent="a", cause=Cause(kind="completed")))
        await nursery.reborn()
        run, shop = going_on(nursery, SIDE_BY_SIDE, past)
        serving = asyncio.ensure_future(run.serve(shop))
        if is_noted:
            while nursery.bodies[-1].key != "undo:x#1":
                await asyncio.sleep(0)
            nursery.end("undo:x#1", "undone")
        end = await asyncio.wait_for(serving, DEADLINE_S)
        assert end is not None and end.outcome == "failed" and end.failure == broken
        assert nursery.stopped == ([] if is_noted else ["x#1"])
        assert len(nursery.bodies) == 1 + is_noted
        (ended,) = (e for e in nursery.entries if isinstance(e, j.StepEnded))
        assert (ended.outcome, ended.session) == ("completed" if is_noted else "cancelled", "x#1")
        await run.aclose()

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S * 2))
