"""The tools' part of a turn: calls that run side by side, each with leave, an intent and exactly one result.

A call that needs somebody's leave waits for it as a running call, and has no intent before: until then it has not
begun, and another incarnation begins it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ottod.core.turn import RunTool, ToolResolved, TurnEvent
from ottod.errors import Failure, StorageError
from ottod.protocol import journal as j
from ottod.protocol.model import ToolCall
from ottod.worker.approvals import Approvals
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.tool_call import Outcome, ToolRunner, failed


class Acting:
    """One session's. `tell` takes the events for the machine, `on_broken` hears that the journal has failed.

    While `unpaused` is not set, no effect begins.
    """

    def __init__(
        self,
        *,
        session: str,
        tools: ToolRunner,
        approvals: Approvals,
        journal: JournalWriter,
        link: Link,
        unpaused: asyncio.Event,
        tell: Callable[[TurnEvent], None],
        on_broken: Callable[[StorageError], None],
    ) -> None:
        self._session = session
        self._tools = tools
        self._approvals = approvals
        self._journal = journal
        self._link = link
        self._unpaused = unpaused
        self._tell = tell
        self._on_broken = on_broken
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._noted: set[str] = set()
        """The calls, by their keys, whose intents are noted and which start now."""

    @property
    def running(self) -> int:
        """How many calls run now."""
        return sum(not task.done() for task in self._tasks.values())

    async def note_intents(self, actions: Sequence[RunTool]) -> None:
        """Before any of these calls starts: those that need no leave are noted, and share one sync."""
        intents = [a for a in actions if not a.is_repeat and a.failure is None and not self._is_guarded(a.call)]
        if intents:
            await self._journal.put([self._intent(a) for a in intents])
        self._noted = set(map(self._idempotency_key, intents))

    def start(self, action: RunTool) -> None:
        """Starts a call; its result comes as an event."""
        cancelled = self._cancels[action.call.call] = asyncio.Event()
        has_intent = action.is_repeat or self._idempotency_key(action) in self._noted
        self._tasks[action.call.call] = asyncio.create_task(self._run_tool(action, cancelled, has_intent))

    def cancel(self, call: str) -> None:
        """Has a call end; its result still comes. What is being journaled is finished."""
        self._cancels[call].set()

    def take_tasks(self) -> list[asyncio.Task[None]]:
        """What has been started, for whoever ends the turn: it is forgotten here."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._cancels.clear()
        return tasks

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

    async def _run_tool(self, action: RunTool, cancelled: asyncio.Event, has_intent: bool) -> None:
        """Runs a call to its result, whatever comes in between: the machine waits for exactly one."""
        call = action.call
        running = asyncio.ensure_future(self._run_with_leave(action, has_intent))
        stopping = asyncio.ensure_future(cancelled.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                self._approvals.withdraw(call, turn=action.turn, step=action.step)
                running.cancel()
            outcome = await self._conclude(action, await self._outcome_of(running, call))
        except StorageError as error:
            self._on_broken(error)
        else:
            self._tell(ToolResolved(result=outcome.result))
        finally:
            stopping.cancel()
            if not running.done():
                # The turn itself is going down, and nothing of it may outlive it.
                running.cancel()
                await asyncio.wait({running})

    async def _conclude(self, action: RunTool, outcome: Outcome) -> Outcome:
        """Notes and tells what became of a call; gives what the model is told. Raises StorageError."""
        try:
            return await self._note(action, outcome)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - without a result the turn would wait for ever
            text = f"the result of {action.call.tool} could not be noted: {type(error).__name__}: {error}"[:2000]
            failure = Failure(code="tool_crashed", message=ascii(text))
            return await self._note(action, failed(action.call, failure))

    async def _note(self, action: RunTool, outcome: Outcome) -> Outcome:
        outcome = self._link.redacted(outcome)
        self._journal.note(
            j.ToolResolved(turn=action.turn, step=action.step, call=action.call.call, result=outcome.result)
        )
        self._link.emit(outcome.event)
        await self._journal.put(())
        return outcome

    async def _run_with_leave(self, action: RunTool, has_intent: bool) -> Outcome:
        """The call, once it may begin. Raises StorageError."""
        call = action.call
        if action.failure is not None:
            return failed(call, action.failure)
        if self._is_guarded(call):
            refusal = await self._approvals.leave(
                call, turn=action.turn, step=action.step, has_begun=action.is_repeat
            )
            if refusal is not None:
                return failed(call, refusal)
            await self._unpaused.wait()
        # Also if nothing stands before it any more: a path can come to lead elsewhere since intents were noted.
        if not has_intent:
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
