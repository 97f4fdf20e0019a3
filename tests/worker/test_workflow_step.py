"""An attempt of a step: stopped while it waits for a summary, the moment of its end, and what summaries are."""

from __future__ import annotations

import asyncio
import time

import pytest

from ottod.core.step_brief import READ_TOOL, Stand
from ottod.core.workflow_orders import Compensate, StartStep
from ottod.errors import ToolError
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker_requests import SpawnChild
from ottod.protocol.workflows import Compensation
from ottod.worker import summaries
from ottod.worker.summaries import Summaries
from ottod.worker.workflow_step import Attempt, Workshop
from tests.fakes.nursery import Nursery
from tests.fakes.session_place import FakeArtifacts
from tests.worker.test_workflow_artifacts import SPEC, of_steps

DEADLINE_S = 10.0
LONG = b"long " * 100
WRITER = AgentSpec(name="writer", tools=(READ_TOOL,))


def writing(nursery: Nursery, shelf: FakeArtifacts, agent: AgentSpec = WRITER) -> Summaries:
    return Summaries(agent, children=nursery.children, artifacts=shelf, link=nursery)  # type: ignore[arg-type]


class Camera:
    """A `Tree` whose states say when they were complete, and that takes one at a time."""

    def __init__(self) -> None:
        self._is_busy = False

    async def state(self) -> str:
        assert not self._is_busy, "a state that is taken beside another may be older than it, and end later"
        self._is_busy = True
        await asyncio.sleep(0)
        self._is_busy = False
        return str(time.time_ns())

    async def has(self, state: str) -> bool:
        return True

    async def diff(self, before: str, after: str) -> str:
        return ""


def attempt(
    nursery: Nursery, shelf: FakeArtifacts, made: Summaries, tree: Camera | None = None
) -> tuple[Attempt, StartStep]:
    artifacts = of_steps(shelf, summarize=made.of)
    artifacts.heard(j.WorkflowBegun(at_ns=1, artifacts=("ticket@1",)))
    order = StartStep(path="[1]/review", attempt=1, agent="a", step=SPEC.steps[0])
    shop = Workshop(
        task="go",
        session="s-w",
        agents={"a": AgentSpec(name="a")},
        children=nursery.children,
        artifacts=artifacts,
        tree=tree,
        has_branch=tree is not None,
    )
    return Attempt(shop, order), order


async def begin(entry: j.StepBegun) -> None:
    pass


def test_a_step_that_waits_for_its_summary_can_be_stopped() -> None:
    """It ends without a session; the summary's goes on as long as another step waits for it, and no longer."""

    async def main() -> None:
        nursery, shelf = Nursery(), FakeArtifacts()
        await shelf.write(LONG, name="ticket")
        made = writing(nursery, shelf)
        pairs = [attempt(nursery, shelf, made) for _ in range(2)]
        tasks = [asyncio.ensure_future(each.make(order, begin)) for each, order in pairs]
        await nursery.started.wait()
        await asyncio.sleep(0)
        for (each, _), task in zip(pairs, tasks, strict=True):
            assert not nursery.stopped
            each.stop("it took too long")
            ended = await asyncio.wait_for(task, DEADLINE_S)
            assert ended.outcome == "failed" and ended.failure is not None and ended.failure.code == "cancelled"
            assert not ended.session
            await asyncio.sleep(0)
        (body,) = nursery.bodies
        assert nursery.stopped == [body.key]
        # Whoever tries again has another session for it.
        (again, order) = attempt(nursery, shelf, made)
        nursery.started.clear()
        task = asyncio.ensure_future(again.make(order, begin))
        await nursery.started.wait()
        nursery.end(nursery.bodies[-1].key, "short")
        while len(nursery.bodies) < 3:
            await asyncio.sleep(0)
        assert "short" in nursery.bodies[-1].task
        nursery.end(nursery.bodies[-1].key, "reviewed")
        assert (await task).outcome == "completed"

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S * 3))


