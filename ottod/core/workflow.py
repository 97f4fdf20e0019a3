"""The machine of a workflow: what follows from what has happened.

Theory of operation. What happens to a workflow is written to its journal, entry by entry, and each entry is then
given to the machine, which answers with orders. Nothing else changes it, so that a machine which is given the entries
of a journal again is where the one before it was; the orders that nobody has answered are `outstanding`, and are
given once more. All moments are in the entries, and so is the chance that spreads delays.

Each place (`workflow_tree`) is in one of these states:

| state | meaning |
|---|---|
| `waiting` | its turn has not come |
| `asking` | its turn has come, and somebody is asked for leave |
| `resting` | an attempt failed, and a delay stands before the next one |
| `ready` | it begins as soon as there is room |
| `running` | a session works at it; of a block: something within it goes on |
| `stopping` | it is to end: its session was told to, or all within it was |
| `completed`, `failed`, `skipped`, `cancelled` | it has ended so |

After each entry the tree is gone through until nothing changes: a block gives the turn to the places within it, as
its mode says, until its policy has a verdict; then what goes on within it is stopped, and when all of it has ended
the block ends as the verdict says. At last the places that are ready begin, first those that are written first, as
far as the limits on what runs at once allow.

When the top has failed, completed steps are undone (`compensation`); so they are when something beside them made it
fail, such as its time that is used up. When the workflow is cancelled they are not.

A workflow that has ended and is resumed goes on where it ended: blocks that had not completed are open again, and in
them what failed, was cancelled or was skipped for that has its turn once more, with all its attempts. What completed
stays so, and so does what a condition had skipped.
"""

from __future__ import annotations

from typing import assert_never

from ottod.core.backoff import delay_s
from ottod.core.compensation import Saga
from ottod.core.workflow_condition import holds
from ottod.core.workflow_orders import (
    AskLeave,
    EndWorkflow,
    StartStep,
    StopStep,
    TellBlock,
    TellIteration,
    TellSkipped,
    WithdrawLeave,
    WorkflowOrder,
)
from ottod.core.workflow_tree import (
    BUSY,
    NO_CONDITION,
    Place,
    PlaceState,
    next_places,
    plant,
    revive,
    verdict_on,
    why_failed,
)
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.workflows import ResolvedWorkflow
from ottod.settings.units import plural

NS_PER_S = 1_000_000_000
STOPPED = "the workflow was stopped"


