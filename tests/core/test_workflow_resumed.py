"""A workflow that has ended and goes on: what completed is not run again, the rest is, with all its attempts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.resume import workflow_heir
from ottod.core.workflow import WorkflowMachine
from ottod.core.workflow_orders import StartStep, WorkflowOrder
from ottod.errors import Failure, RefusedError
from ottod.protocol import journal as j
from ottod.protocol.specs import AgentSpec, Backoff
from ottod.protocol.workflows import Approval, Compensation, Condition, ResolvedWorkflow, Retry, Step, WorkflowSpec

NO_DELAY = Backoff(base_s=0, jitter=0)


def test_the_blocks_that_go_on_are_known() -> None:
    """Those that had completed do not, nor do iterations that are over; the workflow itself does."""

    def part(name: str, mode: str, *steps: Step, **fields: Any) -> Step:
        return Step(id=name, mode=mode, steps=steps, **fields)  # type: ignore[arg-type]

    each = part("each", "sequential", Step(id="s", agent="a"), Step(id="t", agent="a"))
    loop = part("loop", "loop", each, max_iterations=2)
    spec = WorkflowSpec(name="w", steps=(part("done", "parallel", Step(id="x", agent="a")), loop))
    first = Run(spec).to_end(lambda path: path == "loop[2]/each/t")
    assert not first.machine.open_blocks
    again = Run(spec, (*first.past, j.WorkflowResumed(at_ns=99, origin="s-0")))
    assert again.machine.open_blocks == {"", "loop", "loop[2]/each"}
    assert not again.to_end().machine.open_blocks


class Run:
    """A machine whose every entry is kept, as in a journal. `fails` says which paths do."""

    def __init__(self, spec: WorkflowSpec, past: tuple[j.WorkflowEntry, ...] = ()) -> None:
        self.machine = WorkflowMachine(ResolvedWorkflow(spec=spec, agents=(AgentSpec(name="a"),)))
        self.spec = spec
        self.past: list[j.WorkflowEntry] = []
        self.now_ns = 1
        self.ran: list[str] = []
        for entry in past:
            self.tell(entry)
        self.orders: list[WorkflowOrder] = self.machine.outstanding()

    def tell(self, entry: j.WorkflowEntry) -> list[WorkflowOrder]:
        self.now_ns = max(self.now_ns + 1, entry.at_ns)
        self.past.append(entry)
        return self.machine.step(entry)

    def to_end(self, fails: Any = lambda path: False, *, stop_after: int = 10**9) -> Run:
        if not self.past:
            self.orders = self.tell(j.WorkflowBegun(at_ns=1))
        while self.machine.end is None:
            starts = [order for order in self.orders if isinstance(order, StartStep)]
            self.orders = []
            if len(self.ran) >= stop_after and not self.machine.is_cancelled:
                self.orders = self.tell(j.WorkflowCancelled(at_ns=self.now_ns))
            for order in starts:
                self.ran.append(order.path)
                outcome = "failed" if fails(order.path) else "completed"
                failure = Failure(code="failed", message="no") if outcome == "failed" else None
                self.orders += self.tell(
                    j.StepEnded(
                        path=order.path, attempt=order.attempt, outcome=outcome, failure=failure, at_ns=self.now_ns
                    )  # type: ignore[arg-type]
                )
            if not starts and not self.orders and self.machine.end is None:
                assert self.machine.due_ns is not None
                self.orders = self.tell(j.WorkflowAwoke(at_ns=self.machine.due_ns))
        return self

    def resumed(self) -> Run:
        return Run(self.spec, (*self.past, j.WorkflowResumed(at_ns=self.now_ns + 1, origin="s-1")))

    @property
    def completed(self) -> set[str]:
        return {e.path for e in self.past if isinstance(e, j.StepEnded) and e.outcome == "completed"}


def step(name: str, **fields: Any) -> Step:
    return Step(id=name, agent="a", **fields)


def block(name: str, mode: str, *steps: Step, **fields: Any) -> Step:
    return Step(id=name, mode=mode, steps=steps, **fields)  # type: ignore[arg-type]


def flow(*steps: Step, **fields: Any) -> WorkflowSpec:
    return WorkflowSpec(name="w", steps=steps, **fields)


def test_it_goes_on_at_the_step_that_failed() -> None:
    """With all its attempts, and with those behind it that were not needed any more."""
    twice = Retry(attempts=2, backoff=NO_DELAY)
    first = Run(flow(step("a"), step("b", retry=twice), step("c"))).to_end(lambda path: path == "b")
    assert first.machine.end is not None and first.machine.end.outcome == "failed" and first.ran == ["a", "b", "b"]
    again = first.resumed().to_end(lambda path: path == "b")
    assert again.ran == ["b", "b"]
    assert again.resumed().to_end().ran == ["b", "c"]


def test_a_loop_goes_on_in_its_iteration() -> None:
    until = Condition(step="check")
    spec = flow(block("loop", "loop", step("build"), step("check"), max_iterations=3, until=until))
    first = Run(spec).to_end(lambda path: path == "loop[1]/check")
    assert first.resumed().to_end().ran == ["loop[1]/check"]


def test_a_graph_gets_what_was_skipped_for_a_failure_and_not_what_a_condition_skipped() -> None:
    unmet = Condition(artifact="none")
    nodes = (step("a"), step("b", needs=("a",)), step("c", needs=("b",)), step("d", when=unmet))
    first = Run(flow(block("g", "graph", *nodes, on_failure="wait_all"))).to_end(lambda path: path == "g/b")
    assert first.machine.skipped.keys() == {"g/c", "g/d"}
    again = first.resumed().to_end()
    assert again.ran == ["g/b", "g/c"] and again.machine.skipped.keys() == {"g/d"}


def test_leave_that_was_given_holds_and_that_was_denied_is_asked_for_again() -> None:
    spec = flow(step("a", approval=Approval()), step("b", approval=Approval()))
    run = Run(spec)
    run.tell(j.WorkflowBegun(at_ns=1))
    run.orders = run.tell(j.StepAnswered(path="a", at_ns=2))
    run.tell(j.StepEnded(path="a", attempt=1, outcome="completed", at_ns=3))
    run.tell(j.StepAnswered(path="b", at_ns=4, failure=Failure(code="denied", message="no")))
    assert run.machine.end is not None
    again = run.resumed()
    assert [type(order).__name__ for order in again.orders] == ["AskLeave"]
    again.orders = again.tell(j.StepAnswered(path="b", at_ns=9))
    assert again.to_end().ran == ["b"]


def test_what_was_undone_or_never_begun_is_not_gone_on_with() -> None:
    undo = Compensation(agent="a", task="undo")
    run = Run(flow(step("a", compensate=undo), step("b")))
    run.tell(j.WorkflowBegun(at_ns=1))
    run.tell(j.StepEnded(path="a", attempt=1, outcome="completed", at_ns=2))
    run.tell(j.StepEnded(path="b", attempt=1, outcome="failed", at_ns=3))
    run.tell(j.CompensationBegun(path="a", attempt=1, agent="a", at_ns=4))
    with pytest.raises(RefusedError, match="were undone"):
        workflow_heir(run.past, origin="s-1", at_ns=9)
    with pytest.raises(RefusedError, match="had not begun"):
        workflow_heir([], origin="s-1", at_ns=9)
    orders = run.tell(j.WorkflowResumed(at_ns=9, origin="s-1"))
    assert not [order for order in orders if isinstance(order, StartStep)]


@pytest.mark.parametrize("mode", ["sequential", "loop"])
def test_one_that_was_stopped_before_it_had_begun_begins(mode: Any) -> None:
    """As older journals have it: the stop came while the inputs were taken, and what they were was noted after it."""
    known = j.ArtifactFacts(name="ticket", version=1)
    spec = flow(step("a", when=Condition(artifact="ticket")), mode=mode, max_iterations=1 if mode == "loop" else None)
    run = Run(spec, (j.WorkflowCancelled(at_ns=1), j.WorkflowBegun(at_ns=2, facts=(known,))))
    assert run.machine.end is not None and run.machine.end.outcome == "cancelled"
    again = run.resumed()
    assert again.machine.end is None
    assert again.to_end().ran == ["[1]/a" if mode == "loop" else "a"]


def test_what_arrived_stays_and_what_failed_is_delivered_anew() -> None:
    """Also what was given up on: whoever resumes has mended it, and its attempts begin again."""
    run = Run(flow(step("a"))).to_end()
    gone = Failure(code="http_503", message="not now")

    def failed(parcel: str, attempt: int, *, is_final: bool) -> j.DeliveryFailed:
        return j.DeliveryFailed(sink="s", parcel=parcel, attempt=attempt, at_ns=1, failure=gone, is_final=is_final)

    arrived = j.Delivered(sink="s", parcel="a@1", at_ns=1)
    told = [
        failed("a@1", 1, is_final=False),
        arrived,
        failed("a@2", 1, is_final=False),
        failed("a@3", 5, is_final=True),
    ]
    heritage = workflow_heir([*run.past, *told], origin="s-1", at_ns=9)
    assert heritage.deliveries == (arrived,)


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> Step:
    name = "n" + str(draw(st.integers(0, 10**9)))
    optional = draw(st.booleans()) and draw(st.booleans())
    if depth and draw(st.booleans()):
        inner = draw(st.lists(trees(depth=depth - 1), min_size=1, max_size=3, unique_by=lambda s: s.id))
        mode = draw(st.sampled_from(["sequential", "parallel", "loop", "graph"]))
        policy = draw(st.sampled_from(["fail_fast", "wait_all", "quorum", "first_success"]))
        extra = {"max_iterations": draw(st.integers(1, 3)), "on_exhausted": "continue"} if mode == "loop" else {}
        return block(name, mode, *inner, on_failure=policy, optional=optional, **extra)
    return step(name, optional=optional, retry=Retry(attempts=draw(st.integers(1, 2)), backoff=NO_DELAY))


@given(
    st.lists(trees(), min_size=1, max_size=3, unique_by=lambda s: s.id),
    st.randoms(use_true_random=False),
    st.integers(0, 12),
    st.integers(1, 3),
)
def test_nothing_that_completed_runs_again(steps: list[Step], random: Any, stop_after: int, room: int) -> None:
    """Whatever failed or was stopped: gone on with often enough it completes, and each step did so once."""
    spec = flow(*steps, concurrency=room)
    run = Run(spec).to_end(lambda path: random.random() < 0.4, stop_after=stop_after)
    for last in (False, False, True):
        assert run.machine.end is not None
        if run.machine.end.outcome == "completed":
            return
        done = run.completed
        run = run.resumed()
        fails = (lambda path: False) if last else (lambda path: random.random() < 0.4)
        run.to_end(fails)
        assert not done.intersection(run.ran)
    assert run.machine.end is not None and run.machine.end.outcome == "completed"
