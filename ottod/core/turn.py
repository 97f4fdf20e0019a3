"""The turn machine: one session's conversation, from input to the end of the turn.

Theory of operation. A turn begins with an input and alternates between two phases: `model`, while one model call
is out, and `tools`, while the calls of the last response run. The response's tool calls run side by side, at most
`max_parallel` at a time, and their results go back in call order, together. A conversation that leaves this
machine is always valid: every tool call has exactly one result, also after a cancellation, because a cancelled
phase `tools` ends only when each call has been resolved.

The machine is pure. The worker executes its actions, writes to the journal before each effect, and feeds results
back as events. A later incarnation makes a machine with the conversation so far and puts it in the middle of its turn
by `TurnResumed`: what has a response or a result is not asked for again.

When a budget lets no call through any more, one last call is made in place of the one that was due, without tools:
what the model says then is the turn's text, and the turn has failed with code `budget`.
"""

from __future__ import annotations

from typing import Literal, assert_never

import msgspec

from ottod.errors import Failure
from ottod.protocol.model import (
    AssistantMessage,
    Message,
    ModelResponse,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)

MAX_NAME_CHARS = 256
"""Of a tool's name or a call's id, in a model's answer."""
MAX_CALLS = 128
"""Tool calls in one answer."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that events and actions share."""


# ------------------------------------------------------------------ events


class InputReceived(Value, frozen=True, kw_only=True, tag=True):
    """A new turn's input. Illegal during a turn."""

    text: str


class TurnResumed(Value, frozen=True, kw_only=True, tag=True):
    """A turn that another incarnation began goes on. Illegal during a turn.

    `step` counts the responses so far. `response` is the newest, unless its consequences are in the conversation
    already; `results` are those of its calls that have theirs, `begun` names those without that may begin again.
    `text` is what the model said last in this turn. With `budget` it had come to its last call.
    """

    turn: int
    step: int = 0
    budget: Failure | None = None
    response: ModelResponse | None = None
    results: tuple[ToolResult, ...] = ()
    begun: frozenset[str] = frozenset()
    text: str = ""


class ModelResponded(Value, frozen=True, kw_only=True, tag=True):
    """The model call came back whole. `shortened`: a budget had no room for as long an answer as it wanted."""

    response: ModelResponse
    shortened: Failure | None = None


class ModelFailed(Value, frozen=True, kw_only=True, tag=True):
    """The model call failed for good: retries are the caller's and are over."""

    failure: Failure


class BudgetReached(Value, frozen=True, kw_only=True, tag=True):
    """The model call that was ordered fits into no budget, and was not made."""

    failure: Failure


class ToolResolved(Value, frozen=True, kw_only=True, tag=True):
    """A running tool call has its result, whatever became of it."""

    result: ToolResult


class CancelRequested(Value, frozen=True, kw_only=True, tag=True):
    """Somebody wants the turn to end now. Idempotent."""

    reason: str = ""


TurnEvent = (
    InputReceived | TurnResumed | ModelResponded | ModelFailed | BudgetReached | ToolResolved | CancelRequested
)

# ------------------------------------------------------------------ actions


class CallModel(Value, frozen=True, kw_only=True, tag=True):
    """Make a model call with this conversation. Steps count from 1 in each turn.

    `is_last`: have the model hand back what it has, without tools, because a budget is used up.
    """

    turn: int
    step: int
    messages: tuple[Message, ...]
    is_last: bool = False


class RunTool(Value, frozen=True, kw_only=True, tag=True):
    """Start a tool call. `is_repeat`: it had begun before, and its intent is in the journal."""

    turn: int
    step: int
    call: ToolCall
    is_repeat: bool = False


class CancelModel(Value, frozen=True, kw_only=True, tag=True):
    """Abandon the model call that is out."""


class CancelTool(Value, frozen=True, kw_only=True, tag=True):
    """Cancel a running tool call; its `ToolResolved` must still come."""

    call: str


class EndTurn(Value, frozen=True, kw_only=True, tag=True):
    """The turn is over. `text` is the model's last word."""

    turn: int
    steps: int
    outcome: Literal["completed", "failed", "cancelled"]
    text: str = ""
    failure: Failure | None = None
    reason: str = ""


TurnAction = CallModel | RunTool | CancelModel | CancelTool | EndTurn
Phase = Literal["idle", "model", "tools"]


class OutOfTurn(AssertionError):
    """An event that cannot happen in this phase: a defect of the caller."""


