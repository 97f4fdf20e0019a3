"""A workflow's process that goes on with what another one noted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from ottod.core.workflow import WorkflowMachine
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.specs import AgentSpec, Backoff
from ottod.protocol.worker_requests import SpawnChild
from ottod.protocol.workflows import Compensation, ResolvedWorkflow, Retry, Step, WorkflowSpec
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


def going_on(
    nursery: Nursery,
    spec: WorkflowSpec,
    past: list[j.WorkflowEntry],
    clock: Callable[[], int] = time.monotonic_ns,
) -> tuple[WorkflowRun, Workshop]:
    nobody: Any = None
    machine = WorkflowMachine(ResolvedWorkflow(spec=spec, agents=(AGENT,)))
    line: Any = nursery
    run = WorkflowRun(machine, line, journal=line, approvals=nobody, on_change=lambda: None, clock=clock)
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


HOUR_NS = 3_600_000_000_000
AGAIN = WorkflowSpec(
    name="w",
    steps=(
        Step(id="x", agent="a", retry=Retry(attempts=2, backoff=Backoff(base_s=0.01, jitter=0))),
        Step(id="y", agent="a", timeout_s=60.0),
    ),
)


def test_a_clock_that_was_ahead_for_a_moment_holds_nothing_up() -> None:
    """A delay is over when it has passed, though the wall clock is an hour behind what the journal says."""
    ahead_ns = time.time_ns() + HOUR_NS
    past: list[j.WorkflowEntry] = [
        j.WorkflowBegun(at_ns=ahead_ns),
        j.StepBegun(path="x", attempt=1, agent="a", at_ns=ahead_ns),
        j.StepEnded(path="x", attempt=1, outcome="failed", at_ns=ahead_ns),
    ]

    async def main() -> None:
        nursery = Nursery()
        run, shop = going_on(nursery, AGAIN, past)
        serving = asyncio.ensure_future(run.serve(shop))
        await asyncio.wait_for(nursery.started.wait(), DEADLINE_S)
        assert nursery.bodies[0].key == "x#2"
        run.suspend()
        assert await asyncio.wait_for(serving, DEADLINE_S) is None
        await run.aclose()

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S * 2))


def test_time_goes_on_while_the_wall_clock_is_behind() -> None:
    """Each step has all of its time, and no more: how much has passed is noted, and so known to the next process."""
    ahead_ns = time.time_ns() + HOUR_NS
    clock = [0]
    past: list[j.WorkflowEntry] = [j.WorkflowBegun(at_ns=ahead_ns)]

    async def main() -> None:
        nursery = Nursery()
        run, _ = going_on(nursery, AGAIN, past, clock=lambda: clock[0])
        clock[0] = 50_000_000_000
        run.happen(j.StepEnded(path="x", attempt=1, outcome="completed", at_ns=time.time_ns()))
        assert run.machine.now_ns == ahead_ns + 50_000_000_000
        assert run.machine.due_ns == ahead_ns + 110_000_000_000
        assert [type(entry).__name__ for entry in nursery.entries] == ["WorkflowAwoke", "StepEnded"]
        again, _ = going_on(nursery, AGAIN, [*past, *nursery.entries])  # type: ignore[list-item]
        assert (again.machine.now_ns, again.machine.due_ns) == (run.machine.now_ns, run.machine.due_ns)
        # What has been noted is not noted again.
        del nursery.entries[:]
        run.happen(j.StepBegun(path="y", attempt=1, agent="a", at_ns=ahead_ns + HOUR_NS))
        assert [type(entry).__name__ for entry in nursery.entries] == ["StepBegun"]

    asyncio.run(main())
