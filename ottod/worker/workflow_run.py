"""Runs a workflow: notes what happens, gives it to the machine, and does what the machine then wants done.

What happens is noted, given to the machine and told to watchers in one step of the loop; what follows from it is done
when it is durable. So another incarnation that is given the same journal wants the same done, and finds what was
begun by its key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, assert_never

from msgspec.structs import replace

from ottod.core.step_brief import failure_told
from ottod.core.workflow import WorkflowMachine
from ottod.core.workflow_orders import (
    AskLeave,
    Compensate,
    EndWorkflow,
    StartStep,
    StopStep,
    TellBlock,
    TellIteration,
    TellSkipped,
    WithdrawLeave,
    WorkflowOrder,
)
from ottod.core.workflow_tree import any_round
from ottod.protocol import journal as j
from ottod.protocol.events import (
    BlockEnded,
    BlockStarted,
    CompensationEnded,
    CompensationStarted,
    IterationStarted,
    StepEnded,
    StepSkipped,
    StepStarted,
)
from ottod.worker.approvals import Approvals
from ottod.worker.backlog import AnnouncedBacklog
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.workflow_step import Attempt, Workshop

MAX_LOOK_S = 60.0
"""Between two looks at the clock while a moment is waited for: timers stand still while the machine sleeps."""
SLACK_NS = 1_000_000_000
"""How far the wall clock may be behind before it is noted how much time has passed."""

Key = tuple[str, int, bool]
"""Path and attempt, and whether it undoes the step."""


class WorkflowRun:
    """One incarnation's part of it. `on_change` is called when what it waits for has changed, `on_entry` hears of all
    that is noted."""

    def __init__(
        self,
        machine: WorkflowMachine,
        link: Link,
        *,
        journal: JournalWriter,
        approvals: Approvals,
        on_change: Callable[[], None],
        on_entry: Callable[[j.WorkflowEntry], None] = lambda entry: None,
        clock: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self.machine = machine
        self._link = link
        self._journal = journal
        self._approvals = approvals
        self._on_change = on_change
        self._backlog = AnnouncedBacklog(link)
        self._on_entry = on_entry
        self._clock = clock
        self._known_ns, self._known_at_ns = time.time_ns(), clock()
        """The latest moment that is known, and when that was by the clock: the wall clock may be set, and back."""
        self._shop: Workshop | None = None
        self._begun: dict[Key, j.StepBegun | j.CompensationBegun] = {}
        self._failures: dict[str, str] = {}
        self._trees: dict[str, str] = {}
        """Where diffs begin, by path, and of loops by that without the iteration; whoever goes on with another's
        workflow begins there too."""
        self._undoing: dict[str, j.CompensationEnded] = {}
        """The newest attempt to undo each step that has ended."""
        self._skips_noted: set[str] = set()
        self._pending: list[WorkflowOrder] = []
        self._attempts: dict[Key, Attempt] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_suspended = False
        self._broken: BaseException | None = None

    @property
    def is_only_asking(self) -> bool:
        """Whether all it does is wait for somebody's leave."""
        return bool(self._asking) and not self._attempts

    # ------------------------------------------------------------ from the past, to the end

    def restore(self, past: Iterable[j.WorkflowEntry]) -> None:
        """Gives the machine what earlier incarnations noted."""
        for entry in past:
            self.machine.step(entry)
            match entry:
                case j.StepBegun():
                    self._begun[entry.path, entry.attempt, False] = entry
                    self._note_tree(entry)
                case j.CompensationBegun():
                    self._begun[entry.path, entry.attempt, True] = entry
                case j.CompensationEnded():
                    self._note_undoing(entry)
                case j.StepSkipped():
                    self._skips_noted.add(entry.path)
                case j.StepEnded() if entry.failure is not None:
                    self._failures[entry.path] = failure_told(entry.failure.message, entry.summary)
                case j.WorkflowResumed():
                    # The sessions of what had begun are another one's, and ended with it.
                    self._begun.clear()
                    self._failures.clear()
                    self._skips_noted = set(self.machine.skipped)
                case _:
                    pass
        self._known_ns, self._known_at_ns = max(self.machine.now_ns, time.time_ns()), self._clock()
        self._pending = self.machine.outstanding()

    def _note_tree(self, entry: j.StepBegun) -> None:
        if entry.tree:
            self._trees.setdefault(entry.path, entry.tree)
            self._trees.setdefault(any_round(entry.path), entry.tree)

    def _note_undoing(self, entry: j.CompensationEnded) -> None:
        before = self._undoing.get(entry.path)
        if before is not None and not entry.session:
            # It came to no session: what is known of how far it has come is still the one's before.
            entry = replace(entry, session=before.session)
        self._undoing[entry.path] = entry

    async def serve(self, shop: Workshop) -> EndWorkflow | None:
        """Goes on to the end, or until it is suspended. Raises StorageError if the journal fails."""
        self._shop = shop
        for path, reason in self.machine.skipped.items():
            self._tell_skipped(TellSkipped(path=path, reason=reason))
        while True:
            while self._pending and not self._is_suspended:
                orders, self._pending = self._pending, []
                await self._journal.put(())
                for order in orders:
                    self._perform(order)
            self.check()
            if self._is_suspended or self.machine.end is not None:
                return None if self._is_suspended else self.machine.end
            self._set_timer()
            self._backlog.has(
                self.machine.waiting_count,
                running=len(self.machine.running),
                limit=self.machine.spec.concurrency,
            )
            self._on_change()
            self._wake.clear()
            await self._wake.wait()

    def check(self) -> None:
        """Raises what broke it off, if anything did."""
        if self._broken is not None:
            raise self._broken

    def suspend(self) -> None:
        """Leaves everything as it is, for another incarnation to go on with."""
        self._is_suspended = True
        self._wake.set()

    async def aclose(self) -> None:
        """Ends what this incarnation does for the workflow. Its sessions are root's."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ------------------------------------------------------------ what happens

    def happen(self, entry: j.WorkflowEntry) -> None:
        """Notes it, and hears what follows. Raises StorageError."""
        now_ns = self._now_ns()
        is_timed = self.machine.has_begun and self.machine.end is None
        if is_timed and now_ns - max(self.machine.now_ns, time.time_ns()) > SLACK_NS:
            # What the machine has heard is later than the wall clock: it would take time for not having passed.
            self._hear(j.WorkflowAwoke(at_ns=now_ns))
        self._hear(entry)

    def _now_ns(self) -> int:
        """The moment now, as the workflow counts: it never goes back, and stands still for nothing."""
        return self._known_ns + self._clock() - self._known_at_ns

    def _hear(self, entry: j.WorkflowEntry) -> None:
        self._journal.note(entry)
        self._pending += self.machine.step(entry)
        if self.machine.now_ns > self._now_ns():
            self._known_ns, self._known_at_ns = self.machine.now_ns, self._clock()
        self._tell(entry)
        self._on_entry(entry)
        self._wake.set()

    def _tell(self, entry: j.WorkflowEntry) -> None:
        match entry:
            case j.StepEnded():
                if entry.failure is not None:
                    self._failures[entry.path] = failure_told(entry.failure.message, entry.summary)
                begun = self._begun.get((entry.path, entry.attempt, False))
                took_ns = entry.at_ns - begun.at_ns if begun is not None else 0
                told = StepEnded(
                    path=entry.path,
                    attempt=entry.attempt,
                    outcome=entry.outcome,
                    child=entry.session,
                    failure=entry.failure,
                    artifacts=entry.artifacts,
                    duration_ms=max(0, took_ns) // 1_000_000,
                    retry_ms=-(-self.machine.resting_ns(entry.path) // 1_000_000),
                )
                self._link.emit(told)
            case j.CompensationEnded():
                self._note_undoing(entry)
                self._link.emit(
                    CompensationEnded(
                        path=entry.path,
                        attempt=entry.attempt,
                        outcome=entry.outcome,
                        child=entry.session,
                        failure=entry.failure,
                    )
                )
            case _:
                pass

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ns = self.machine.due_ns
        if due_ns is not None:
            left_s = min(MAX_LOOK_S, max(0.0, (due_ns - self._now_ns()) / 1e9))
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)

    def _look(self) -> None:
        self._timer = None
        due_ns, now_ns = self.machine.due_ns, self._now_ns()
        if due_ns is not None and now_ns >= due_ns:
            self._guarded(lambda: self._hear(j.WorkflowAwoke(at_ns=now_ns)))
        else:
            self._wake.set()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - `serve` raises it
            self.break_off(error)

    def break_off(self, error: BaseException) -> None:
        """Something went wrong that `serve` is to raise."""
        self._broken = self._broken or error
        self._wake.set()

    # ------------------------------------------------------------ what is to be done

    def _perform(self, order: WorkflowOrder) -> None:
        match order:
            case StartStep():
                self._start(order, self._make(order))
            case Compensate():
                self._start(order, self._undo(order))
            case StopStep():
                attempt = self._attempts.get((order.path, order.attempt, order.undo))
                if attempt is not None:
                    attempt.stop(order.reason)
            case AskLeave():
                self._asking[order.path] = self._later(self._ask(order))
            case WithdrawLeave():
                task = self._asking.pop(order.path, None)
                if task is not None:
                    task.cancel()
                self._approvals.withdraw_step(order.path, order.reason)
            case TellSkipped():
                self._tell_skipped(order)
            case TellIteration():
                self._link.emit(IterationStarted(path=order.path, iteration=order.iteration, of=order.of))
            case TellBlock():
                self._tell_block(order)
            case EndWorkflow():
                pass  # `serve` sees it.
            case _:
                assert_never(order)

    def _tell_skipped(self, order: TellSkipped) -> None:
        if order.path not in self._skips_noted:
            self._skips_noted.add(order.path)
            self._journal.note(j.StepSkipped(path=order.path, at_ns=time.time_ns(), reason=order.reason))
            self._link.emit(StepSkipped(path=order.path, reason=order.reason))

    def _tell_block(self, order: TellBlock) -> None:
        if order.state == "running":
            self._link.emit(BlockStarted(path=order.path))
        else:
            self._link.emit(BlockEnded(path=order.path, outcome=order.state, failure=order.failure))

    def _start(self, order: StartStep | Compensate, work: Coroutine[Any, Any, None]) -> None:
        assert self._shop is not None
        key = order.path, order.attempt, isinstance(order, Compensate)
        attempt = self._attempts[key] = Attempt(self._shop, order)
        begun = self._begun.get(key)
        attempt.was_begun = begun is not None
        attempt.begun = begun if isinstance(begun, j.StepBegun) else None
        attempt.undoing = self._undoing.get(order.path)
        attempt.tree_before = self._trees.get(order.path, "")
        attempt.tree_of_loop = self._trees.get(any_round(order.path), "")
        attempt.last_failure = self._failures.get(order.path, "") if order.attempt > 1 else ""
        self._later(work)

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._watched(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - `serve` raises it
            self.break_off(error)

    async def _make(self, order: StartStep) -> None:
        key = order.path, order.attempt, False

        async def begin(entry: j.StepBegun) -> None:
            self._begun[key] = entry
            self._note_tree(entry)
            self.happen(entry)
            self._link.emit(
                StepStarted(path=entry.path, attempt=entry.attempt, agent=entry.agent, title=order.step.title)
            )
            await self._journal.put(())

        ended = await self._attempts[key].make(order, begin)
        del self._attempts[key]
        self.happen(ended)

    async def _undo(self, order: Compensate) -> None:
        key = order.path, order.attempt, True
        if key not in self._begun:
            agent = order.compensation.agent
            entry = j.CompensationBegun(path=order.path, attempt=order.attempt, agent=agent, at_ns=time.time_ns())
            self._begun[key] = entry
            self.happen(entry)
            self._link.emit(CompensationStarted(path=order.path, attempt=order.attempt, agent=agent))
            await self._journal.put(())
        ended = await self._attempts[key].undo(order)
        del self._attempts[key]
        self.happen(ended)

    async def _ask(self, order: AskLeave) -> None:
        try:
            failure = await self._approvals.step_leave(order.path, order.reason, expires_s=order.expires_s)
        except asyncio.CancelledError:
            # The step is not needed any more: nothing follows.
            return
        self._asking.pop(order.path, None)
        self.happen(j.StepAnswered(path=order.path, at_ns=time.time_ns(), failure=failure))