class WorkflowMachine:
    """One workflow."""

    def __init__(self, workflow: ResolvedWorkflow) -> None:
        """Raises ConfigError for a workflow that cannot be run."""
        self.spec = workflow.spec
        self._routed = workflow.routed
        self.top = Place("", plant(workflow.spec), None)
        self.facts: dict[str, j.ArtifactFacts] = {}
        """What conditions know of artifacts, by name."""
        self.saga = Saga()
        self.skipped: dict[str, str] = {}
        """Places that had no turn, by path, and why."""
        self.is_paused = False
        self.end: EndWorkflow | None = None
        self._ends: dict[str, str] = {}
        self._cancelled: str | None = None
        self._orders: list[WorkflowOrder] = []
        self._now_ns = 0

    # ------------------------------------------------------------ what one may ask

    @property
    def has_begun(self) -> bool:
        return self.top.state != "waiting"

    @property
    def now_ns(self) -> int:
        """The latest moment that it has heard of."""
        return self._now_ns

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled is not None

    @property
    def due_ns(self) -> int | None:
        """The next moment that something waits for: then the machine wants a `workflow.awoke`."""
        if self.end is not None:
            return None
        places = (self.top, *self.top.below())
        moments = [p.due_ns for p in places if p.due_ns is not None] + (
            [self.saga.due_ns] if self.saga.due_ns is not None else []
        )
        return min(moments, default=None)

    @property
    def running(self) -> tuple[Place, ...]:
        """The steps that have a session now."""
        return tuple(place for place in self.top.below() if place.is_step and place.state in BUSY)

    @property
    def open_blocks(self) -> frozenset[str]:
        """The paths of blocks, the top's empty one among them, in which something has begun and not all has ended."""
        places = (self.top, *self.top.below())
        return frozenset(place.path for place in places if place.places and not place.has_ended)

    @property
    def waiting_count(self) -> int:
        """How many steps would begin if there were more room."""
        if self.is_paused or self.is_cancelled or self.end is not None:
            return 0
        return sum(place.state == "ready" for place in self.top.below())

    def resting_ns(self, path: str) -> int:
        """How long it is, after what was heard last, until a step is tried again; 0 if it is not."""
        place = self._find(path)
        if place is None or place.state not in ("resting", "ready") or not place.attempt:
            return 0
        return 1 if place.due_ns is None else max(1, place.due_ns - self._now_ns)

    def outstanding(self) -> list[WorkflowOrder]:
        """The orders whose answers have not come, given once more."""
        orders: list[WorkflowOrder] = []
        for place in (self.top, *self.top.below()):
            if place.state == "asking":
                orders.append(self._question(place))
            elif place.is_step and place.state in BUSY:
                orders.append(self._start_order(place))
                if place.state == "stopping":
                    orders.append(StopStep(path=place.path, attempt=place.attempt, reason="it is not wanted"))
        orders += self.saga.outstanding()
        if self.end is not None:
            orders.append(self.end)
        return orders

    # ------------------------------------------------------------ entries

    def step(self, entry: j.WorkflowEntry) -> list[WorkflowOrder]:
        """Takes what has happened and gives the orders that follow, in order.

        What comes late, twice, or for a place that is not there changes nothing.
        """
        self._orders = []
        if self.end is not None and not isinstance(entry, j.WorkflowResumed):
            if isinstance(entry, j.WorkflowBegun):
                self._learn(entry.facts)  # In older journals, of one that was stopped while it took its inputs.
            return []
        # The wall clock may have been set back; what is due is not due any less for that.
        self._now_ns = max(self._now_ns, entry.at_ns)
        if self.has_begun:
            self._lapse()
        match entry:
            case j.WorkflowBegun():
                self._learn(entry.facts)
                if not self.has_begun:
                    self._begin_block(self.top)
            case j.StepEnded():
                self._step_ended(entry)
            case j.StepAnswered():
                self._answered(entry)
            case j.CompensationEnded():
                self.saga.ended(entry, now_ns=self._now_ns, goes_on=not self.is_cancelled)
            case j.WorkflowCancelled():
                self._cancel(entry.reason)
            case j.WorkflowFailed():
                self._decide(self.top, "failed", entry.failure)
            case j.WorkflowPaused():
                self.is_paused = entry.paused
            case j.WorkflowResumed():
                self._resume()
            case j.CompensationBegun():
                self.saga.has_undone = True
            case j.WorkflowAwoke() | j.StepBegun() | j.StepSkipped():
                pass
            case _:
                assert_never(entry)
        if self.has_begun:
            self._settle()
        # Its time may have run out in the very moment of its end: what is over need not be stopped.
        return [order for order in self._orders if not _is_over(order, entry)]

    def _learn(self, facts: tuple[j.ArtifactFacts, ...]) -> None:
        for fact in facts:
            known = self.facts.get(fact.name)
            if known is None or fact.version >= known.version:
                self.facts[fact.name] = fact

    def _find(self, path: str) -> Place | None:
        return next((place for place in (self.top, *self.top.below()) if place.path == path), None)

    def _step_ended(self, entry: j.StepEnded) -> None:
        self._learn(entry.facts)
        place = self._find(entry.path)
        if place is None or not place.is_step or place.state not in BUSY or place.attempt != entry.attempt:
            return
        place.due_ns = None
        if entry.outcome == "completed":
            # Also if it was told to stop: it had done its work by then, and may have to be undone.
            self.saga.add(place.path, place.node.step.compensate, iteration=place.loop_count)
            self._end(place, "completed")
            return
        place.failure = entry.failure or Failure(code=entry.outcome, message=f"{place.path} was {entry.outcome}")
        if place.why == "abandoned":
            self._end(place, "cancelled")
            return
        if place.why == "timeout":
            place.failure = _took_too_long(place)
        self._try_again(place, entry)

    def _try_again(self, place: Place, entry: j.StepEnded) -> None:
        retry = place.node.step.retry
        if entry.is_final and place.why != "timeout" and retry.fallback_agent and not entry.is_stopped:
            # Another agent may do better where trying again will not.
            place.attempt = max(place.attempt, retry.attempts - 1)
        elif entry.is_final and place.why != "timeout":
            place.attempt = retry.attempts
        place.why = ""
        if place.attempt >= retry.attempts:
            self._end(place, "failed")
            return
        delay_ns = round(delay_s(retry.backoff, place.attempt, random=entry.jitter) * NS_PER_S)
        place.state = "resting"
        place.due_ns = self._now_ns + delay_ns
        if not delay_ns:
            self._rested(place)

    def _rested(self, place: Place) -> None:
        place.state, place.due_ns = "ready", None

    def _answered(self, entry: j.StepAnswered) -> None:
        place = self._find(entry.path)
        if place is None or place.state != "asking":
            return
        if entry.failure is not None:
            place.failure = entry.failure
            self._end(place, "failed")
            return
        place.has_leave = True
        self._give_turn(place)

    def _cancel(self, reason: str) -> None:
        if self._cancelled is not None:
            return
        self._cancelled = reason
        self.top.due_ns = None
        if self.top.state == "waiting":
            self.top.state = "cancelled"
        self._abandon_below(self.top)
        self._orders += self.saga.stop(reason or "the workflow was cancelled")
        self.saga.due_ns = None

    def _resume(self) -> None:
        """What has not completed has its turn again. What was undone stays undone, so then nothing does."""
        if self.top.state in ("waiting", "completed") or self.saga.has_undone:
            return
        self.saga.put_off()
        self.end = self._cancelled = None
        self.is_paused = False
        revive(self.top, self.skipped, self._ends)
        if not self.top.places:
            self._begin_block(self.top)
        for place in (self.top, *self.top.below()):
            if not place.is_step and place.state == "running":
                place.due_ns = self._moment(place.node.step.timeout_s)

    # ------------------------------------------------------------ time

    def _lapse(self) -> None:
        for place in (self.top, *self.top.below()):
            if place.due_ns is None or place.due_ns > self._now_ns or place.has_ended:
                continue
            if place.state == "resting":
                self._rested(place)
            elif place.is_step:
                place.state, place.why, place.due_ns = "stopping", "timeout", None
                self._orders.append(StopStep(path=place.path, attempt=place.attempt, reason="it took too long"))
            else:
                self._decide(place, "failed", _took_too_long(place))
        if not self.is_cancelled:
            self._orders += self.saga.lapse(self._now_ns)

    # ------------------------------------------------------------ the tree

    def _settle(self) -> None:
        """Goes through the tree until nothing changes, lets begin what may, and ends what is over."""
        while self._advance(self.top):
            pass
        if self.top.has_ended:
            self._conclude()
        elif not self.is_paused and not self.is_cancelled:
            self._begin_ready()

    def _advance(self, block: Place) -> bool:
        """One look at a block; whether anything has changed. What has not begun, or has ended, stays as it is."""
        has_changed = False
        if block.state == "running":
            for place in block.places:
                if not place.is_step:
                    has_changed |= self._advance(place)
            has_changed |= self._go_on(block)
        elif block.state == "stopping":
            for place in block.places:
                if not place.is_step:
                    has_changed |= self._advance(place)
            if all(place.has_ended for place in block.places):
                self._end(block, "cancelled" if not block.verdict else block.verdict)
                has_changed = True
        return has_changed

    def _go_on(self, block: Place) -> bool:
        """Gives the turn to places within a running block, or decides what it ends as."""
        if self.is_cancelled and block is self.top:
            block.state = "stopping"
            return True
        verdict = verdict_on(block)
        if verdict == "failed":
            self._decide(block, verdict, why_failed(block))
            return True
        if verdict:
            if block.node.mode == "loop":
                return self._iterated(block)
            self._decide(block, verdict, None)
            return True
        ready, lost = next_places(block)
        for place, reason in lost:
            self._skip(place, reason)
        for place in ready:
            self._give_turn(place)
        return bool(ready or lost)

    def _iterated(self, loop: Place) -> bool:
        """An iteration has completed: the loop ends, or goes on once all of it has ended."""
        until = loop.node.step.until
        if until is not None and holds(until, facts=self.facts, ends=self._ends):
            self._decide(loop, "completed", None)
        elif loop.iteration < loop.node.max_iterations:
            # Where enough of an iteration is enough, something of it may still go on.
            self._abandon_below(loop)
            if not all(place.has_ended for place in loop.places):
                return False
            self._next_iteration(loop)
        elif until is None or loop.node.step.on_exhausted == "continue":
            self._decide(loop, "completed", None)
        else:
            after = plural(loop.iteration, "iteration")
            text = f"{loop.path or 'the workflow'}: its condition does not hold after {after}"
            self._decide(loop, "failed", Failure(code="exhausted", message=text))
        return True

    def _next_iteration(self, loop: Place) -> None:
        loop.begin_nodes()
        told = TellIteration(path=loop.path, iteration=loop.iteration, of=loop.node.max_iterations)
        self._orders.append(told)

    def _give_turn(self, place: Place) -> None:
        when = place.node.step.when
        if place.state == "waiting" and when and not holds(when, facts=self.facts, ends=self._ends):
            self._skip(place, NO_CONDITION)
        elif not place.has_leave:
            place.state = "asking"
            self._orders.append(self._question(place))
        elif place.is_step:
            place.state = "ready"
        else:
            self._begin_block(place)

    def _begin_block(self, block: Place) -> None:
        block.state = "running"
        block.due_ns = self._moment(block.node.step.timeout_s)
        if block.path:
            self._orders.append(TellBlock(path=block.path, state="running"))
        if block.node.mode == "loop":
            self._next_iteration(block)
        else:
            block.begin_nodes()

    def _decide(self, block: Place, verdict: PlaceState, failure: Failure | None) -> None:
        """It is known what a block ends as: what still goes on within it is not needed."""
        if block.state != "running":
            return
        block.verdict = "failed" if verdict == "failed" else "completed"
        block.failure = failure
        block.state, block.due_ns = "stopping", None
        self._abandon_below(block)

    def _abandon_below(self, block: Place) -> None:
        for place in block.places:
            self._abandon(place)

    def _abandon(self, place: Place) -> None:
        match place.state:
            case "waiting":
                self._skip(place, self._why_abandoned)
            case "asking":
                self._orders.append(WithdrawLeave(path=place.path, reason=self._why_withdrawn))
                self._skip(place, self._why_abandoned)
            case "ready" | "resting":
                place.due_ns = None
                if place.attempt:
                    self._end(place, "cancelled")
                else:
                    self._skip(place, self._why_abandoned)
            case "running" if place.is_step:
                place.state, place.why, place.due_ns = "stopping", "abandoned", None
                self._orders.append(
                    StopStep(
                        path=place.path,
                        attempt=place.attempt,
                        reason=STOPPED if self.is_cancelled else "it is not needed",
                    )
                )
            case "stopping" if place.is_step:
                place.why = "abandoned"
            case "running" | "stopping":
                if place.state == "running":
                    place.state, place.due_ns = "stopping", None
                self._abandon_below(place)

    @property
    def _why_abandoned(self) -> str:
        return STOPPED if self.is_cancelled else "it was not needed any more"

    @property
    def _why_withdrawn(self) -> str:
        return STOPPED if self.is_cancelled else "the step is not needed any more"

    def _skip(self, place: Place, reason: str) -> None:
        place.state = "skipped"
        self._ends[place.node.step.id] = "skipped"
        self.skipped[place.path] = reason
        self._orders.append(TellSkipped(path=place.path, reason=reason))

    def _end(self, place: Place, state: PlaceState) -> None:
        place.state, place.due_ns = state, None
        self._ends[place.node.step.id] = state
        if not place.is_step and place.path:
            told = "completed" if state == "completed" else "failed" if state == "failed" else "cancelled"
            self._orders.append(TellBlock(path=place.path, state=told, failure=place.failure))  # type: ignore[arg-type]

    # ------------------------------------------------------------ beginning steps

    def _begin_ready(self) -> None:
        """Lets steps begin that are ready, as far as there is room in the workflow and in each block around them."""
        running: dict[str, int] = {}
        for place in self.running:
            for block in _around(place):
                running[block.path] = running.get(block.path, 0) + 1
        for place in list(self.top.below()):
            if place.state != "ready":
                continue
            blocks = _around(place)
            if all(running.get(block.path, 0) < self._room(block) for block in blocks):
                for block in blocks:
                    running[block.path] = running.get(block.path, 0) + 1
                self._begin_step(place)

    def _room(self, block: Place) -> int:
        own = block.node.step.concurrency
        return self.spec.concurrency if own is None else min(own, self.spec.concurrency)

    def _begin_step(self, place: Place) -> None:
        place.attempt += 1
        place.state, place.why = "running", ""
        place.due_ns = self._moment(place.node.step.timeout_s)
        self._orders.append(self._start_order(place))

    def _moment(self, after_s: float | None) -> int | None:
        return None if after_s is None else self._now_ns + round(after_s * NS_PER_S)

    def _start_order(self, place: Place) -> StartStep:
        step = place.node.step
        agent = step.agent or self._routed.get(step.id, "")
        retry = step.retry
        if retry.fallback_agent and retry.attempts > 1 and place.attempt >= retry.attempts:
            agent = retry.fallback_agent
        return StartStep(path=place.path, attempt=place.attempt, agent=agent, step=step, iteration=place.loop_count)

    @staticmethod
    def _question(place: Place) -> AskLeave:
        approval = place.node.step.approval
        assert approval is not None
        return AskLeave(path=place.path, reason=approval.reason, expires_s=approval.expires_s)

    # ------------------------------------------------------------ the end

    def _conclude(self) -> None:
        """Nothing of the tree runs any more: what is to be undone is, then the workflow ends."""
        has_failed = self.top.state == "failed" and not self.is_cancelled
        self.saga.is_begun = self.saga.is_begun or has_failed
        if self.saga.is_busy:
            return
        if has_failed and self.saga.done:
            if not self.is_paused:
                self._orders += self.saga.go_on(self._now_ns)
            return
        undone = tuple(done.path for done in reversed(self.saga.done)) if self.is_cancelled else ()
        if self.is_cancelled:
            self.end = EndWorkflow(outcome="cancelled", reason=self._cancelled or "", undone=undone)
        elif has_failed:
            self.end = EndWorkflow(outcome="failed", failure=self.top.failure, undone=tuple(self.saga.failed))
        else:
            self.end = EndWorkflow(outcome="completed")
        self._orders.append(self.end)


def _is_over(order: WorkflowOrder, entry: j.WorkflowEntry) -> bool:
    """Whether the order is about what the entry says has ended."""
    match order, entry:
        case StopStep(), j.StepEnded() | j.CompensationEnded():
            is_undo = isinstance(entry, j.CompensationEnded)
            return (order.path, order.attempt, order.undo) == (entry.path, entry.attempt, is_undo)
        case WithdrawLeave(), j.StepAnswered():
            return order.path == entry.path
        case _:
            return False


def _around(place: Place) -> list[Place]:
    """The blocks that a place is in, the innermost first."""
    blocks, above = [], place.above
    while above is not None:
        blocks.append(above)
        above = above.above
    return blocks


def _took_too_long(place: Place) -> Failure:
    took = f"{place.path or 'the workflow'} took longer than {place.node.step.timeout_s:g} s"
    return Failure(code="timeout", message=took)
