"""The turn machine: one session's conversation, from input to the end of the turn.

Theory of operation. A turn begins with an input and alternates between two phases: `model`, while one model call
is out, and `tools`, while the calls of the last response run. The response's tool calls run side by side, at most
`max_parallel` at a time, and their results go back in call order, together. A conversation that leaves this
machine is always valid: every tool call has exactly one result, also after a cancellation, because a cancelled
phase `tools` ends only when each call has been resolved.

A running turn can be spoken to: a *steer* waits for the next moment at which every call has its result, and joins
the conversation there, before the model call that follows; an answer that would have ended the turn does not end it
while one waits. An *interrupt* is a cancellation after which the session is to stay. While the machine is *paused* it
orders no model call and starts no tool call; what runs goes on to its result, and where a model call would be next
the turn is `held`.

After each step, and when the model gives what it takes for its last word, the agent's *conduct* is asked: it may have
something said to the model, which joins the conversation as a steer does, end the turn, or have its work begun anew
behind its input, with half of the steps that are left and one tool at a time.

The machine is pure. The worker executes its actions, writes to the journal before each effect, and feeds results
back as events. A later incarnation makes a machine with the conversation so far and puts it in the middle of its turn
by `TurnResumed`: what has a response or a result is not asked for again.

A result can end the turn by itself, as that of a handoff does: then the model is not asked again.

When a budget lets no call through any more, one last call is made in place of the one that was due, without tools:
what the model says then is the turn's text, and the turn has failed with code `budget`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, assert_never

import msgspec

from ottod.core.conduct import NOTHING, SENDER, Conduct, Verdict
from ottod.core.context import begun_anew, shortened, turn_begins_at
from ottod.core.turn_events import (
    BeginAnew,
    BudgetReached,
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
    Phase,
    RunTool,
    Shortened,
    Steer,
    SteerReceived,
    TellFindings,
    ToolResolved,
    TurnAction,
    TurnEvent,
    TurnMark,
    TurnResumed,
    TurnsForgotten,
    UnpauseRequested,
    Value,
)
from ottod.errors import UNDECODABLE, Failure
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

__all__ = [
    "NOTE",
    "UNKNOWN",
    "BeginAnew",
    "BudgetReached",
    "CallModel",
    "CancelModel",
    "CancelRequested",
    "CancelTool",
    "EndTurn",
    "InputReceived",
    "ModelFailed",
    "ModelResponded",
    "NoteSteers",
    "OutOfTurn",
    "PauseRequested",
    "Phase",
    "RunTool",
    "Shortened",
    "Steer",
    "SteerReceived",
    "TellFindings",
    "ToolResolved",
    "TurnAction",
    "TurnEvent",
    "TurnMachine",
    "TurnMark",
    "TurnResumed",
    "TurnsForgotten",
    "UnpauseRequested",
    "Value",
    "calls_of",
    "is_valid_conversation",
    "last_text",
    "not_started",
    "text_of",
    "unknown_result",
    "what_is_wrong",
]

MAX_NAME_CHARS = 256
"""Of a tool's name or a call's id, in a model's answer."""
NOTE = -1
"""The number of a steer that nobody sent: no waiting message has it."""
MAX_FAILURE_CHARS = 500
MAX_CALLS = 128
"""Tool calls in one answer."""
UNKNOWN = (
    "unknown: the process that made this call was lost before its result was noted. It may or may not have had its "
    "effect, in whole or in part. Find out before you repeat it."
)


class OutOfTurn(AssertionError):
    """An event that cannot happen in this phase: a defect of the caller."""


