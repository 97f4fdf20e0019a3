"""Workflows for tests of the machine, and a shell without processes, which keeps books of what it was ordered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from ottod.core.workflow import WorkflowMachine
from ottod.core.workflow_orders import (
    AskLeave,
    Compensate,
    EndWorkflow,
    StartStep,
    StopStep,
    WithdrawLeave,
    WorkflowOrder,
)
from ottod.core.workflow_tree import BUSY, Place
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.specs import Backoff
from ottod.protocol.workflows import (
    Approval,
    Compensation,
    Condition,
    ResolvedWorkflow,
    Retry,
    Step,
    WorkflowSpec,
)

S = 1_000_000_000
PLAIN = Backoff(base_s=1.0, factor=2.0, max_s=60.0, jitter=0.0)


def step(name: str, **fields: object) -> Step:
    return Step(id=name, agent=f"does-{name}", **fields)  # type: ignore[arg-type]


def block(name: str, mode: str, *steps: Step, **fields: object) -> Step:
    return Step(id=name, mode=mode, steps=steps, **fields)  # type: ignore[arg-type]


def workflow(mode: str, *steps: Step, **fields: object) -> ResolvedWorkflow:
    return ResolvedWorkflow(spec=WorkflowSpec(name="w", mode=mode, steps=steps, **fields))  # type: ignore[arg-type]


class Bench:
    """A machine and everything that it was told and has ordered. Moments are in seconds."""

    def __init__(self, spec: ResolvedWorkflow, *, is_checked: bool = True) -> None:
        self.resolved = spec
        self.machine = WorkflowMachine(spec)
        self.past: list[j.WorkflowEntry] = []
        self.now_ns = 0
        self.open: dict[tuple[str, int, bool], str] = {}
        """(path, attempt, is it a compensation) → the agent; stopping ones too."""
        self.stopping: set[tuple[str, int, bool]] = set()
        self.asking: set[str] = set()
        self.started: Counter[tuple[str, int]] = Counter()
        self.completed: list[str] = []
        self.undone: list[str] = []
        self.end: EndWorkflow | None = None
        self._is_checked = is_checked
        self.orders: list[WorkflowOrder] = []

    def begin(self, **facts: dict[str, object]) -> Bench:
        found = tuple(j.ArtifactFacts(name=n, version=1, fields=f) for n, f in facts.items())
        self.tell(j.WorkflowBegun(at_ns=self.now_ns, facts=found))
        return self

    def tell(self, entry: j.WorkflowEntry) -> list[WorkflowOrder]:
        assert self.end is None, "something happens after the end"
        self.past.append(entry)
        orders = self.machine.step(entry)
        for order in orders:
            self.take(order)
        if self._is_checked:
            self.check()
        self.orders += orders
        return orders

    def take(self, order: WorkflowOrder) -> None:
        match order:
            case StartStep():
                key = (order.path, order.attempt, False)
                assert key not in self.open, f"{order.path} was started twice"
                self.started[order.path, order.attempt] += 1
                assert self.started[order.path, order.attempt] == 1, f"{order.path} is started again"
                self.open[key] = order.agent
            case Compensate():
                key = (order.path, order.attempt, True)
                assert not self.open, "something runs beside a compensation"
                self.open[key] = order.compensation.agent
            case StopStep():
                key = (order.path, order.attempt, order.undo)
                assert key in self.open and key not in self.stopping, "what does not run is stopped"
                self.stopping.add(key)
            case AskLeave():
                self.asking.add(order.path)
            case WithdrawLeave():
                self.asking.remove(order.path)
            case EndWorkflow():
                self.end = order
                assert not self.open, "it ends while something runs"
                assert not self.asking, "it ends while something is asked"
            case _:
                pass

    # ------------------------------------------------------------ what happens

    def ended(
        self,
        path: str,
        outcome: str = "completed",
        *,
        is_final: bool = False,
        is_stopped: bool = False,
        facts: Mapping[str, dict[str, Any]] | None = None,
    ) -> list[WorkflowOrder]:
        """The attempt of a step that runs is over."""
        (key,) = [key for key in self.open if key[0] == path and not key[2]]
        del self.open[key]
        self.stopping.discard(key)
        if outcome == "completed":
            self.completed.append(path)
        failure = None if outcome == "completed" else Failure(code="broken", message=f"{path} broke")
        version = sum(isinstance(e, j.StepEnded) for e in self.past) + 2
        found = tuple(
            j.ArtifactFacts(name=name, version=version, fields=fields) for name, fields in (facts or {}).items()
        )
        return self.tell(
            j.StepEnded(
                path=path, attempt=key[1], outcome=outcome, failure=failure, is_final=is_final,  # type: ignore[arg-type]
                is_stopped=is_stopped, facts=found, at_ns=self.now_ns,
            )
        )  # fmt: skip

    def undo_ended(self, outcome: str = "completed") -> list[WorkflowOrder]:
        """The compensation that runs is over."""
        (key,) = [key for key in self.open if key[2]]
        del self.open[key]
        self.stopping.discard(key)
        if outcome == "completed":
            self.undone.append(key[0])
        entry = j.CompensationEnded(path=key[0], attempt=key[1], outcome=outcome, at_ns=self.now_ns)  # type: ignore[arg-type]
        return self.tell(entry)

    def answer(self, path: str, *, code: str = "") -> list[WorkflowOrder]:
        self.asking.remove(path)
        failure = Failure(code=code, message=f"{path} was {code}") if code else None
        return self.tell(j.StepAnswered(path=path, at_ns=self.now_ns, failure=failure))

    def cancel(self) -> list[WorkflowOrder]:
        return self.tell(j.WorkflowCancelled(at_ns=self.now_ns, reason="enough"))

    def fail(self) -> list[WorkflowOrder]:
        failure = Failure(code="budget", message="its time is used up")
        return self.tell(j.WorkflowFailed(at_ns=self.now_ns, failure=failure))

    def pause(self, *, paused: bool) -> list[WorkflowOrder]:
        return self.tell(j.WorkflowPaused(at_ns=self.now_ns, paused=paused))

    def at(self, s: float) -> list[WorkflowOrder]:
        """It is that many seconds after the beginning."""
        self.now_ns = max(self.now_ns, round(s * S))
        return self.tell(j.WorkflowAwoke(at_ns=self.now_ns))

    # ------------------------------------------------------------ what one may ask

    @property
    def running(self) -> list[str]:
        return [path for path, _, is_undo in self.open if not is_undo]

    @property
    def undoing(self) -> list[str]:
        return [path for path, _, is_undo in self.open if is_undo]

    def again(self) -> Bench:
        """Another bench, whose machine was given the same past: a new incarnation."""
        other = Bench(self.resolved)
        for entry in self.past:
            other.machine.step(entry)
        other.past, other.now_ns = list(self.past), self.now_ns
        other.completed, other.undone = list(self.completed), list(self.undone)
        other.started = Counter(self.started)
        for order in other.machine.outstanding():
            if isinstance(order, StartStep):
                del other.started[order.path, order.attempt]
            other.take(order)
        return other

    def check(self) -> None:
        """No limit on what runs at once is exceeded, whatever is open runs, and what is over has no time-out."""
        limit = self.machine.spec.concurrency
        places = (self.machine.top, *self.machine.top.below())
        for place in places:
            if place.is_step:
                is_open = any(path == place.path and not is_undo for path, _, is_undo in self.open)
                assert (place.state in BUSY) == is_open, f"{place.path} is {place.state}"
            else:
                own = place.node.step.concurrency or limit
                assert _busy_below(place) <= min(own, limit), f"too much runs in {place.path or 'all'}"
            assert not (place.has_ended and place.due_ns is not None), f"{place.path} has ended and waits"
        if self.end is None and not self.machine.is_paused:
            is_waiting = self.open or self.asking or self.machine.due_ns is not None
            assert is_waiting, "nothing runs, nobody is asked, no moment is waited for: it would wait for ever"


def _busy_below(place: Place) -> int:
    return sum(below.is_step and below.state in BUSY for below in place.below())


# ---------------------------------------------------------------- random workflows

ARTIFACTS = ("alpha", "beta", "gamma")
NAMES = st.sampled_from(ARTIFACTS)
CONDITIONS = st.one_of(
    st.builds(lambda name: Condition(artifact=name), NAMES),
    st.builds(lambda name, n: Condition(artifact=name, field="n", at_least=n), NAMES, st.integers(0, 3)),
    st.builds(lambda name: Condition(none=(Condition(artifact=name, field="n", equals=1),)), NAMES),
)


@st.composite
def trees(draw: st.DrawFn, *, max_nodes: int = 12) -> ResolvedWorkflow:
    """Any workflow of a few nodes, with everything that can be said in one."""
    left = [draw(st.integers(1, max_nodes))]
    count = [0]

    def nodes(depth: int, mode: str) -> tuple[Step, ...]:
        made: list[Step] = []
        for _ in range(draw(st.integers(1, 4))):
            if left[0] <= 0:
                break
            made.append(node(depth, mode, [each.id for each in made]))
        return tuple(made) or (node(0, mode, []),)

    def common(mode: str, before: list[str]) -> dict[str, object]:
        fields: dict[str, object] = {}
        if mode == "graph" and before:
            fields["needs"] = tuple(draw(st.sets(st.sampled_from(before), max_size=2)))
        if draw(st.integers(0, 4)) == 0:
            fields["when"] = draw(CONDITIONS)
        if draw(st.integers(0, 4)) == 0:
            fields["optional"] = True
        if draw(st.integers(0, 3)) == 0:
            fields["timeout_s"] = draw(st.sampled_from((1.0, 5.0, 30.0)))
        if draw(st.integers(0, 6)) == 0:
            fields["approval"] = Approval()
        return fields

    def policy() -> dict[str, object]:
        return {
            "on_failure": draw(st.sampled_from(("fail_fast", "fail_fast", "wait_all", "quorum", "first_success"))),
            "quorum": draw(st.none() | st.integers(1, 4)),
            "until": draw(st.none() | CONDITIONS),
            "max_iterations": draw(st.integers(1, 3)),
            "on_exhausted": draw(st.sampled_from(("fail", "continue"))),
        }

    def node(depth: int, mode: str, before: list[str]) -> Step:
        left[0] -= 1
        count[0] += 1
        name = f"n{count[0]}"
        fields = common(mode, before)
        if depth > 0 and draw(st.integers(0, 2)) == 0:
            inner = draw(st.sampled_from(("sequential", "parallel", "loop", "graph")))
            limit = draw(st.none() | st.integers(1, 3))
            return block(name, inner, *nodes(depth - 1, inner), concurrency=limit, **policy(), **fields)
        if draw(st.booleans()):
            backoff = draw(st.sampled_from((PLAIN, Backoff(base_s=0.0, jitter=0.0))))
            fields["retry"] = Retry(
                attempts=draw(st.integers(1, 3)), backoff=backoff, fallback_agent=draw(st.sampled_from(("", "other")))
            )
        if draw(st.booleans()):
            fields["compensate"] = Compensation(agent="undoes", task="undo", attempts=draw(st.integers(1, 2)))
        return step(name, **fields)

    mode = draw(st.sampled_from(("sequential", "parallel", "loop", "graph")))
    return workflow(
        mode,
        *nodes(3, mode),
        concurrency=draw(st.integers(1, 4)),
        timeout_s=draw(st.none() | st.sampled_from((20.0, 200.0))),
        **policy(),
    )
