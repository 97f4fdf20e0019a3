"""The model's part of a turn: a call that fits the context and the budgets, noted, told, and only then acted upon.

The conversation is shortened where it must be. A call that no budget has room for is asked about if somebody may let
the budget grow, and otherwise becomes the last one. What came of a call is an event for the turn machine. When the
incarnation's time slice is over, what the next one begins with is made in place of the call; it can be cancelled like
one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Literal

from ottod.core.context import measure
from ottod.core.turn import BudgetReached as TurnBudgetReached
from ottod.core.turn import CallModel, ModelFailed, ModelResponded, TurnEvent, TurnMachine, calls_of
from ottod.errors import Failure, OttoError, ProviderError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.events import ItemCompleted, ItemStarted
from ottod.protocol.model import ModelResponse, Text, Thinking
from ottod.protocol.worker_requests import BudgetRefusal, Permit
from ottod.worker import last_call
from ottod.worker.approvals import Approvals
from ottod.worker.compaction import Compactor
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.model_call import Answer, ModelCaller
from ottod.worker.permits import BudgetReached
from ottod.worker.slices import TimeSlice
from ottod.worker.text import cut


class Answering:
    """One session's. `tell` takes the events for the machine, `on_broken` hears that the journal has failed."""

    def __init__(
        self,
        *,
        machine: TurnMachine,
        models: ModelCaller,
        compactor: Compactor,
        approvals: Approvals,
        journal: JournalWriter,
        link: Link,
        tell: Callable[[TurnEvent], None],
        on_broken: Callable[[StorageError], None],
        on_budget: Literal["stop", "ask"] = "stop",
        time_slice: TimeSlice | None = None,
        on_slice: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine = machine
        self._models = models
        self._compactor = compactor
        self._approvals = approvals
        self._journal = journal
        self._link = link
        self._tell = tell
        self._on_broken = on_broken
        self._on_budget = on_budget
        self._slice = time_slice or TimeSlice(None)
        self._on_slice = on_slice
        self._has_answered = False
        """A slice has an answer at least, however short it is: else one could follow another, each with a summary to
        pay for, and nothing would come of it."""
        self.said = ""
        """What the turn was begun with."""
        self._asking = 0
        """1 while a question about a budget waits for its answer."""
        self.repeated_step = 0
        """The step whose call an earlier incarnation has begun, and watchers have heard something of."""
        self.noted: ModelResponse | None = None
        """What the call that was started last has given, once it is in the journal: from then on it belongs to the
        conversation, whether or not the machine comes to hear of it."""
        self._task: asyncio.Task[None] | None = None

    @property
    def asking(self) -> int:
        """How many questions about a budget, or about a model, wait for an answer."""
        return self._asking + self._models.asking

    def start(self, action: CallModel) -> None:
        """Makes the call; what came of it comes as an event."""
        self.noted = None
        self._task = asyncio.create_task(self._answer(action))

    def cancel(self) -> None:
        """Abandons the call that is out. It tells nothing more."""
        if self._task is not None:
            self._task.cancel()

    def take_tasks(self) -> list[asyncio.Task[None]]:
        """The call that was started last, for whoever ends the turn: it is forgotten here."""
        task, self._task, self.noted = self._task, None, None
        return [task] if task is not None else []

    async def _answer(self, action: CallModel) -> None:
        event: TurnEvent
        try:
            if self._slice.is_over and self._has_answered and action.step > 1 and not action.is_last:
                await self._end_slice(action)
                return
            event = await self._respond(action)
        except ProviderError as error:
            event = ModelFailed(failure=error.failure())
        except StorageError as error:
            self._on_broken(error)
            return
        except BudgetReached as error:
            await self._reach_budget(action, error)
            return
        except OttoError as error:
            event = ModelFailed(failure=error.failure())
        except Exception as error:  # noqa: BLE001 - a provider's defect fails the turn, not the session's process
            text = f"the provider adapter failed: {type(error).__name__}: {error}"[:2000]
            event = ModelFailed(failure=Failure(code="provider_defect", message=text))
        self._tell(event)

    async def _respond(self, action: CallModel) -> TurnEvent:
        answer = await (self._call_last(action) if action.is_last else self._call_fitting(action))
        response = answer.response
        entry = j.ModelResponded(turn=action.turn, step=action.step, response=response, permit=answer.permit.permit)
        self._journal.note(entry)
        self.noted, self._has_answered = response, True
        shortened = answer.shortened
        if shortened is not None and not action.is_last and not calls_of(response):
            self._journal.note(j.BudgetReached(turn=action.turn, step=action.step, failure=shortened))
        self._models.count(answer)
        if not action.is_last:
            self._compactor.meter.learn(measure(self._machine.messages, response.usage))
        self._announce(response, f"{action.turn}.{action.step}")
        await self._journal.put(())
        return ModelResponded(response=response, shortened=shortened)

    async def _end_slice(self, action: CallModel) -> None:
        """The next incarnation makes this call, in a fresh context."""
        fresh = await self._slice.fresh_context(action.messages, task=self.said)
        # One step of the loop: whatever comes in from now on, the turn stays open, and the next one has it.
        self._journal.note(j.SliceEnded(turn=action.turn, step=action.step - 1, messages=fresh))
        self._on_slice()

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
                self._on_broken(broken)
                return
        self._tell(TurnBudgetReached(failure=failure))

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
        if action.step == self.repeated_step:
            self._tell_void(f"{action.turn}.{action.step}")

    def _tell_void(self, item: str) -> None:
        """What was streamed of an interrupted answer comes again, from the start and perhaps in other words."""
        self.repeated_step = 0
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
