"""The workflow machine against an oracle that derives everything anew after each event, in any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from ottod.protocol import journal as j
from ottod.protocol.workflows import ResolvedWorkflow, Step
from tests.core.naive_workflow import NaiveWorkflow
from tests.core.workflows import ARTIFACTS, Bench, trees

S = 1_000_000_000


def _without_undoing(step: Step) -> Step:
    return replace(step, compensate=None, steps=tuple(map(_without_undoing, step.steps)))


def is_open(machine: WorkflowAgainstOracle) -> bool:
    return machine.bench.end is None


def has_running(machine: WorkflowAgainstOracle) -> bool:
    return is_open(machine) and bool(machine.bench.running)


def is_asking(machine: WorkflowAgainstOracle) -> bool:
    return is_open(machine) and bool(machine.bench.asking)


def waits_for_time(machine: WorkflowAgainstOracle) -> bool:
    return is_open(machine) and machine.bench.machine.due_ns is not None


class WorkflowAgainstOracle(RuleBasedStateMachine):
    """Whatever ends, fails, takes too long, is answered, paused or cancelled: both want the same."""

    @initialize(spec=trees(max_nodes=16))
    def it_begins(self, spec: ResolvedWorkflow) -> None:
        self._begin(spec)

    @precondition(lambda self: not is_open(self))
    @rule(spec=trees(max_nodes=16))
    def another_begins(self, spec: ResolvedWorkflow) -> None:
        self._begin(spec)

    def _begin(self, spec: ResolvedWorkflow) -> None:
        steps = tuple(map(_without_undoing, spec.spec.steps))
        self.resolved = replace(spec, spec=replace(spec.spec, steps=steps))
        self.bench = Bench(self.resolved).begin()
        self.naive = NaiveWorkflow(self.resolved)
        self.naive.begin(self.bench.now_ns)

    def _later(self, tenths: int) -> int:
        self.bench.now_ns += tenths * S // 10
        return self.bench.now_ns

    @precondition(has_running)
    @rule(
        which=st.integers(0, 99),
        outcome=st.sampled_from(("completed", "completed", "failed", "cancelled")),
        is_final=st.integers(0, 4).map(lambda n: n == 0),
        is_stopped=st.booleans(),
        facts=st.dictionaries(st.sampled_from(ARTIFACTS), st.builds(dict, n=st.integers(0, 3)), max_size=1),
        tenths=st.integers(0, 12),
    )
    def a_step_ends(
        self,
        which: int,
        outcome: str,
        is_final: bool,
        is_stopped: bool,
        facts: dict[str, dict[str, int]],
        tenths: int,
    ) -> None:
        is_stopped = is_stopped and outcome == "cancelled"
        path = sorted(self.bench.running)[which % len(self.bench.running)]
        now_ns = self._later(tenths)
        self.bench.ended(path, outcome, is_final=is_final, is_stopped=is_stopped, facts=facts)
        self.naive.ended(path, outcome, now_ns, is_final=is_final, is_stopped=is_stopped, facts=facts)

    @precondition(is_asking)
    @rule(which=st.integers(0, 99), is_granted=st.integers(0, 3).map(bool), tenths=st.integers(0, 12))
    def somebody_answers(self, which: int, is_granted: bool, tenths: int) -> None:
        path = sorted(self.bench.asking)[which % len(self.bench.asking)]
        now_ns = self._later(tenths)
        self.bench.answer(path, code="" if is_granted else "denied")
        self.naive.answered(path, now_ns, is_granted=is_granted)

    @precondition(waits_for_time)
    @rule()
    def its_time_comes(self) -> None:
        due_ns = self.bench.machine.due_ns
        assert due_ns is not None
        self.bench.now_ns = max(self.bench.now_ns, due_ns)
        self.bench.tell(j.WorkflowAwoke(at_ns=self.bench.now_ns))
        self.naive.awoke(self.bench.now_ns)

    @precondition(is_open)
    @rule(paused=st.booleans(), tenths=st.integers(0, 12))
    def it_is_paused_or_not(self, paused: bool, tenths: int) -> None:
        now_ns = self._later(tenths)
        self.bench.pause(paused=paused)
        self.naive.pause(now_ns, paused=paused)

    @precondition(is_open)
    @rule(is_meant=st.integers(0, 9).map(lambda n: n == 0))
    def it_is_cancelled(self, is_meant: bool) -> None:
        if is_meant:
            self.bench.cancel()
            self.naive.cancel(self.bench.now_ns)

    @precondition(is_open)
    @rule(is_meant=st.integers(0, 9).map(lambda n: n == 0), tenths=st.integers(0, 12))
    def it_fails_as_a_whole(self, is_meant: bool, tenths: int) -> None:
        if is_meant:
            now_ns = self._later(tenths)
            self.bench.fail()
            self.naive.fail(now_ns)

    @precondition(is_open)
    @rule()
    def its_process_is_lost(self) -> None:
        """Another one is given the past, and goes on."""
        self.bench = self.bench.again()

    @invariant()
    def both_want_the_same(self) -> None:
        if not hasattr(self, "bench"):
            return
        bench, naive = self.bench, self.naive
        assert {path: agent for (path, _, _), agent in bench.open.items()} == {
            path: naive.agent_of(path) for path in naive.running
        }
        assert {path for path, _, _ in bench.stopping} == naive.stopping
        assert bench.asking == naive.asking
        assert (bench.end.outcome if bench.end is not None else "") == naive.end


WorkflowAgainstOracle.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWorkflowAgainstOracle = WorkflowAgainstOracle.TestCase
