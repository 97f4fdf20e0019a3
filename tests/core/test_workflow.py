"""The workflow machine: by example, against random workflows and fates, and cut at every entry of its past."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.core.workflow_orders import (
    Compensate,
    EndWorkflow,
    StartStep,
    StopStep,
    TellIteration,
    TellSkipped,
    WithdrawLeave,
    WorkflowOrder,
)
from ottod.core.workflow_tree import MAX_DEPTH, any_round, blocks_around
from ottod.errors import ConfigError, Failure
from ottod.protocol import journal as j
from ottod.protocol.specs import Backoff
from ottod.protocol.workflows import (
    Approval,
    Compensation,
    Condition,
    Output,
    ResolvedWorkflow,
    Retry,
    Step,
    WorkflowSpec,
)
from tests.core.workflows import PLAIN, Bench, block, step, trees, workflow

UNDO = Compensation(agent="undoes", task="undo it")


def begun(spec: ResolvedWorkflow, **facts: dict[str, object]) -> Bench:
    return Bench(spec).begin(**facts)


def outcome(bench: Bench) -> str:
    assert bench.end is not None, f"it goes on: {bench.running}"
    return bench.end.outcome


def code(bench: Bench) -> str:
    assert bench.end is not None and bench.end.failure is not None
    return bench.end.failure.code


# ---------------------------------------------------------------- modes


def test_a_sequence_runs_in_order() -> None:
    bench = begun(workflow("sequential", step("a"), step("b"), step("c")))
    for path in ("a", "b", "c"):
        assert bench.running == [path]
        bench.ended(path)
    assert outcome(bench) == "completed"


def test_a_parallel_block_keeps_to_its_limit_and_to_that_of_the_workflow() -> None:
    many = [step(f"s{n}") for n in range(6)]
    bench = begun(workflow("sequential", block("p", "parallel", *many, concurrency=2)))
    assert bench.running == ["p/s0", "p/s1"] and bench.machine.waiting_count == 4
    bench.ended("p/s1")
    assert bench.running == ["p/s0", "p/s2"]
    assert len(begun(workflow("parallel", *many, concurrency=4)).running) == 4
    bench.pause(paused=True)
    assert bench.machine.waiting_count == 0, "it waits for nobody's room while it is paused"


def test_steps_of_a_graph_begin_as_soon_as_what_they_need_is_there() -> None:
    """Said with `needs`, or because a step takes what another leaves."""
    bench = begun(
        workflow(
            "graph",
            step("join", inputs=("left",), needs=("right",)),
            step("left", outputs=(Output(name="left"),)),
            step("right", needs=("root",)),
            step("root"),
        )
    )
    assert bench.running == ["left", "root"]
    bench.ended("root")
    assert bench.running == ["left", "right"]
    bench.ended("right")
    bench.ended("left")
    assert bench.running == ["join"]
    bench.ended("join")
    assert outcome(bench) == "completed"


def test_a_loop_ends_when_its_condition_holds() -> None:
    until = Condition(artifact="review", field="verdict", equals="APPROVED")
    bench = begun(workflow("loop", step("build"), step("review"), until=until, max_iterations=3))
    bench.ended("[1]/build")
    bench.ended("[1]/review", facts={"review": {"verdict": "NEEDS REVISION"}})
    assert bench.running == ["[2]/build"]
    bench.ended("[2]/build")
    bench.ended("[2]/review", facts={"review": {"verdict": "APPROVED"}})
    assert outcome(bench) == "completed"
    told = [order.iteration for order in bench.orders if isinstance(order, TellIteration)]
    assert told == [1, 2]
    assert next(o for o in bench.orders if isinstance(o, StartStep) and o.path == "[2]/build").iteration == 2


@pytest.mark.parametrize(("on_exhausted", "expected"), [("fail", "failed"), ("continue", "completed")])
def test_a_loop_that_is_exhausted_does_as_it_says(on_exhausted: str, expected: str) -> None:
    until = Condition(artifact="never")
    bench = begun(workflow("loop", step("a"), until=until, max_iterations=2, on_exhausted=on_exhausted))
    bench.ended("[1]/a")
    bench.ended("[2]/a")
    assert outcome(bench) == expected
    if expected == "failed":
        assert code(bench) == "exhausted"


def test_a_loop_without_a_condition_is_a_count() -> None:
    bench = begun(workflow("loop", step("a"), max_iterations=3))
    for n in (1, 2, 3):
        bench.ended(f"[{n}]/a")
    assert outcome(bench) == "completed"


def test_blocks_nest() -> None:
    """A loop within a branch of a graph within a sequence, each with paths of its own."""
    inner = block("fix", "loop", step("try"), max_iterations=2)
    bench = begun(workflow("sequential", block("g", "graph", inner, step("other")), step("last")))
    assert bench.running == ["g/fix[1]/try", "g/other"]
    bench.ended("g/other")
    bench.ended("g/fix[1]/try")
    assert bench.running == ["g/fix[2]/try"]
    bench.ended("g/fix[2]/try")
    bench.ended("last")
    assert outcome(bench) == "completed"


# ---------------------------------------------------------------- failures


def parallel(policy: str, **fields: object) -> Bench:
    return begun(workflow("parallel", step("a"), step("b"), step("c"), on_failure=policy, **fields))


def test_fail_fast_stops_the_others_and_waits_for_their_ends() -> None:
    bench = parallel("fail_fast")
    orders = bench.ended("b", "failed")
    assert [o.path for o in orders if isinstance(o, StopStep)] == ["a", "c"]
    assert bench.end is None
    bench.ended("a", "cancelled")
    bench.ended("c", "completed")
    assert outcome(bench) == "failed" and code(bench) == "broken"


def test_wait_all_lets_the_others_finish() -> None:
    bench = parallel("wait_all")
    assert not bench.ended("b", "failed")
    bench.ended("a")
    bench.ended("c")
    assert outcome(bench) == "failed"


def test_a_quorum_is_enough_and_what_is_left_is_stopped() -> None:
    bench = parallel("quorum", quorum=2)
    bench.ended("a", "failed")
    bench.ended("b")
    bench.ended("c")
    assert outcome(bench) == "completed"
    bench = parallel("quorum", quorum=2)
    bench.ended("a")
    orders = bench.ended("c")
    assert [o.path for o in orders if isinstance(o, StopStep)] == ["b"]
    bench.ended("b", "cancelled")
    assert outcome(bench) == "completed"


def test_a_quorum_that_cannot_be_reached_fails_at_once() -> None:
    bench = parallel("quorum", quorum=2)
    bench.ended("a", "failed")
    orders = bench.ended("b", "failed")
    assert [o.path for o in orders if isinstance(o, StopStep)] == ["c"]
    bench.ended("c", "cancelled")
    assert outcome(bench) == "failed" and code(bench) == "quorum"


def test_the_first_success_is_enough() -> None:
    bench = parallel("first_success")
    bench.ended("a", "failed")
    bench.ended("b")
    bench.ended("c", "cancelled")
    assert outcome(bench) == "completed"
    # In a sequence it makes alternatives of the steps.
    bench = begun(workflow("sequential", step("a"), step("b"), step("c"), on_failure="first_success"))
    bench.ended("a", "failed")
    bench.ended("b")
    assert outcome(bench) == "completed" and bench.started.total() == 2


def test_an_optional_step_may_fail() -> None:
    bench = begun(workflow("sequential", step("a", optional=True), step("b")))
    bench.ended("a", "failed")
    bench.ended("b")
    assert outcome(bench) == "completed"


def test_what_needs_a_step_that_failed_is_skipped() -> None:
    bench = begun(workflow("graph", step("a"), step("b", needs=("a",)), step("c"), on_failure="wait_all"))
    orders = bench.ended("a", "failed")
    assert [o.path for o in orders if isinstance(o, TellSkipped)] == ["b"]
    bench.ended("c")
    assert outcome(bench) == "failed" and bench.machine.skipped == {"b": "a was needed, and failed"}


def test_a_graph_that_waits_for_itself_does_not_wait_for_ever() -> None:
    bench = begun(workflow("graph", step("a", needs=("b",)), step("b", needs=("a",))))
    assert bench.end is not None and set(bench.machine.skipped) == {"a", "b"}


def test_a_step_is_skipped_unless_its_condition_holds() -> None:
    asked = Condition(artifact="plan", field="risky", equals=True)
    spec = workflow("sequential", step("a", when=asked), step("b", when=Condition(step="a", status="skipped")))
    assert begun(spec, plan={"risky": 1}).running == ["b"]
    bench = begun(spec, plan={"risky": True})
    assert bench.running == ["a"]
    bench.ended("a")
    assert outcome(bench) == "completed"


# ---------------------------------------------------------------- attempts and time


def test_an_attempt_that_failed_is_made_again_after_a_delay_and_at_last_by_another_agent() -> None:
    retry = Retry(attempts=3, backoff=PLAIN, fallback_agent="other")
    bench = begun(workflow("sequential", step("a", retry=retry)))
    bench.ended("a", "failed")
    assert not bench.running and bench.machine.due_ns == 1_000_000_000
    bench.at(1)
    bench.ended("a", "failed")
    bench.at(1.5)
    assert not bench.running
    bench.at(3)
    assert bench.open == {("a", 3, False): "other"}
    bench.ended("a")
    assert outcome(bench) == "completed"


def test_jitter_spreads_the_delay() -> None:
    retry = Retry(attempts=2, backoff=Backoff(base_s=10.0, jitter=0.5))
    bench = begun(workflow("sequential", step("a", retry=retry)))
    bench.open.clear()
    bench.machine.step(j.StepEnded(path="a", attempt=1, outcome="failed", at_ns=0, jitter=0.0))
    assert bench.machine.due_ns == 5_000_000_000


def test_what_cannot_be_mended_is_not_tried_again_but_by_another_agent() -> None:
    bench = begun(workflow("sequential", step("a", retry=Retry(attempts=5, backoff=PLAIN))))
    bench.ended("a", "failed", is_final=True)
    assert outcome(bench) == "failed"
    retry = Retry(attempts=5, backoff=Backoff(base_s=0.0, jitter=0.0), fallback_agent="other")
    bench = begun(workflow("sequential", step("a", retry=retry)))
    bench.ended("a", "failed", is_final=True)
    assert bench.open == {("a", 5, False): "other"}
    bench.ended("a", "failed", is_final=True)
    assert outcome(bench) == "failed"


def test_a_step_that_takes_too_long_is_stopped_and_tried_again() -> None:
    bench = begun(workflow("sequential", step("a", timeout_s=5.0, retry=Retry(attempts=2, backoff=PLAIN))))
    assert bench.machine.due_ns == 5_000_000_000
    orders = bench.at(5)
    assert [o.path for o in orders if isinstance(o, StopStep)] == ["a"] and bench.running == ["a"]
    bench.ended("a", "cancelled", is_final=True)
    bench.at(6)
    assert bench.running == ["a"]
    bench.at(11)
    bench.ended("a", "cancelled", is_final=True)
    assert code(bench) == "timeout"


def test_a_step_that_completes_while_it_is_stopped_has_completed() -> None:
    bench = begun(workflow("sequential", step("a", timeout_s=5.0)))
    bench.at(5)
    bench.ended("a")
    assert outcome(bench) == "completed"


def test_a_block_that_takes_too_long_fails_with_all_in_it() -> None:
    within = block("p", "parallel", step("a"), step("b"), timeout_s=5.0)
    bench = begun(workflow("sequential", within, step("after", compensate=UNDO), on_failure="wait_all"))
    bench.ended("p/a")
    bench.at(5)
    bench.ended("p/b", "cancelled")
    assert bench.running == ["after"]
    bench.ended("after")
    assert bench.undoing == ["after"]
    bench.undo_ended()
    assert code(bench) == "timeout"


def test_the_wall_clock_may_go_back() -> None:
    bench = begun(workflow("sequential", step("a", timeout_s=5.0)))
    bench.now_ns = 4_000_000_000
    bench.pause(paused=False)
    bench.now_ns = 1_000_000_000
    assert not bench.pause(paused=False) and bench.machine.due_ns == 5_000_000_000


# ---------------------------------------------------------------- leave


def test_leave_is_asked_for_and_heeded() -> None:
    spec = workflow("sequential", step("a", approval=Approval(reason="sure?")), step("b"))
    bench = begun(spec)
    assert bench.asking == {"a"} and not bench.running
    bench.answer("a")
    assert bench.running == ["a"]
    bench = begun(spec)
    bench.answer("a", code="denied")
    assert outcome(bench) == "failed" and code(bench) == "denied"


def test_who_asks_takes_no_room() -> None:
    bench = begun(workflow("parallel", step("a", approval=Approval()), step("b"), concurrency=1))
    assert bench.running == ["b"] and bench.asking == {"a"}


def test_a_question_is_withdrawn_with_its_step() -> None:
    bench = begun(workflow("parallel", step("a", approval=Approval()), step("b")))
    bench.ended("b", "failed")
    assert not bench.asking and outcome(bench) == "failed"


def test_what_a_stop_takes_along_says_so() -> None:
    """Not that it was not needed: whoever stopped it may have wanted it."""
    bench = begun(workflow("parallel", step("a", approval=Approval()), step("b"), step("c"), concurrency=1))
    orders = bench.cancel()
    reasons = {order.reason for order in orders if isinstance(order, WithdrawLeave | TellSkipped | StopStep)}
    assert reasons == {"the workflow was stopped"} and bench.machine.skipped.keys() == {"a", "c"}
    bench.ended("b", "cancelled")
    assert set(bench.machine.skipped.values()) == reasons and outcome(bench) == "cancelled"


def test_nobody_tries_what_somebody_stopped() -> None:
    """A fallback agent is for what another one may do better, not for what is not wanted."""
    spec = workflow("sequential", step("a", retry=Retry(attempts=2, fallback_agent="other", backoff=PLAIN)))
    bench = begun(spec)
    bench.ended("a", "cancelled", is_final=True, is_stopped=True)
    assert outcome(bench) == "failed"
    bench = begun(spec)
    bench.ended("a", "cancelled", is_final=True)
    assert bench.machine.due_ns is not None, "as it is in journals of before"


# ---------------------------------------------------------------- undoing


def test_completed_steps_are_undone_in_reverse_when_the_workflow_fails() -> None:
    bench = begun(
        workflow(
            "sequential",
            block("p", "parallel", step("a", compensate=UNDO), step("b", compensate=UNDO)),
            step("none"),
            step("c"),
        )
    )
    bench.ended("p/b")
    bench.ended("p/a")
    bench.ended("none")
    bench.ended("c", "failed")
    assert bench.undoing == ["p/a"]
    bench.undo_ended("completed")
    assert bench.undoing == ["p/b"]
    bench.undo_ended("completed")
    assert outcome(bench) == "failed" and bench.undone == ["p/a", "p/b"]


def test_what_fails_as_a_whole_stops_what_runs_and_is_undone() -> None:
    """Its time is used up in the middle of a step; told again, while it is undone and after that, nothing changes."""
    bench = begun(workflow("sequential", step("a", compensate=UNDO), step("b", optional=True), step("c")))
    bench.ended("a")
    bench.fail()
    assert bench.stopping == {("b", 1, False)}
    bench.fail()
    bench.ended("b", "cancelled")
    assert bench.undoing == ["a"] and bench.machine.skipped.keys() == {"c"}
    bench.fail()
    bench.undo_ended()
    assert outcome(bench) == "failed" and code(bench) == "budget" and bench.undone == ["a"]
    assert not bench.machine.step(j.WorkflowFailed(at_ns=0, failure=Failure(code="budget", message="again")))


def test_what_is_cancelled_does_not_fail_any_more() -> None:
    bench = begun(workflow("sequential", step("a", compensate=UNDO), step("b")))
    bench.ended("a")
    bench.cancel()
    bench.fail()
    bench.ended("b", "cancelled")
    assert outcome(bench) == "cancelled" and bench.end is not None and bench.end.undone == ("a",)


def test_what_undoes_a_step_knows_the_round_that_it_was_of() -> None:
    spec = workflow("loop", step("a", compensate=UNDO), step("b", optional=True), max_iterations=2)
    bench = begun(spec)
    bench.ended("[1]/a")
    bench.ended("[1]/b")
    bench.ended("[2]/a")
    bench.fail()
    bench.ended("[2]/b")
    bench.undo_ended()
    orders = [order for order in bench.orders if isinstance(order, Compensate)]
    assert [(order.path, order.iteration) for order in orders] == [("[2]/a", 2), ("[1]/a", 1)]


def test_a_compensation_that_fails_is_tried_again_and_the_others_have_their_turn() -> None:
    once = Compensation(agent="undoes", task="undo it", attempts=2)
    bench = begun(workflow("sequential", step("a", compensate=UNDO), step("b", compensate=once), step("c")))
    for path in ("a", "b"):
        bench.ended(path)
    bench.ended("c", "failed")
    bench.undo_ended("failed")
    bench.at(10)
    bench.undo_ended("failed")
    assert bench.undoing == ["a"]
    bench.undo_ended()
    assert bench.end is not None and bench.end.undone == ("b",)


def test_a_compensation_has_a_time_out() -> None:
    slow = Compensation(agent="undoes", task="undo it", timeout_s=3.0, attempts=1)
    bench = begun(workflow("sequential", step("a", compensate=slow), step("b")))
    bench.ended("a")
    bench.ended("b", "failed")
    orders = bench.at(3)
    assert [(o.path, o.undo) for o in orders if isinstance(o, StopStep)] == [("a", True)]
    bench.undo_ended("cancelled")
    assert outcome(bench) == "failed"


def test_a_cancelled_workflow_undoes_nothing_and_says_so() -> None:
    bench = begun(workflow("sequential", step("a", compensate=UNDO), step("b")))
    bench.ended("a")
    bench.cancel()
    bench.ended("b", "cancelled")
    assert outcome(bench) == "cancelled" and bench.end is not None and bench.end.undone == ("a",)


def test_a_cancel_ends_the_undoing_too() -> None:
    bench = begun(workflow("sequential", step("a", compensate=UNDO), step("b", compensate=UNDO), step("c")))
    bench.ended("a")
    bench.ended("b")
    bench.ended("c", "failed")
    bench.cancel()
    bench.undo_ended("cancelled")
    assert bench.end is not None and bench.end.undone == ("b", "a") and outcome(bench) == "cancelled"


def test_each_iteration_is_undone_by_itself() -> None:
    bench = begun(workflow("loop", step("a", compensate=UNDO), until=Condition(artifact="x"), max_iterations=2))
    bench.ended("[1]/a")
    bench.ended("[2]/a")
    assert bench.undoing == ["[2]/a"]
    bench.undo_ended()
    bench.undo_ended()
    assert code(bench) == "exhausted"


# ---------------------------------------------------------------- pause, nonsense


def test_a_paused_workflow_begins_nothing() -> None:
    bench = begun(workflow("sequential", step("a"), step("b", timeout_s=5.0)))
    bench.pause(paused=True)
    bench.ended("a")
    assert not bench.running and bench.end is None
    bench.now_ns = 100_000_000_000
    bench.pause(paused=False)
    assert bench.running == ["b"] and bench.machine.due_ns == 105_000_000_000


def test_what_comes_late_or_for_nobody_changes_nothing() -> None:
    bench = begun(workflow("sequential", step("a"), step("b")))
    bench.ended("a")
    for path, attempt in (("a", 1), ("b", 2), ("nobody", 1), ("", 1)):
        assert not bench.machine.step(j.StepEnded(path=path, attempt=attempt, outcome="failed", at_ns=0))
    assert not bench.machine.step(j.StepAnswered(path="b", at_ns=0))
    assert not bench.machine.step(j.CompensationEnded(path="a", attempt=1, outcome="completed", at_ns=0))
    assert bench.running == ["b"]


def test_a_workflow_is_of_bounded_depth() -> None:
    inner = step("a")
    for n in range(MAX_DEPTH):
        inner = block(f"b{n}", "sequential", inner)
    with pytest.raises(ConfigError, match="within each other"):
        Bench(workflow("sequential", inner))


# ---------------------------------------------------------------- any workflow, any fate


def live(bench: Bench, draw: Callable[[st.SearchStrategy[int]], int], *, most: int = 4000) -> None:
    """Lets things happen, as they are drawn, until the workflow has ended."""
    for _ in range(most):
        if bench.end is not None:
            return
        happen(bench, draw(st.integers(0, 999)))
    raise AssertionError("it does not end")


def happen(bench: Bench, choice: int) -> None:
    """One thing that can happen now."""
    bench.now_ns += choice % 7 * 100_000_000
    kind, which = choice % 20, choice // 20
    if kind == 19 and which < 3:
        bench.cancel()
    elif kind == 19 and which < 6:
        bench.fail()
    elif kind == 18:
        bench.pause(paused=not bench.machine.is_paused)
    elif bench.undoing:
        bench.undo_ended(("completed", "failed", "completed", "cancelled")[which % 4])
    elif bench.asking and kind < 4:
        bench.answer(sorted(bench.asking)[which % len(bench.asking)], code="denied" if kind == 0 else "")
    elif bench.running and kind < 15:
        path = sorted(bench.running)[which % len(bench.running)]
        key = next(k for k in bench.open if k[0] == path)
        fate = ("completed", "completed", "failed")[which % 3]
        if key in bench.stopping and kind % 3:
            fate = "cancelled"
        name = ("alpha", "beta", "gamma")[which % 3]
        bench.ended(path, fate, is_final=which % 5 == 0, facts={name: {"n": which % 4}})
    elif bench.machine.is_paused:
        bench.pause(paused=False)
    elif bench.machine.due_ns is not None:
        bench.now_ns = max(bench.now_ns, bench.machine.due_ns)
        bench.tell(j.WorkflowAwoke(at_ns=bench.now_ns))
    elif bench.asking:
        bench.answer(min(bench.asking))


def whole(bench: Bench) -> tuple[object, ...]:
    return (bench.end, bench.completed, bench.undone, bench.machine.skipped, bench.past)


@settings(max_examples=150, deadline=None)
@given(spec=trees(), data=st.data())
def test_any_workflow_ends_and_leaves_nothing(spec: ResolvedWorkflow, data: st.DataObject) -> None:
    """Whatever fails, takes too long or is cancelled: it ends, within its limits, and nothing runs then."""
    bench = begun(spec)
    live(bench, data.draw)
    assert bench.end is not None and not bench.open and not bench.asking
    check_undoing(bench)


def check_undoing(bench: Bench) -> None:
    """What has completed and can be undone is, in reverse and once each, if the workflow failed; else nothing is."""
    assert bench.end is not None
    undoable = [path for path in bench.completed if _step_of(bench, path).compensate is not None]
    tried = [order.path for order in bench.orders if isinstance(order, Compensate)]
    done = list(dict.fromkeys(tried))
    assert len(bench.undone) == len(set(bench.undone)), "a step was undone twice"
    if bench.end.outcome == "completed":
        assert not tried
    elif bench.end.outcome == "failed":
        assert done == list(reversed(undoable)), "not all was undone, or not in reverse"
        assert set(bench.end.undone) == set(done) - set(bench.undone)
    else:
        left = list(bench.end.undone)
        assert not set(left) & set(bench.undone)
        assert left == [path for path in reversed(undoable) if path in left], "not in reverse"
        assert set(undoable) - set(left) <= set(done), "what has been left as it is was not said"


def _step_of(bench: Bench, path: str) -> Step:
    name = path.rsplit("/", 1)[-1]
    steps = list(bench.resolved.spec.steps)
    while steps:
        found = steps.pop()
        if found.id == name:
            return found
        steps += found.steps
    raise AssertionError(path)


@settings(max_examples=80, deadline=None)
@given(spec=trees(), choices=st.lists(st.integers(0, 999), max_size=60), data=st.data())
def test_a_past_cut_anywhere_goes_on_to_the_same_end(
    spec: ResolvedWorkflow, choices: list[int], data: st.DataObject
) -> None:
    """Another machine that is given the past so far has the same open orders, and the same fate ends it the same."""
    bench = begun(spec)
    cut = data.draw(st.integers(0, len(choices)))
    for choice in choices[:cut]:
        if bench.end is None:
            happen(bench, choice)
    other = bench.again()
    assert (other.open, other.asking, other.stopping) == (bench.open, bench.asking, bench.stopping)
    assert other.end == bench.end and other.machine.due_ns == bench.machine.due_ns
    for rest in (*choices[cut:], *range(0, 1000, 20)):
        for each in (bench, other):
            if each.end is None:
                happen(each, rest)
    assert whole(bench) == whole(other)


def test_orders_say_what_the_end_was() -> None:
    """The end is given once, and again to who asks what is outstanding."""
    bench = begun(workflow("sequential", step("a")))
    orders: list[WorkflowOrder] = bench.ended("a")
    assert orders[-1] == EndWorkflow(outcome="completed") and bench.machine.outstanding() == [orders[-1]]


def test_the_rounds_of_a_loop_have_a_path_in_common() -> None:
    """That of the innermost loop around a place; outside of loops a place has its own."""
    for path, common in (
        ("step", "step"),
        ("[3]/step", "[]/step"),
        ("[3]/loop[2]/step", "[3]/loop[]/step"),
        ("loop[12]/both/step", "loop[]/both/step"),
    ):
        assert any_round(path) == common


def test_the_blocks_around_a_step_are_those_of_its_path() -> None:
    """Each with its own path, iterations of the loops around it included; what is not there ends it."""
    step = Step(id="step", agent="a")
    inner = Step(id="inner", mode="parallel", steps=(step,))
    loop = Step(id="loop", mode="loop", steps=(inner, step))
    spec = WorkflowSpec(name="flow", mode="loop", steps=(loop, step))
    for path, around in (
        ("step", []),
        ("[3]/step", []),
        ("[3]/loop[2]/step", ["[3]/loop"]),
        ("[1]/loop[2]/inner/step", ["[1]/loop", "[1]/loop[2]/inner"]),
        ("[1]/loop[2]/nobody/step", ["[1]/loop"]),
        ("[1]/step/inner/step", []),
        ("", []),
        ("///[[/]", []),
    ):
        assert [found for found, _ in blocks_around(spec, path)] == around, path
