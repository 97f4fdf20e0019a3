"""Drives the turn machine: executes its orders, writes the journal before each effect, feeds results back.

What happened is appended to the journal, then told to the watchers, then forced to disk, and then acted upon. The
first two are one step of the loop, so that a killed worker leaves a journal and a stream of events that agree.

What the model and the tools are asked for is made by two of their own, `answering` and `acting`; both tell what came
of it as events of the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec.structs import replace

from ottod.core.health import WARNING_CODE
from ottod.core.resume import UNKNOWN, OpenTurn, Waiting, unknown_result
from ottod.core.turn import (
    NOTE,
    BeginAnew,
    CallModel,
    CancelModel,
    CancelRequested,
    CancelTool,
    EndTurn,
    InputReceived,
    NoteSteers,
    PauseRequested,
    RunTool,
    Steer,
    SteerReceived,
    TellFindings,
    TurnAction,
    TurnEvent,
    TurnMachine,
    TurnMark,
    TurnsForgotten,
    UnpauseRequested,
    last_text,
)
from ottod.errors import Failure, StorageError
from ottod.protocol import journal as j
from ottod.protocol.events import (
    ItemCompleted,
    LogError,
    LogWarning,
    ToolFailed,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from ottod.worker.acting import Acting
from ottod.worker.answering import Answering
from ottod.worker.approvals import Approvals
from ottod.worker.backlog import AnnouncedBacklog
from ottod.worker.compaction import Compactor
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.model_call import ModelCaller
from ottod.worker.slices import TimeSlice
from ottod.worker.text import cut
from ottod.worker.tool_call import ToolRunner

SHOWN_INPUT_BYTES = 2000
"""Of an input, in the event that begins its turn."""


class TurnDriver:
    """Runs the turns of one session, one at a time. `on_step` is called when calls have begun or ended."""

    def __init__(
        self,
        *,
        session: str,
        machine: TurnMachine,
        models: ModelCaller,
        tools: ToolRunner,
        approvals: Approvals,
        inbox: Inbox,
        compactor: Compactor,
        journal: JournalWriter,
        link: Link,
        on_step: Callable[[], None],
        on_budget: Literal["stop", "ask"] = "stop",
        time_slice: TimeSlice | None = None,
        on_slice: Callable[[], None] = lambda: None,
    ) -> None:
        self._compactor = compactor
        self._machine = machine
        self._models = models
        self._inbox = inbox
        self._journal = journal
        self._link = link
        self._on_step = on_step
        self._backlog = AnnouncedBacklog(link)
        self._events: asyncio.Queue[TurnEvent | None] = asyncio.Queue()
        self._started_ns = 0
        self._broken: StorageError | None = None
        self._is_suspended = False
        self._is_left_open = False
        """The turn that ran is not over: another incarnation goes on with it."""
        self._over = asyncio.Event()
        """No turn runs."""
        self._over.set()
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._answering = Answering(
            machine=machine,
            models=models,
            compactor=compactor,
            approvals=approvals,
            journal=journal,
            link=link,
            tell=self._events.put_nowait,
            on_broken=self._break,
            on_budget=on_budget,
            time_slice=time_slice,
            on_slice=on_slice,
        )
        self._acting = Acting(
            session=session,
            tools=tools,
            approvals=approvals,
            journal=journal,
            link=link,
            unpaused=self._unpaused,
            tell=self._events.put_nowait,
            on_broken=self._break,
        )

    @property
    def turns(self) -> int:
        """How many turns have begun."""
        return self._machine.turn

    @property
    def is_driving(self) -> bool:
        """Whether a turn runs."""
        return not self._over.is_set()

    @property
    def marks(self) -> tuple[TurnMark, ...]:
        """The turns that the conversation consists of."""
        return self._machine.marks

    @property
    def last_text(self) -> str:
        """What the model said last in the conversation as it is."""
        return last_text(self._machine.messages)

    @property
    def running_calls(self) -> int:
        """How many tool calls run now. A question about a budget, or about a model, counts as one."""
        return self._answering.asking + self._acting.running

    def cancel(self, reason: str) -> None:
        """Asks the turn that is running to end; without one nothing happens."""
        self._events.put_nowait(CancelRequested(reason=reason))

    async def interrupt(self, reason: str) -> bool:
        """Cancels the turn that runs, for the session to stay; returns when it is over, or, with False, when it has
        been left open for another incarnation."""
        self._events.put_nowait(CancelRequested(reason=reason, is_interrupt=True))
        await self._over.wait()
        return not self._is_left_open

    def steer(self, message: Waiting) -> None:
        """A waiting message is to join the turn that runs; without one it goes on waiting."""
        if self.is_driving:
            self._events.put_nowait(SteerReceived(steer=_steer(message)))

    def pause(self) -> None:
        """From now on no call begins; those that have begun go on."""
        self._unpaused.clear()
        self._models.pause()
        assert not self._machine.step(PauseRequested())

    def unpause(self) -> None:
        """What was held back begins."""
        self._unpaused.set()
        self._models.unpause()
        if self.is_driving:
            self._events.put_nowait(UnpauseRequested())
        else:
            self._machine.step(UnpauseRequested())

    def forget(self, turns: int) -> None:
        """The last turns leave the conversation. No turn runs, and there are as many."""
        self._machine.step(TurnsForgotten(turns=turns))
        self._compactor.meter.cut_back(len(self._machine.messages))

    def suspend(self) -> None:
        """Leaves the turn as it is, for another incarnation to go on with. No other turn begins here."""
        self._is_suspended = True
        self._events.put_nowait(None)

    async def run(self, text: str) -> EndTurn | None:
        """One turn, from input to its end; None if it was suspended. Raises StorageError if the journal fails."""
        self._begin()
        self._answering.said = text
        self._tell_begun(self._machine.turn + 1, text)
        return await self._drive(InputReceived(text=text))

    async def resume(self, turn: OpenTurn) -> EndTurn | None:
        """Goes on with a turn that another incarnation began. As `run`."""
        self._begin()
        self._answering.said = turn.said
        event = turn.event
        if not turn.is_known:
            self._tell_begun(event.turn, turn.said)
        else:
            self._link.on_resumed(event.turn)
        if turn.is_model_call_open:
            self._answering.repeated_step = event.step + 1
        for call in turn.unknown:
            result = unknown_result(call)
            self._journal.note(j.ToolResolved(turn=event.turn, step=event.step, call=call.call, result=result))
            failure = Failure(code="unknown", message=UNKNOWN)
            self._link.emit(ToolFailed(call=call.call, tool=call.tool, failure=failure))
        await self._journal.put(())
        results = (*event.results, *(unknown_result(call) for call in turn.unknown))
        return await self._drive(replace(event, results=results))

    def _begin(self) -> None:
        self._over.clear()
        # The order to go on may have come too late for the turn before.
        self._machine.step(UnpauseRequested() if self._unpaused.is_set() else PauseRequested())
        self._answering.repeated_step = 0
        self._started_ns = time.monotonic_ns()
        while not self._events.empty():
            self._events.get_nowait()

    def _tell_begun(self, turn: int, text: str) -> None:
        self._link.emit(TurnStarted(turn=turn, input=cut(text, SHOWN_INPUT_BYTES)[0]))

    async def _drive(self, event: TurnEvent) -> EndTurn | None:
        try:
            while not self._is_suspended:
                ended = await self._execute(self._machine.step(event))
                if ended is not None:
                    self._tell_backlog()
                    await self._close(ended)
                    return ended
                self._on_step()
                self._tell_backlog()
                happened = await self._next_event()
                if self._broken is not None:
                    raise self._broken
                if happened is None:
                    break
                event = happened
            self._is_left_open = True
            return None
        finally:
            await self._leave_nothing()
            self._over.set()

    def _tell_backlog(self) -> None:
        machine = self._machine
        self._backlog.has(machine.waiting_count, running=machine.running_count, limit=machine.max_parallel)

    async def _next_event(self) -> TurnEvent | None:
        while True:
            event = await self._events.get()
            if isinstance(event, CancelRequested):
                return replace(event, response=self._answering.noted)
            # A turn before this one may have begun with the message, or another way have taken it.
            if not isinstance(event, SteerReceived) or self._inbox.holds(event.steer.number):
                return event

    # ------------------------------------------------------------ actions

    async def _execute(self, actions: Sequence[TurnAction]) -> EndTurn | None:
        runs = [action for action in actions if isinstance(action, RunTool)]
        if runs:
            # All intents of a step share one sync; only then does any of the effects start.
            await self._acting.note_intents(runs)
            if self._is_suspended:
                return None
        ended: EndTurn | None = None
        for action in actions:
            match action:
                case NoteSteers():
                    self._join(action)
                case BeginAnew():
                    self._begin_anew(action)
                case TellFindings():
                    for finding in action.findings:
                        self._link.emit(LogWarning(message=finding.message, code=WARNING_CODE + finding.kind))
                case CallModel():
                    self._answering.start(action)
                case RunTool():
                    self._acting.start(action)
                case CancelModel():
                    self._answering.cancel()
                case CancelTool():
                    self._acting.cancel(action.call)
                case EndTurn():
                    ended = action
        return ended

    def _join(self, action: NoteSteers) -> None:
        """Nothing depends on the note before the model call that follows, whose own entry is synced."""
        for steer in action.steers:
            entry = j.UserSteered(
                turn=action.turn, step=action.step, number=steer.number, text=steer.text, sender=steer.sender
            )
            self._journal.note(entry)
            self._inbox.take_out(steer.number)
            item = f"{action.turn}.m{steer.number}" if steer.number != NOTE else f"{action.turn}.{action.step}n"
            self._link.emit(ItemCompleted(item=item, kind="user_message", text=cut(steer.text)[0]))

    def _begin_anew(self, action: BeginAnew) -> None:
        """As with what joins the turn, the model call that follows makes it durable."""
        self._journal.note(j.TurnBegunAnew(turn=action.turn, step=action.step, text=action.text))
        self._compactor.meter.cut_back(len(self._machine.messages))
        self._link.emit(LogWarning(message=f"turn {action.turn} begins anew", code="begun_anew"))
        item = f"{action.turn}.{action.step}a"
        self._link.emit(ItemCompleted(item=item, kind="user_message", text=cut(action.text)[0]))

    def _break(self, error: StorageError) -> None:
        """Without a journal nothing may go on: the turn ends with the error at its next step."""
        self._broken = error
        self._events.put_nowait(CancelRequested(reason=error.message))

    # ------------------------------------------------------------ ending

    async def _close(self, ended: EndTurn) -> None:
        entry = j.TurnEnded(
            turn=ended.turn, outcome=ended.outcome, failure=ended.failure, interrupted=ended.is_interrupt
        )
        self._journal.note(entry)
        duration_ms = (time.monotonic_ns() - self._started_ns) // 1_000_000
        match ended.outcome:
            case "completed":
                usage = self._models.total
                self._link.emit(
                    TurnCompleted(turn=ended.turn, steps=ended.steps, usage=usage, duration_ms=duration_ms)
                )
            case "failed":
                assert ended.failure is not None
                self._link.emit(TurnFailed(turn=ended.turn, failure=ended.failure, duration_ms=duration_ms))
            case "cancelled":
                self._link.emit(
                    TurnCancelled(
                        turn=ended.turn,
                        reason=ended.reason,
                        duration_ms=duration_ms,
                        interrupted=ended.is_interrupt,
                    )
                )
        await self._journal.put(())

    async def _leave_nothing(self) -> None:
        """Cancels and awaits whatever still runs: a turn's tasks do not outlive it."""
        tasks = [*self._answering.take_tasks(), *self._acting.take_tasks()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._link.emit(LogError(message=f"a task of the turn failed: {error!r}", code="internal"))


def _steer(message: Waiting) -> Steer:
    return Steer(number=message.number, text=message.text, sender=message.sender)