class TurnMachine:
    """One session's conversation and the turn it is in."""

    def __init__(
        self, *, max_steps: int, max_parallel: int, messages: tuple[Message, ...] = (), turn: int = 0
    ) -> None:
        self.max_steps = max_steps
        self.max_parallel = max_parallel
        self.messages = messages
        self.turn = turn
        self.step_number = 0
        self.phase: Phase = "idle"
        self._calls: tuple[ToolCall, ...] = ()
        self._waiting: list[ToolCall] = []
        self._running: set[str] = set()
        self._results: dict[str, ToolResult] = {}
        self._begun: frozenset[str] = frozenset()
        self._cancelled: str | None = None
        self._last_text = ""
        self._budget: Failure | None = None
        """Set once the call that is out is the last one."""

    def step(self, event: TurnEvent) -> list[TurnAction]:
        """Takes one event and gives the orders that follow. Raises OutOfTurn and changes nothing if it cannot be."""
        match event:
            case InputReceived():
                return self._begin(event.text)
            case TurnResumed():
                return self._resume(event)
            case ModelResponded():
                return self._responded(event.response, shortened=event.shortened)
            case ModelFailed():
                self._expect("model", event)
                return self._end("failed", failure=self._budget or event.failure)
            case BudgetReached():
                return self._reach_budget(event)
            case ToolResolved():
                return self._resolved(event.result)
            case CancelRequested():
                return self._cancel(event.reason)
            case _:
                assert_never(event)

    def _expect(self, phase: Phase, event: TurnEvent) -> None:
        if self.phase != phase:
            raise OutOfTurn(f"{type(event).__name__} cannot happen in phase {self.phase}")

    def _begin(self, text: str) -> list[TurnAction]:
        if self.phase != "idle":
            raise OutOfTurn(f"InputReceived cannot happen in phase {self.phase}")
        self.turn += 1
        self.step_number = 0
        self._cancelled = self._budget = None
        self._last_text = ""
        self.messages = (*self.messages, UserMessage(text=text))
        return self._call_model()

    def _resume(self, event: TurnResumed) -> list[TurnAction]:
        self._expect("idle", event)
        self.turn = event.turn
        self.step_number = event.step
        self._cancelled, self._budget = None, event.budget
        self._last_text = event.text
        if event.response is None:
            return self._call_model()
        self.phase = "model"
        return self._responded(event.response, results=event.results, begun=event.begun)

    def _call_model(self) -> list[TurnAction]:
        if self.step_number >= self.max_steps and self._budget is None:
            failure = Failure(
                code="max_steps",
                message=f"the turn reached its limit of {self.max_steps} model calls",
                mend="raise limits.max_steps of the agent, or split the task",
            )
            return self._end("failed", failure=failure)
        self.step_number += 1
        self.phase = "model"
        is_last = self._budget is not None
        return [CallModel(turn=self.turn, step=self.step_number, messages=self.messages, is_last=is_last)]

    def _reach_budget(self, event: BudgetReached) -> list[TurnAction]:
        """The last call takes the place of the one that was not made. If that does not fit either, it is over."""
        self._expect("model", event)
        if self._budget is not None:
            return self._end("failed", failure=self._budget)
        self._budget = event.failure
        return [CallModel(turn=self.turn, step=self.step_number, messages=self.messages, is_last=True)]

    def _responded(
        self,
        response: ModelResponse,
        *,
        results: tuple[ToolResult, ...] = (),
        begun: frozenset[str] = frozenset(),
        shortened: Failure | None = None,
    ) -> list[TurnAction]:
        self._expect("model", ModelResponded(response=response))
        if self._budget is not None:
            return self._hand_back(response, self._budget)
        self._last_text = text_of(response)
        calls = calls_of(response)
        wrong = what_is_wrong(calls)
        if wrong:
            return self._end("failed", failure=Failure(code="malformed", message=f"the model's answer {wrong}"))
        if response.blocks:
            self.messages = (*self.messages, AssistantMessage(blocks=response.blocks))
        if calls:
            return self._run_tools(calls, results, begun)
        if response.stop == "refusal":
            failure = Failure(code="refused", message=self._last_text or "the model refused to answer")
            return self._end("failed", failure=failure)
        if response.stop == "max_tokens" and shortened is not None:
            self._budget = shortened
            return self._call_model()
        if response.stop == "max_tokens":
            failure = Failure(
                code="max_tokens",
                message="the answer was cut at max_output_tokens",
                mend="raise max_output_tokens of the agent",
            )
            return self._end("failed", failure=failure)
        return self._end("completed")

    def _hand_back(self, response: ModelResponse, failure: Failure) -> list[TurnAction]:
        """The last call's answer. It may not use tools, and if it says nothing, what was said before counts."""
        text = text_of(response)
        if text:
            self._last_text = text
            self.messages = (*self.messages, AssistantMessage(blocks=(Text(text=text),)))
        return self._end("failed", failure=failure)

    def _run_tools(
        self, calls: tuple[ToolCall, ...], results: tuple[ToolResult, ...], begun: frozenset[str]
    ) -> list[TurnAction]:
        self.phase = "tools"
        known = {call.call for call in calls}
        self._calls, self._running, self._begun = calls, set(), begun
        self._results = {result.call: result for result in results if result.call in known}
        self._waiting = [call for call in calls if call.call not in self._results]
        return self._start_waiting() if self._waiting else self._all_resolved()

    def _start_waiting(self) -> list[TurnAction]:
        actions: list[TurnAction] = []
        while self._waiting and len(self._running) < self.max_parallel:
            call = self._waiting.pop(0)
            self._running.add(call.call)
            is_repeat = call.call in self._begun
            actions.append(RunTool(turn=self.turn, step=self.step_number, call=call, is_repeat=is_repeat))
        return actions

    def _resolved(self, result: ToolResult) -> list[TurnAction]:
        if self.phase != "tools" or result.call not in self._running:
            raise OutOfTurn(f"no tool call {result.call!r} is running")
        self._running.discard(result.call)
        self._results[result.call] = result
        if self._cancelled is None and self._waiting:
            return self._start_waiting()
        return [] if self._running else self._all_resolved()

    def _all_resolved(self) -> list[TurnAction]:
        self.messages = (
            *self.messages,
            ToolResults(results=tuple(self._results[c.call] for c in self._calls)),
        )
        if self._cancelled is not None:
            return self._end("cancelled", reason=self._cancelled)
        return self._call_model()

    def _cancel(self, reason: str) -> list[TurnAction]:
        if self.phase == "idle" or self._cancelled is not None:
            return []
        self._cancelled = reason
        if self.phase == "model":
            return [CancelModel(), *self._end("cancelled", reason=reason)]
        for call in self._waiting:
            self._results[call.call] = not_started(call)
        self._waiting = []
        return [CancelTool(call=c.call) for c in self._calls if c.call in self._running]

    def _end(
        self,
        outcome: Literal["completed", "failed", "cancelled"],
        *,
        failure: Failure | None = None,
        reason: str = "",
    ) -> list[TurnAction]:
        self.phase = "idle"
        return [
            EndTurn(
                turn=self.turn,
                steps=self.step_number,
                outcome=outcome,
                text=self._last_text,
                failure=failure,
                reason=reason,
            )
        ]


