"""Drives the turn machine: executes its orders, writes the journal before each effect, feeds results back.

What happened is appended to the journal, then told to the watchers, then forced to disk, and then acted upon. The
first two are one step of the loop, so that a killed worker leaves a journal and a stream of events that agree.

A call that needs somebody's leave waits for it as a running call, and has no intent before: until then it has not
begun, and another incarnation begins it anew.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec.structs import replace

from ottod.core.context import measure
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
    ModelFailed,
    ModelResponded,
    NoteSteers,
    PauseRequested,
    RunTool,
    Steer,
    SteerReceived,
    TellFindings,
    ToolResolved,
    TurnAction,
    TurnEvent,
    TurnMachine,
    TurnMark,
    TurnsForgotten,
    UnpauseRequested,
    calls_of,
)
from ottod.core.turn import BudgetReached as TurnBudgetReached
from ottod.errors import Failure, OttoError, ProviderError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.events import (
    ItemCompleted,
    ItemStarted,
    LogError,
    LogWarning,
    ToolFailed,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from ottod.protocol.model import ModelResponse, Text, Thinking, ToolCall
from ottod.protocol.worker import BudgetRefusal, Permit
from ottod.worker import last_call
from ottod.worker.approvals import Approvals
from ottod.worker.compaction import Compactor
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.model_call import Answer, ModelCaller
from ottod.worker.permits import BudgetReached
from ottod.worker.slices import TimeSlice
from ottod.worker.text import cut
from ottod.worker.tool_call import Outcome, ToolRunner, failed

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
        self._session = session
        self._on_budget = on_budget
        self._compactor = compactor
        self._machine = machine
        self._models = models
        self._tools = tools
        self._approvals = approvals
        self._inbox = inbox
        self._journal = journal
        self._link = link
        self._on_step = on_step
        self._slice = time_slice or TimeSlice(None)
        self._on_slice = on_slice
        self._said = ""
        """What the turn was begun with."""
        self._events: asyncio.Queue[TurnEvent | None] = asyncio.Queue()
        self._model_task: asyncio.Task[None] | None = None
        self._tool_tasks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._started_ns = 0
        self._broken: StorageError | None = None
        self._is_suspended = False
        self._repeated_step = 0
        self._asking = 0
        """1 while a question about a budget waits for its answer."""
        self._over = asyncio.Event()
        """No turn runs."""
        self._over.set()
        self._unpaused = asyncio.Event()
        self._unpaused.set()

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
    def running_calls(self) -> int:
        """How many tool calls run now. A question about a budget, or about a model, counts as one."""
        return self._asking + self._models.asking + sum(not task.done() for task in self._tool_tasks.values())

    def cancel(self, reason: str) -> None:
        """Asks the turn that is running to end; without one nothing happens."""
        self._events.put_nowait(CancelRequested(reason=reason))

    async def interrupt(self, reason: str) -> None:
        """Cancels the turn that runs, for the session to stay; returns when it is over."""
        self._events.put_nowait(CancelRequested(reason=reason, is_interrupt=True))
        await self._over.wait()

    def steer(self, message: Waiting) -> None:
        """A waiting message is to join the turn that runs; without one it goes on waiting."""
        if self.is_driving:
            self._events.put_nowait(SteerReceived(steer=_steer(message)))

    def pause(self) -> None:
        """From now on no call begins; those that have begun go on."""
        self._unpaused.clear()
        assert not self._machine.step(PauseRequested())

    def unpause(self) -> None:
        """What was held back begins."""
        self._unpaused.set()
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
        self._said = text
        self._tell_begun(self._machine.turn + 1, text)
        return await self._drive(InputReceived(text=text))

    async def resume(self, turn: OpenTurn) -> EndTurn | None:
        """Goes on with a turn that another incarnation began. As `run`."""
        self._begin()
        self._said = turn.said
        event = turn.event
        if not turn.is_known:
            self._tell_begun(event.turn, turn.said)
        else:
            self._link.on_resumed(event.turn)
        if turn.is_model_call_open:
            self._repeated_step = event.step + 1
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
        self._repeated_step = 0
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
                    await self._close(ended)
                    return ended
                self._on_step()
                happened = await self._next_event()
                if self._broken is not None:
                    raise self._broken
                if happened is None:
                    break
                event = happened
            return None
        finally:
            await self._leave_nothing()
            self._over.set()

    async def _next_event(self) -> TurnEvent | None:
        while True:
            event = await self._events.get()
            # A turn before this one may have begun with the message, or another way have taken it.
            if not isinstance(event, SteerReceived) or self._inbox.holds(event.steer.number):
                return event

    # ------------------------------------------------------------ actions

    async def _execute(self, actions: Sequence[TurnAction]) -> EndTurn | None:
        intents = [a for a in actions if isinstance(a, RunTool) and not a.is_repeat and not self._is_guarded(a.call)]
        if intents:
            # All intents of a step share one sync; only then does any of the effects start.
            await self._journal.put([self._intent(a) for a in intents])
            if self._is_suspended:
                return None
        ended: EndTurn | None = None
        for action in actions:
            match action:
                case NoteSteers():
                    self._join(action)
                case CallModel() if self._slice.is_over and action.step > 1 and not action.is_last:
                    await self._end_slice(action)
                case BeginAnew():
                    self._begin_anew(action)
                case TellFindings():
                    for finding in action.findings:
                        self._link.emit(LogWarning(message=finding.message, code=WARNING_CODE + finding.kind))
                case CallModel():
                    self._model_task = asyncio.create_task(self._call_model(action))
                case RunTool():
                    cancelled = self._cancels[action.call.call] = asyncio.Event()
                    self._tool_tasks[action.call.call] = asyncio.create_task(self._run_tool(action, cancelled))
                case CancelModel():
                    if self._model_task is not None:
                        self._model_task.cancel()
                case CancelTool():
                    # An order, not a cancellation of the task: what is being journaled is finished.
                    self._cancels[action.call].set()
                case EndTurn():
                    ended = action
        return ended

    async def _end_slice(self, action: CallModel) -> None:
        """The next incarnation makes this call, in a fresh context."""
        fresh = await self._slice.fresh_context(action.messages, task=self._said)
        entry = j.SliceEnded(turn=action.turn, step=action.step - 1, messages=fresh)
        await self._journal.put([entry])
        self._on_slice()

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

    def _is_guarded(self, call: ToolCall) -> bool:
        """Whether a rule stands before the call. One that cannot be run fails by itself, and nobody is asked."""
        return self._tools.is_runnable(call) and self._approvals.is_guarded(call)

    def _idempotency_key(self, action: RunTool) -> str:
        return f"{self._session}/{action.turn}/{action.step}/{action.call.call}"

    def _intent(self, action: RunTool) -> j.ToolIntended:
        return j.ToolIntended(
            turn=action.turn,
            step=action.step,
            call=action.call.call,
            tool=action.call.tool,
            arguments=action.call.arguments,
            idempotent=self._tools.is_idempotent(action.call),
            idempotency_key=self._idempotency_key(action),
        )

    async def _call_model(self, action: CallModel) -> None:
        item = f"{action.turn}.{action.step}"
        try:
            answer = await (self._call_last(action) if action.is_last else self._call_fitting(action))
            response = answer.response
            entry = j.ModelResponded(
                turn=action.turn, step=action.step, response=response, permit=answer.permit.permit
            )
            self._journal.note(entry)
            shortened = answer.shortened
            if shortened is not None and not action.is_last and not calls_of(response):
                self._journal.note(j.BudgetReached(turn=action.turn, step=action.step, failure=shortened))
            self._models.count(answer)
            if not action.is_last:
                self._compactor.meter.learn(measure(self._machine.messages, response.usage))
            self._announce(response, item)
            await self._journal.put(())
        except ProviderError as error:
            self._events.put_nowait(ModelFailed(failure=error.failure()))
        except StorageError as error:
            self._break(error)
        except BudgetReached as error:
            await self._reach_budget(action, error)
        except OttoError as error:
            self._events.put_nowait(ModelFailed(failure=error.failure()))
        except Exception as error:  # noqa: BLE001 - a provider's defect fails the turn, not the session's process
            text = f"the provider adapter failed: {type(error).__name__}: {error}"[:2000]
            self._events.put_nowait(ModelFailed(failure=Failure(code="provider_defect", message=text)))
        else:
            self._events.put_nowait(ModelResponded(response=response, shortened=shortened))

    async def _call_fitting(self, action: CallModel) -> Answer:
        """The call, with a conversation that fits. One that the model finds too long is shortened once."""
        await self._compactor.fit(turn=action.turn, step=action.step)
        try:
            return await self._call_within_budget(action)
        except ProviderError as error:
            if error.code != "context_too_long":
                raise
            if not await self._compactor.shorten(turn=action.turn, step=action.step, is_urgent=True):
                raise
            return await self._call_within_budget(action)

    async def _call_within_budget(self, action: CallModel) -> Answer:
        """The call; if no budget has room for it, the question whether one may grow, and the call again."""
        request = self._models.request(self._machine.messages)
        on_begun = functools.partial(self._model_called, action)
        asked: set[tuple[str, str, int]] = set()
        while True:
            try:
                return await self._models.call(request, turn=action.turn, step=action.step, on_begun=on_begun)
            except BudgetReached as error:
                limit = error.refusal.session, error.refusal.budget, error.refusal.limit
                if not self._asks_for_budget(error.refusal) or limit in asked:
                    raise  # What was said about this limit has been said.
                asked.add(limit)
                if not await self._ask_for_budget(action, error):
                    raise

    def _asks_for_budget(self, refusal: BudgetRefusal) -> bool:
        """Whether somebody may let it grow. The day's is in the daemon's file, and of nothing there is no double."""
        return self._on_budget == "ask" and refusal.scope != "day" and refusal.limit > 0

    async def _ask_for_budget(self, action: CallModel, error: BudgetReached) -> bool:
        self._asking = 1
        try:
            return await self._approvals.more_budget(error.refusal, error.message, turn=action.turn, step=action.step)
        finally:
            self._asking = 0

    async def _reach_budget(self, action: CallModel, error: BudgetReached) -> None:
        """The turn comes to its last call, or, if not even that fits, to its end. Noted before it is made."""
        failure = error.failure()
        if not action.is_last:
            try:
                await self._journal.put([j.BudgetReached(turn=action.turn, step=action.step, failure=failure)])
            except StorageError as broken:
                self._break(broken)
                return
        self._events.put_nowait(TurnBudgetReached(failure=failure))

    async def _call_last(self, action: CallModel) -> Answer:
        """The call that hands back what there is, as long as what is held back for it allows."""
        on_begun = functools.partial(self._model_called, action)
        for max_bytes in last_call.SIZES_BYTES:
            request = self._models.last_request(action.messages, max_bytes=max_bytes)
            try:
                return await self._models.call(
                    request, turn=action.turn, step=action.step, on_begun=on_begun, is_last=True
                )
            except BudgetReached:
                if max_bytes == last_call.SIZES_BYTES[-1]:
                    raise
        raise AssertionError("no size is the last one")

    async def _model_called(self, action: CallModel, permit: Permit, model: str) -> None:
        """Notes an attempt before it is made. Raises StorageError."""
        entry = j.ModelCalled(
            turn=action.turn, step=action.step, model=model, permit=permit.permit, target=permit.target
        )
        await self._journal.put([entry])
        if action.step == self._repeated_step:
            self._tell_void(f"{action.turn}.{action.step}")

    def _tell_void(self, item: str) -> None:
        """What was streamed of an interrupted answer comes again, from the start and perhaps in other words."""
        self._repeated_step = 0
        self._link.emit(ItemStarted(item=item, kind="assistant_message"))

    def _announce(self, response: ModelResponse, item: str) -> None:
        thought = "".join(b.text for b in response.blocks if isinstance(b, Thinking))
        said = "".join(b.text for b in response.blocks if isinstance(b, Text))
        if thought:
            text, was_cut = cut(thought)
            self._link.emit(ItemCompleted(item=item + "r", kind="reasoning", text=text, truncated=was_cut))
        if said:
            text, was_cut = cut(said)
            self._link.emit(ItemCompleted(item=item, kind="assistant_message", text=text, truncated=was_cut))

    async def _run_tool(self, action: RunTool, cancelled: asyncio.Event) -> None:
        """Runs a call to its result, whatever comes in between: the machine waits for exactly one."""
        call = action.call
        running = asyncio.ensure_future(self._run_with_leave(action))
        stopping = asyncio.ensure_future(cancelled.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                self._approvals.withdraw(call, turn=action.turn, step=action.step)
                running.cancel()
            outcome = self._link.redacted(await self._outcome_of(running, call))
            self._journal.note(
                j.ToolResolved(turn=action.turn, step=action.step, call=call.call, result=outcome.result)
            )
            self._link.emit(outcome.event)
            await self._journal.put(())
        except StorageError as error:
            self._break(error)
        else:
            self._events.put_nowait(ToolResolved(result=outcome.result))
        finally:
            stopping.cancel()
            if not running.done():
                # The turn itself is going down, and nothing of it may outlive it.
                running.cancel()
                await asyncio.wait({running})

    async def _run_with_leave(self, action: RunTool) -> Outcome:
        """The call, once it may begin. Raises StorageError."""
        call = action.call
        if self._is_guarded(call):
            refusal = await self._approvals.leave(call, turn=action.turn, step=action.step)
            if refusal is not None:
                return failed(call, refusal)
            await self._unpaused.wait()
            if not action.is_repeat:
                await self._journal.put([self._intent(action)])
        return await self._tools.run(call, turn=action.turn, step=action.step, key=self._idempotency_key(action))

    @staticmethod
    async def _outcome_of(running: asyncio.Future[Outcome], call: ToolCall) -> Outcome:
        await asyncio.wait({running})
        if running.cancelled():
            return failed(call, Failure(code="cancelled", message="cancelled before it began"))
        error = running.exception()
        if error is None:
            return running.result()
        if isinstance(error, StorageError):
            raise error
        # A defect in running a tool is still that tool's result.
        text = f"{call.tool} could not be run: {type(error).__name__}: {error}"[:2000]
        return failed(call, Failure(code="tool_crashed", message=text))

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
        tasks = [t for t in (self._model_task, *self._tool_tasks.values()) if t is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._link.emit(LogError(message=f"a task of the turn failed: {error!r}", code="internal"))
        self._model_task = None
        self._tool_tasks.clear()
        self._cancels.clear()


def _steer(message: Waiting) -> Steer:
    return Steer(number=message.number, text=message.text, sender=message.sender)
