"""What the steps of a workflow are handed, and what its conditions know: only what it has itself collected."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ottod.core.step_brief import Stand
from ottod.core.workflow import WorkflowMachine
from ottod.core.workflow_condition import holds
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.workflows import Condition, Output, ResolvedWorkflow, Step, WorkflowInput, WorkflowSpec
from ottod.worker.workflow_artifacts import INPUTS_DIR, StepArtifacts
from tests.fakes.session_place import FakeArtifacts

APPROVED = Condition(artifact="review", field="verdict", equals="approved")
SPEC = WorkflowSpec(
    name="w",
    mode="loop",
    inputs=(WorkflowInput(name="ticket"),),
    steps=(Step(id="review", agent="a", inputs=("ticket", "review"), outputs=(Output(name="review"),)),),
    until=APPROVED,
    max_iterations=3,
    summarize_above_bytes=256,
)


async def no_summary(info: ArtifactInfo, text: str) -> Stand | None:
    return None


def of_steps(shelf: FakeArtifacts, spec: WorkflowSpec = SPEC, summarize: Any = no_summary) -> StepArtifacts:
    return StepArtifacts(spec, shelf, summarize=summarize)  # type: ignore[arg-type]


async def begun(artifacts: StepArtifacts, tmp_path: Path) -> j.WorkflowBegun:
    """What a workflow notes that is given a ticket."""
    (tmp_path / INPUTS_DIR).mkdir(exist_ok=True)
    (tmp_path / INPUTS_DIR / "ticket").write_text("build a bridge")
    left = await artifacts.take_inputs(session_dir=str(tmp_path), cwd=str(tmp_path), hidden=())
    return j.WorkflowBegun(at_ns=1, artifacts=left, facts=await artifacts.facts(left))


def test_what_others_of_the_tree_left_is_not_the_workflows(tmp_path: Path) -> None:
    """An approved report and a newer ticket of somebody else's are neither handed on nor known to conditions."""

    async def main() -> None:
        shelf = FakeArtifacts()
        await shelf.write(b'{"verdict": "approved"}', name="review", producer="s-other")
        artifacts = of_steps(shelf)
        entry = await begun(artifacts, tmp_path)
        await shelf.write(b"another ticket", name="ticket", producer="s-other")
        artifacts.heard(entry)
        assert entry.artifacts == ("ticket@1",) and not entry.facts
        step = SPEC.steps[0]
        assert await artifacts.sources(step) == ("ticket@1",)
        # An attempt that left something wrong has collected nothing.
        failed = j.StepEnded(path="[1]/review", attempt=1, outcome="failed", at_ns=2)
        artifacts.heard(failed)
        assert await artifacts.sources(step) == ("ticket@1",)
        mine = await shelf.write(b'{"verdict": "again"}', name="review", producer="s-mine")
        await shelf.write(b'{"verdict": "approved"}', name="review", producer="s-other")
        left = (f"review@{mine.version}",)
        facts = await artifacts.facts(left)
        artifacts.heard(j.StepEnded(path="[1]/review", attempt=2, outcome="completed", at_ns=3, artifacts=left))
        assert await artifacts.sources(step) == ("ticket@1", "review@2")
        assert [(fact.artifact, fact.version, fact.fields) for fact in facts] == [
            (mine.artifact, 2, {"verdict": "again"})
        ]
        assert not holds(APPROVED, facts={fact.name: fact for fact in facts}, ends={})

    asyncio.run(main())


def test_a_journal_that_does_not_name_the_inputs_goes_on(tmp_path: Path) -> None:
    """It was written before inputs were noted: they are found as they were then, the newest of their names."""

    async def main() -> None:
        shelf = FakeArtifacts()
        entry = await begun(of_steps(shelf), tmp_path)
        await shelf.write(b"another ticket", name="ticket", producer="s-other")
        artifacts = of_steps(shelf)
        artifacts.heard(j.WorkflowBegun(at_ns=entry.at_ns))
        assert await artifacts.sources(SPEC.steps[0]) == ("ticket@2",)

    asyncio.run(main())


def test_facts_that_a_journal_has_of_failed_attempts_still_count() -> None:
    """A machine comes to where the one before it was, also if that had learned them when they were still noted."""
    machine = WorkflowMachine(ResolvedWorkflow(spec=SPEC))
    machine.step(j.WorkflowBegun(at_ns=1))
    fact = j.ArtifactFacts(name="review", version=1, fields={"verdict": "approved"})
    machine.step(j.StepEnded(path="[1]/review", attempt=1, outcome="failed", at_ns=2, facts=(fact,)))
    assert machine.facts["review"] == fact