def text_of(response: ModelResponse) -> str:
    """What the model said, without its thoughts."""
    return "".join(b.text for b in response.blocks if isinstance(b, Text))


def calls_of(response: ModelResponse) -> tuple[ToolCall, ...]:
    """The tool calls of a response, in its order."""
    return tuple(b for b in response.blocks if isinstance(b, ToolCall))


def not_started(call: ToolCall) -> ToolResult:
    """The result of a call that waited when its turn was cancelled."""
    text = "not started: the turn was cancelled"
    return ToolResult(call=call.call, tool=call.tool, text=text, is_error=True)


def what_is_wrong(calls: tuple[ToolCall, ...]) -> str:
    """Why these calls cannot be run; empty if they can. A model's output is a stranger's input."""
    if len({call.call for call in calls}) < len(calls):
        return "gives two tool calls the same id"
    if any(len(name) > MAX_NAME_CHARS for call in calls for name in (call.call, call.tool)):
        return f"names a tool or a call with more than {MAX_NAME_CHARS} characters"
    if len(calls) > MAX_CALLS:
        return f"makes {len(calls)} tool calls at once; {MAX_CALLS} is the limit"
    return ""


def is_valid_conversation(messages: tuple[Message, ...]) -> bool:
    """Every tool call is answered once, in order, by the message after it, and no result comes uncalled."""
    owed: list[str] = []
    for message in messages:
        answered = [r.call for r in message.results] if isinstance(message, ToolResults) else []
        if answered != owed:
            return False
        owed = []
        if isinstance(message, AssistantMessage):
            owed = [b.call for b in message.blocks if isinstance(b, ToolCall)]
    return not owed