def test_a_summary_that_was_given_up_is_written_after_all_by_the_next_process() -> None:
    """However often it was; one that is stopped by hand while it is waited for is not begun again."""

    async def main() -> None:
        nursery, shelf = Nursery(), FakeArtifacts()
        info = await shelf.write(LONG, name="ticket")
        for number in range(3):
            task = asyncio.ensure_future(writing(nursery, shelf).of(info, LONG.decode()))
            while len(nursery.bodies) == number:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            while len(nursery.stopped) == number or not nursery.has_heard:
                await asyncio.sleep(0)
            await nursery.reborn()
        for number, kind in ((3, "cancelled"), (4, "completed")):
            task = asyncio.ensure_future(writing(nursery, shelf).of(info, LONG.decode()))
            while len(nursery.bodies) == number:
                await asyncio.sleep(0)
            nursery.end(nursery.bodies[-1].key, "short", kind)
            assert await task == (Stand(text="short") if kind == "completed" else None)
        assert len({body.key for body in nursery.bodies}) == len(nursery.bodies) == 5

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def of_step(nursery: Nursery, undoes: Compensation | None = None) -> tuple[Attempt, StartStep]:
    """An attempt of a step that an earlier process has begun."""
    each, order = attempt(nursery, FakeArtifacts(), writing(nursery, FakeArtifacts()))
    if undoes is not None:
        each = Attempt(each._shop, Compensate(path=order.path, attempt=1, compensation=undoes))
    else:
        each.begun = j.StepBegun(path=order.path, attempt=1, agent="a", at_ns=1)
    each.was_begun = True
    return each, order


def test_what_a_step_had_done_before_its_process_was_lost_counts_though_it_is_stopped_now() -> None:
    """Its session's end is in the journal: else nobody would undo it, or it would be done again."""

    async def main() -> None:
        nursery = Nursery()
        lost, order = of_step(nursery)
        lost.was_begun = False
        task = asyncio.ensure_future(lost.make(order, begin))
        await nursery.started.wait()
        nursery.end(lost.key, "reviewed")
        await asyncio.wait_for(task, DEADLINE_S)
        await nursery.reborn()
        each, order = of_step(nursery)
        each.stop("it is not needed")
        ended = await asyncio.wait_for(each.make(order, begin), DEADLINE_S)
        assert ended.failure is None, ended.failure
        assert (ended.outcome, ended.session, ended.artifacts) == ("completed", each.key, ("review@1",))

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S * 3))


@pytest.mark.parametrize("undoes", [None, Compensation(agent="a", task="undo it")])
def test_a_session_that_could_not_be_noted_is_stopped_with_its_step(undoes: Compensation | None) -> None:
    """Root had started it when the process was lost. If it had not, it does not now."""

    async def main() -> None:
        for is_known in (True, False):
            nursery = Nursery()
            each, order = of_step(nursery, undoes)
            if is_known:
                nursery.start(SpawnChild(agent="a", task="go", key=each.key))
            await nursery.reborn()
            each, order = of_step(nursery, undoes)
            each.stop("it is not needed")
            if undoes is None:
                ended: j.StepEnded | j.CompensationEnded = await asyncio.wait_for(each.make(order, begin), DEADLINE_S)
            else:
                compensate = Compensate(path=order.path, attempt=1, compensation=undoes)
                ended = await asyncio.wait_for(each.undo(compensate), DEADLINE_S)
            known = [each.key] if is_known else []
            assert nursery.stopped == known and [body.key for body in nursery.bodies] == known
            assert [e.child for e in nursery.entries if isinstance(e, j.ChildStarted)] == known
            assert ended.failure is not None and ended.failure.code == "cancelled"
            assert ended.session == "".join(known)

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S * 3))