class TurnMachine:
    """One session's conversation and the turn it is in. `marks` says where each turn of it begins."""

    def __init__(
        self,
        *,
        max_steps: int,
        max_parallel: int,
        messages: tuple[Message, ...] = (),
        turn: int = 0,
        marks: tuple[TurnMark, ...] = (),
        conduct: Conduct | None = None,
    ) -> None:
        self.max_steps = max_steps
        self.max_parallel = max_parallel
        self.messages = messages
        self.turn = turn
        self.marks = marks
        self.step_number = 0
        self.phase: Phase = "idle"
        self.is_paused = False
        self._calls: tuple[ToolCall, ...] = ()
        self._waiting: list[ToolCall] = []
        self._running: set[str] = set()
        self._results: dict[str, ToolResult] = {}
        self._begun: frozenset[str] = frozenset()
        self._cut = ""
        """The call, of the last response, that came without all of its arguments."""
        self._steers: tuple[Steer, ...] = ()
        self._cancelled: CancelRequested | None = None
        self._last_text = ""
        self._budget: Failure | None = None
        """Set once the call that is out is the last one."""
        self._conduct = conduct
        self._anew_at = 0
        """The step at which the turn's work was begun anew, if it was."""

    @property
    def waiting_count(self) -> int:
        """How many calls of the last response would begin if there were more room."""
        return len(self._waiting) if self.phase == "tools" and not self.is_paused else 0

    @property
    def running_count(self) -> int:
        """How many calls of the last response run."""
        return len(self._running) if self.phase == "tools" else 0

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
            case SteerReceived():
                if self.phase != "idle":
                    self._steers = (*self._steers, event.steer)
                return []
            case CancelRequested():
                return self._cancel(event)
            case PauseRequested():
                self.is_paused = True
                return []
            case UnpauseRequested():
                return self._unpause()
            case TurnsForgotten():
                return self._forget(event)
            case Shortened():
                return self._shorten(event)
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
        self._steers = ()
        self._last_text = ""
        self.marks = (*self.marks, TurnMark(turn=self.turn, at=len(self.messages)))
        self.messages = (*self.messages, UserMessage(text=text))
        self._anew_at = 0
        self._begin_conduct()
        return self._call_model()

    def _resume(self, event: TurnResumed) -> list[TurnAction]:
        self._expect("idle", event)
        self.turn = event.turn
        self.step_number = event.step
        self._cancelled, self._budget = None, event.budget
        self._steers = event.steers
        self._last_text = event.text
        self._anew_at = event.anew_at
        self._begin_conduct()
        if event.response is None:
            return self._call_model()
        self.phase = "model"
        return self._responded(event.response, results=event.results, begun=event.begun)

    @property
    def _step_limit(self) -> int:
        return self.max_steps if not self._anew_at else self._anew_at + max(1, (self.max_steps - self._anew_at) // 2)

    def _call_model(self) -> list[TurnAction]:
        if self.step_number >= self._step_limit and self._budget is None:
            failure = Failure(
                code="max_steps",
                message=f"the turn reached its limit of {self._step_limit} model calls",
                mend="raise limits.max_steps of the agent, or split the task",
            )
            return self._end("failed", failure=failure)
        if self.is_paused:
            self.phase = "held"
            return []
        self.step_number += 1
        self.phase = "model"
        actions: list[TurnAction] = []
        if self._steers:
            steers, self._steers = self._steers, ()
            self.messages = (*self.messages, *(UserMessage(text=steer.text) for steer in steers))
            actions.append(NoteSteers(turn=self.turn, step=self.step_number, steers=steers))
        is_last = self._budget is not None
        return [*actions, CallModel(turn=self.turn, step=self.step_number, messages=self.messages, is_last=is_last)]

    def _reach_budget(self, event: BudgetReached) -> list[TurnAction]:
        """The last call takes the place of the one that was not made. If that does not fit either, it is over."""
        self._expect("model", event)
        if self._budget is not None:
            return self._end("failed", failure=self._budget)
        self._budget = event.failure
        if self.is_paused:
            self.step_number -= 1
            self.phase = "held"
            return []
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
            return self._run_tools(calls, results, begun, cut=cut_call(response))
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
        if self._steers and self.step_number < self._step_limit:
            return self._call_model()  # It was spoken to while it gave what would have been its last word.
        verdict = self._conduct.answered(self._last_text, self._turn_messages) if self._conduct else NOTHING
        return self._end("completed") if verdict == NOTHING else self._go_on(verdict)

    def _hand_back(self, response: ModelResponse, failure: Failure) -> list[TurnAction]:
        """The last call's answer. It may not use tools, and if it says nothing, what was said before counts."""
        text = text_of(response)
        if text:
            self._last_text = text
            self.messages = (*self.messages, AssistantMessage(blocks=(Text(text=text),)))
        return self._end("failed", failure=failure)

    def _run_tools(
        self, calls: tuple[ToolCall, ...], results: tuple[ToolResult, ...], begun: frozenset[str], *, cut: str
    ) -> list[TurnAction]:
        self.phase = "tools"
        known = {call.call for call in calls}
        self._calls, self._running, self._begun, self._cut = calls, set(), begun, cut
        self._results = {result.call: result for result in results if result.call in known}
        self._waiting = [call for call in calls if call.call not in self._results]
        return self._start_waiting() if self._waiting else self._all_resolved()

    def _start_waiting(self) -> list[TurnAction]:
        actions: list[TurnAction] = []
        max_parallel = 1 if self._anew_at else self.max_parallel
        while self._waiting and not self.is_paused and len(self._running) < max_parallel:
            call = self._waiting.pop(0)
            self._running.add(call.call)
            is_repeat = call.call in self._begun
            failure = arguments_cut(call) if call.call == self._cut and not is_repeat else None
            run = RunTool(turn=self.turn, step=self.step_number, call=call, is_repeat=is_repeat, failure=failure)
            actions.append(run)
        return actions

    def _resolved(self, result: ToolResult) -> list[TurnAction]:
        if self.phase != "tools" or result.call not in self._running:
            raise OutOfTurn(f"no tool call {result.call!r} is running")
        self._running.discard(result.call)
        self._results[result.call] = result
        if self._waiting:
            return self._start_waiting()
        return [] if self._running else self._all_resolved()

    def _all_resolved(self) -> list[TurnAction]:
        results = tuple(self._results[call.call] for call in self._calls)
        self.messages = (*self.messages, ToolResults(results=results))
        if self._cancelled is not None:
            return self._end("cancelled", cancel=self._cancelled)
        last = next((result for result in results if result.ends_turn), None)
        if last is not None:
            self._last_text = last.text
            if last.is_error:
                return self._end("failed", failure=handed_back(last))
            turn = self._turn_messages
            verdict = self._conduct.handed_back(last.text, self._calls, results, turn) if self._conduct else NOTHING
            return self._end("completed") if verdict == NOTHING else self._go_on(verdict)
        if self._conduct is None:
            return self._call_model()
        return self._go_on(self._conduct.stepped(self._calls, results, self._turn_messages))

    # ------------------------------------------------------------ conduct

    @property
    def _turn_messages(self) -> tuple[Message, ...]:
        return self.messages[turn_begins_at(self.messages, self.marks, self.turn) :]

    def _begin_conduct(self) -> None:
        if self._conduct is not None:
            self._conduct.begin_turn(self._turn_messages, is_anew=self._anew_at > 0)

    def _go_on(self, verdict: Verdict) -> list[TurnAction]:
        actions: list[TurnAction] = [TellFindings(findings=verdict.findings)] if verdict.findings else []
        if verdict.failure is not None:
            return [*actions, *self._end("failed", failure=verdict.failure)]
        if verdict.anew:
            self.messages = begun_anew(self.messages, self.marks, self.turn, verdict.anew)
            self._anew_at = self.step_number
            self._begin_conduct()
            actions.append(BeginAnew(turn=self.turn, step=self.step_number, text=verdict.anew))
            return [*actions, *self._call_model()]
        notes = (Steer(number=NOTE, text=text, sender=SENDER) for text in verdict.notes)
        self._steers = (*notes, *self._steers)
        return [*actions, *self._call_model()]

    def _shorten(self, event: Shortened) -> list[TurnAction]:
        if self.phase not in ("idle", "model"):
            raise OutOfTurn(f"Shortened cannot happen in phase {self.phase}")
        self.messages, self.marks = shortened(self.messages, self.marks, event.at, event.summary)
        if self.phase == "model":
            self._begin_conduct()
        return []

    def _cancel(self, order: CancelRequested) -> list[TurnAction]:
        if self.phase == "idle" or self._cancelled is not None:
            return []
        self._cancelled = order
        if self.phase == "model":
            if order.response is not None:
                self._take_in(order.response)
            return [CancelModel(), *self._end("cancelled", cancel=order)]
        if self.phase == "held":
            return self._end("cancelled", cancel=order)
        for call in self._waiting:
            self._results[call.call] = unknown_result(call) if call.call in self._begun else not_started(call)
        self._waiting = []
        if not self._running:
            return self._all_resolved()
        return [CancelTool(call=c.call) for c in self._calls if c.call in self._running]

    def _take_in(self, response: ModelResponse) -> None:
        """A paid answer belongs to the conversation, also if nothing follows from it: its calls are not started."""
        text, calls = text_of(response), calls_of(response)
        if self._budget is not None:
            if text:
                self._last_text = text
                self.messages = (*self.messages, AssistantMessage(blocks=(Text(text=text),)))
            return
        self._last_text = text
        if not response.blocks or what_is_wrong(calls):
            return
        self.messages = (*self.messages, AssistantMessage(blocks=response.blocks))
        if calls:
            self.messages = (*self.messages, ToolResults(results=tuple(map(not_started, calls))))

    def _unpause(self) -> list[TurnAction]:
        self.is_paused = False
        if self.phase == "held":
            return self._call_model()
        return self._start_waiting() if self.phase == "tools" else []

    def _forget(self, event: TurnsForgotten) -> list[TurnAction]:
        self._expect("idle", event)
        if not 0 < event.turns <= len(self.marks):
            raise OutOfTurn(f"there are {len(self.marks)} turns, and {event.turns} are to be forgotten")
        kept, first = self.marks[: -event.turns], self.marks[-event.turns]
        self.marks, self.messages = kept, self.messages[: first.at]
        return []

    def _end(
        self,
        outcome: Literal["completed", "failed", "cancelled"],
        *,
        failure: Failure | None = None,
        cancel: CancelRequested | None = None,
    ) -> list[TurnAction]:
        self.phase = "idle"
        return [
            EndTurn(
                turn=self.turn,
                steps=self.step_number,
                outcome=outcome,
                text=self._last_text,
                failure=failure,
                reason=cancel.reason if cancel is not None else "",
                is_interrupt=cancel is not None and cancel.is_interrupt,
            )
        ]


def text_of(response: ModelResponse) -> str:
    """What the model said, without its thoughts."""
    return "".join(b.text for b in response.blocks if isinstance(b, Text))


def last_text(messages: Iterable[Message]) -> str:
    """What the model said last in a conversation; empty if it has said nothing."""
    said = (
        "".join(b.text for b in m.blocks if isinstance(b, Text)) for m in messages if isinstance(m, AssistantMessage)
    )
    return next((text for text in reversed(tuple(said)) if text), "")


def calls_of(response: ModelResponse) -> tuple[ToolCall, ...]:
    """The tool calls of a response, in its order."""
    return tuple(b for b in response.blocks if isinstance(b, ToolCall))


def cut_call(response: ModelResponse) -> str:
    """The id of the call in whose arguments the output limit fell, so that it cannot be told what they are.

    Nothing comes behind it. Arguments that are there, and whole, can be no beginning of others.
    """
    last = response.blocks[-1] if response.blocks else None
    if response.stop != "max_tokens" or not isinstance(last, ToolCall):
        return ""
    try:
        is_whole = bool(msgspec.json.decode(last.arguments.encode("utf-8", "replace")))
    except UNDECODABLE:
        is_whole = False
    return "" if is_whole else last.call


def arguments_cut(call: ToolCall) -> Failure:
    """Why such a call is not started."""
    return Failure(
        code="cut",
        message=f"not started: the answer reached its output limit within the arguments of {call.tool}",
        mend="make the call again; what is long, in parts",
    )


def not_started(call: ToolCall) -> ToolResult:
    """The result of a call that waited when its turn was cancelled."""
    text = "not started: the turn was cancelled"
    return ToolResult(call=call.call, tool=call.tool, text=text, is_error=True)


def handed_back(result: ToolResult) -> Failure:
    """Why a turn has failed that ended with this result."""
    first = (result.text.splitlines() or ["it failed"])[0]
    return Failure(code="successor_failed", message=first[:MAX_FAILURE_CHARS])


def unknown_result(call: ToolCall) -> ToolResult:
    """The result of a call of which nobody knows whether it had its effect."""
    return ToolResult(call=call.call, tool=call.tool, text=UNKNOWN, is_error=True)


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