def test_a_step_whose_outputs_cannot_be_looked_at_has_failed() -> None:
    """A condition on them would else not hold, and nobody would know why: it is tried again, or says so."""

    class Shelf(FakeArtifacts):
        async def read(self, artifact: str, *, version: int = 0) -> tuple[ArtifactInfo, bytes]:
            if artifact == "review":
                raise ToolError("it cannot be read", code="unreadable")
            return await super().read(artifact, version=version)

    async def main() -> None:
        nursery, shelf = Nursery(), Shelf()
        await shelf.write(b"short", name="ticket")
        each, order = attempt(nursery, shelf, writing(nursery, shelf))
        task = asyncio.ensure_future(each.make(order, begin))
        await nursery.started.wait()
        nursery.end(each.key, '{"verdict": "approved"}')
        ended = await asyncio.wait_for(task, DEADLINE_S)
        assert (ended.outcome, ended.artifacts, ended.facts, ended.is_final) == ("failed", (), (), False)
        assert ended.failure is not None and ended.failure.code == "unreadable"

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S * 2))


def test_it_is_noted_that_somebody_stopped_a_steps_session() -> None:
    """By hand: not what the workflow itself stops."""

    async def main() -> None:
        for is_ordered in (False, True):
            nursery, shelf = Nursery(), FakeArtifacts()
            await shelf.write(b"short", name="ticket")
            each, order = attempt(nursery, shelf, writing(nursery, shelf))
            task = asyncio.ensure_future(each.make(order, begin))
            await nursery.started.wait()
            await asyncio.sleep(0)
            if is_ordered:
                each.stop("it is not needed")
            else:
                nursery.stop(each.key)
            ended = await asyncio.wait_for(task, DEADLINE_S)
            assert ended.outcome == "cancelled" and ended.is_final and ended.is_stopped != is_ordered

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_the_moment_of_a_steps_end_is_that_of_its_state() -> None:
    """Of steps side by side, whichever ends later has the newer state of the working directory."""

    async def main() -> None:
        nursery, shelf = Nursery(), FakeArtifacts()
        await shelf.write(b"short", name="ticket")
        (one, order) = attempt(nursery, shelf, writing(nursery, shelf), Camera())
        shop = one._shop
        orders = [order, *(StartStep(path=f"[1]/{n}", attempt=1, agent="a", step=order.step) for n in range(3))]
        noted: list[j.StepEnded] = []

        async def make(order: StartStep) -> None:
            noted.append(await Attempt(shop, order).make(order, begin))

        tasks = [asyncio.ensure_future(make(each)) for each in orders]
        while len(nursery.bodies) < len(orders):
            await asyncio.sleep(0)
        for body in nursery.bodies:
            nursery.end(body.key, "done")
        await asyncio.gather(*tasks)
        states = [int(each.tree) for each in noted]
        assert states == sorted(states) and len(states) == len(orders)
        assert all(state <= each.at_ns for state, each in zip(states, noted, strict=True))
        assert all(each.at_ns <= state for each, state in zip(noted, states[1:], strict=False))

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_a_summary_is_kept_with_its_source_and_knows_what_it_has_not_read() -> None:
    """The task of its writer has a bound: beyond that it is told so, and where the rest is."""

    async def summary(agent: AgentSpec, length: int) -> tuple[Stand | None, str, FakeArtifacts]:
        nursery, shelf = Nursery(), FakeArtifacts()
        info = await shelf.write(b"x" * length, name="ticket")
        task = asyncio.ensure_future(writing(nursery, shelf, agent).of(info, "x" * length))
        await nursery.started.wait()
        nursery.end(nursery.bodies[0].key, "short")
        return await task, nursery.bodies[0].task, shelf

    async def main() -> None:
        most = summaries.MAX_SUMMARIZED_CHARS
        stand, task, shelf = await summary(WRITER, most)
        assert stand == Stand(text="short") and "only the first" not in task
        kept: list[ArtifactInfo] = [info for info, _ in shelf.kept]
        assert [(info.name, info.kind, info.sources) for info in kept[1:]] == [
            ("summary-ticket", "summary", (kept[0].artifact,))
        ]
        stand, task, _ = await summary(WRITER, most + 1)
        assert stand == Stand(text="short")
        assert f"only the first {most} of its {most + 1} characters" in task
        assert f'artifact "{kept[0].artifact}" gives you the rest' in task
        stand, task, _ = await summary(AgentSpec(name="blind"), most + 1)
        assert stand == Stand(text="short", is_partial=True) and "gives you the rest" not in task

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))
