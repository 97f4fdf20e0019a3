"""What the entries of a journal amount to so far, one by one: the fold behind `resume`, and behind rotation.

A response and the results of its calls stay apart from the conversation until it is certain what followed them, so
that the conversation is valid at every entry. All of it can be written down as one entry, a `Snapshot`, and be taken
up from there: `take` of a snapshot puts the past where it was when `snapshot` made it, at any entry.
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec
from msgspec.structs import replace

from ottod.core.approval import MAX_SETTLED, Question, Resolution
from ottod.core.context import Measure, begun_anew, measure, shortened
from ottod.core.heard import Heard
from ottod.core.turn import (
    UNKNOWN,
    EndTurn,
    Steer,
    TurnMark,
    TurnResumed,
    Value,
    calls_of,
    last_text,
    not_started,
    text_of,
    unknown_result,
    what_is_wrong,
)
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
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
from ottod.protocol.usage import Usage

__all__ = ["UNKNOWN", "Attempt", "OpenTurn", "Past", "Restored", "Waiting", "child_report", "unknown_result"]

MAX_ANSWERS = 32
"""To questions of other sessions, that are remembered for who asks again."""
MAX_ANSWER_CHARS = 24 * 1024
MAX_ATTEMPTS = 256
"""Of model calls, that are remembered: more cannot be open at once."""


class Waiting(Value, frozen=True, kw_only=True):
    """A message that waits for a turn. `number` as in the journal: 0 is the session's task.

    `is_steer`: it may join the turn that runs. `key` is that of a message from another session, which
    perhaps `asks` something: then the end of its turn is the answer.
    """

    number: int
    text: str
    sender: str
    is_steer: bool = False
    key: str = ""
    asks: bool = False


class OpenTurn(Value, frozen=True, kw_only=True):
    """A turn that was interrupted.

    `event` puts a machine back into it, once the calls in `unknown` have their results. `is_known` says that a model
    call of it was begun, so that everybody has heard of the turn; `is_model_call_open` that one was lost on its way.
    """

    event: TurnResumed
    unknown: tuple[ToolCall, ...]
    said: str
    is_known: bool
    is_model_call_open: bool


class Attempt(Value, frozen=True, kw_only=True):
    """A model call that was begun with this permit; with `usage` it was answered."""

    permit: str
    target: int = 0
    usage: Usage | None = None


class Restored(Value, frozen=True, kw_only=True):
    """What a journal says of its session. Without entries it is a session that has not begun.

    `messages` is the conversation before what is open. `ended` is the last turn, if it is over. `usages` has the
    consumption of every model response, unpriced. `started` are the children that were started, `children` those of
    them that have not ended. `closed` is the session's last word, if it had one. `questions` are the approvals that
    the open turn waits for, `resolutions` what became of those before. `marks` says where the turns of the
    conversation begin, `processes` which background processes have not ended: they are lost now.
    """

    has_begun: bool = False
    messages: tuple[Message, ...] = ()
    turn: int = 0
    open: OpenTurn | None = None
    ended: EndTurn | None = None
    inbox: tuple[Waiting, ...] = ()
    newest_number: int = 0
    usages: tuple[Usage, ...] = ()
    children: tuple[j.ChildStarted, ...] = ()
    started: tuple[j.ChildStarted, ...] = ()
    ended_children: tuple[j.ChildEnded, ...] = ()
    closed: Cause | None = None
    said: str = ""
    """What the newest turn was begun with."""
    text: str = ""
    questions: tuple[Question, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    marks: tuple[TurnMark, ...] = ()
    is_paused: bool = False
    pause_reason: str = ""
    attempts: tuple[Attempt, ...] = ()
    """The newest attempts of model calls."""
    measures: tuple[Measure, ...] = ()
    """What providers have counted for beginnings of the conversation."""
    processes: tuple[j.ProcessStarted, ...] = ()
    workflow: tuple[j.WorkflowEntry, ...] = ()
    """A workflow's past, in order."""
    deliveries: tuple[j.DeliveryEntry, ...] = ()
    """What became of what its sinks were to have, in order."""
    heard: tuple[str, ...] = ()
    """The keys of messages from other sessions, as far as they are remembered."""
    asked: tuple[j.Asked, ...] = ()
    """Their questions that are open, and the newest that were answered."""
    text_answers: bool = False
    """`text` answers another session's question, for want of anything else."""
    notes: j.NotesRead | None = None
    """The project's notes, as they were read; None if nobody has looked for them yet."""


def child_report(ended: j.ChildEnded) -> Waiting:
    """The message that a child's end is to the session that started it and did not wait."""
    called = f" ({ended.name})" if ended.name not in ("", ended.agent) else ""
    name = f"{called} of agent {ended.agent}" if ended.agent else called
    head = f"[session {ended.child}{name} has ended: {ended.cause}]"
    return Waiting(number=ended.number, text=f"{head}\n\n{ended.result}".rstrip(), sender=ended.child)


class Past:
    """What the entries read so far amount to."""

    def __init__(self) -> None:
        self.has_begun = False
        self.messages: list[Message] = []
        self.inbox: list[Waiting] = []
        self.newest_number = 0
        self.usages: list[Usage] = []
        self.children: dict[str, j.ChildStarted] = {}
        self.ended_children: dict[str, j.ChildEnded] = {}
        self.processes: dict[str, j.ProcessStarted] = {}
        self.closed: Cause | None = None
        self.text = ""
        # The newest turn.
        self.turn = 0
        self.is_open = False
        self.ended: EndTurn | None = None
        self.said = ""
        self.called_step = 0
        self.responded_step = 0
        self.turn_text = ""
        self.budget: Failure | None = None
        # The newest response, until its consequences are in the conversation, and what became of its calls.
        self.response: ModelResponse | None = None
        self.intents: dict[str, bool] = {}
        self.results: dict[str, ToolResult] = {}
        # Leave that was asked for: what is open belongs to the newest turn, what was answered may hold for longer.
        self.questions: dict[str, Question] = {}
        self.resolutions: list[Resolution] = []
        self.attempts: dict[str, Attempt] = {}
        self.marks: list[TurnMark] = []
        self.is_paused = False
        self.pause_reason = ""
        self.measures: list[Measure] = []
        self.anew_at = 0
        self.workflow: list[j.WorkflowEntry] = []
        self.deliveries: list[j.DeliveryEntry] = []
        self.heard = Heard()
        self.asked: dict[str, j.Asked] = {}
        self.text_answers = False
        self.notes: j.NotesRead | None = None

    def take(self, entry: j.JournalEntry) -> None:
        """The next entry. Any beginning of a journal will do; nothing in one raises."""
        match entry:
            case j.SessionOpened():
                self.has_begun, self.closed = True, None
                if entry.task:
                    self.inbox.append(Waiting(number=0, text=entry.task, sender="user"))
            case j.NotesRead():
                self.notes = entry
            case j.InputAccepted():
                self._wait(_waiting(entry))
                if entry.key:
                    self.heard.add(entry.key)
                if entry.asks:
                    self.asked[entry.key] = j.Asked(key=entry.key, number=entry.number)
            case j.InputWithdrawn():
                self._take_out(entry.number)
                self.asked = {key: a for key, a in self.asked.items() if a.number != entry.number or a.turn}
            case j.UserSaid():
                self._begin_turn(entry)
            case j.UserSteered():
                self._settle()
                self._take_out(entry.number)
                self.messages.append(UserMessage(text=entry.text))
            case j.ModelCalled():
                self._settle()
                self.called_step = entry.step
                self._begin_attempt(Attempt(permit=entry.permit, target=entry.target))
            case j.ModelResponded():
                self._respond(entry)
            case j.BudgetReached():
                self._settle()
                self.budget = entry.failure
            case j.SummaryCalled():
                self._settle()
                self._begin_attempt(Attempt(permit=entry.permit, target=entry.target))
            case j.ConversationShortened():
                self._shorten(entry)
            case j.TurnBegunAnew():
                self._begin_anew(entry)
            case j.ToolIntended():
                self.intents[entry.call] = entry.idempotent
            case j.ApprovalAsked():
                self._ask(entry)
            case j.ApprovalResolved():
                self._answer(entry)
            case j.ToolResolved():
                self.results[entry.call] = entry.result
                if entry.result.ends_turn:
                    self.turn_text = entry.result.text
            case j.TurnEnded():
                self._end_turn(entry)
            case j.SessionPaused():
                self.is_paused, self.pause_reason = True, entry.reason
            case j.SessionUnpaused():
                self.is_paused, self.pause_reason = False, ""
            case j.TurnsRolledBack():
                self._roll_back(entry.turns)
            case j.SliceEnded():
                self._settle()
                self.messages, self.measures = list(entry.messages), []
                # What was replaced cannot be gone back to.
                self.marks = [TurnMark(turn=self.turn, at=0)] if self.is_open else []
            case j.ChildStarted():
                self.children[entry.child] = entry
            case j.ChildEnded():
                self._end_child(entry)
            case j.ProcessStarted():
                self.processes[entry.process] = entry
            case j.ProcessEnded():
                self.processes.pop(entry.process, None)
            case (
                j.WorkflowBegun()
                | j.StepBegun()
                | j.StepEnded()
                | j.StepSkipped()
                | j.StepAnswered()
                | j.CompensationBegun()
                | j.CompensationEnded()
                | j.WorkflowAwoke()
                | j.WorkflowCancelled()
                | j.WorkflowFailed()
                | j.WorkflowPaused()
                | j.WorkflowResumed()
            ):
                self.workflow.append(entry)
            case j.Delivered() | j.DeliveryFailed():
                self.deliveries.append(entry)
            case j.Checkpoint():
                pass
            case j.Snapshot():
                self._load(entry)
            case j.SessionClosed():
                if self.is_open:
                    self._end_turn(j.TurnEnded(turn=self.turn, outcome="cancelled"))
                self.closed = entry.cause
            case _:
                assert_never(entry)

    def _wait(self, message: Waiting) -> None:
        self.inbox.append(message)
        self.newest_number = max(self.newest_number, message.number)

    def _begin_turn(self, entry: j.UserSaid) -> None:
        self._settle()
        self.questions.clear()
        self._take_out(entry.number)
        if self.notes is None:
            self.notes = j.NotesRead()  # There were none, and there will be none.
        self.marks.append(TurnMark(turn=entry.turn, at=len(self.messages)))
        self.messages.append(UserMessage(text=entry.text))
        self.turn, self.is_open, self.ended, self.said = entry.turn, True, None, entry.text
        self.called_step = self.responded_step = self.anew_at = 0
        self.turn_text, self.budget = "", None
        for key, asked in self.asked.items():
            if entry.number and asked.number == entry.number:
                self.asked[key] = replace(asked, turn=entry.turn)

    def _take_out(self, number: int) -> None:
        taken = next((m for m in self.inbox if m.number == number), None)
        if taken is not None:
            self.inbox.remove(taken)

    def _begin_attempt(self, attempt: Attempt) -> None:
        if attempt.permit:
            self.attempts[attempt.permit] = attempt
            if len(self.attempts) > MAX_ATTEMPTS:
                del self.attempts[next(iter(self.attempts))]

    def _respond(self, entry: j.ModelResponded) -> None:
        self._settle()
        if (begun := self.attempts.get(entry.permit)) is not None:
            self.attempts[entry.permit] = replace(begun, usage=entry.response.usage)
        if self.budget is None:
            self.measures.append(measure(self.messages, entry.response.usage))
        self.response = entry.response
        self.responded_step = entry.step
        text = text_of(entry.response)
        self.turn_text = text if text or self.budget is None else self.turn_text
        self.usages.append(entry.response.usage)
        self.intents, self.results = {}, {}

    def _end_turn(self, entry: j.TurnEnded) -> None:
        self._settle()
        self.is_open = False
        self.questions.clear()
        answers = self._answer_questions(entry)
        # What a session says to its own task counts for more than what it answers others.
        if self.turn_text and (not answers or self.text_answers or not self.text):
            self.text, self.text_answers = self.turn_text, answers
        self.ended = EndTurn(
            turn=entry.turn,
            steps=self.called_step,
            outcome=entry.outcome,
            text=self.turn_text,
            failure=entry.failure,
            is_interrupt=entry.interrupted,
        )

    def _answer_questions(self, entry: j.TurnEnded) -> bool:
        """The end of a turn answers the question that began it. True if there is one."""
        is_answer = False
        for key, asked in self.asked.items():
            if asked.turn == entry.turn and not asked.outcome:
                is_answer = True
                text = self.turn_text[:MAX_ANSWER_CHARS]
                self.asked[key] = replace(asked, outcome=entry.outcome, text=text, failure=entry.failure)
        answered = [key for key, asked in self.asked.items() if asked.outcome]
        for key in answered[:-MAX_ANSWERS]:
            del self.asked[key]
        return is_answer

    def _shorten(self, entry: j.ConversationShortened) -> None:
        self._settle()
        messages, marks = shortened(tuple(self.messages), tuple(self.marks), entry.at, entry.summary)
        self.messages, self.marks = list(messages), list(marks)
        self.measures = [Measure(count=len(messages), tokens=entry.tokens_after)]
        if entry.usage is not None:
            self.usages.append(entry.usage)
            if (begun := self.attempts.get(entry.permit)) is not None:
                self.attempts[entry.permit] = replace(begun, usage=entry.usage)

    def _begin_anew(self, entry: j.TurnBegunAnew) -> None:
        self._settle()
        self.messages = list(begun_anew(tuple(self.messages), tuple(self.marks), entry.turn, entry.text))
        self._forget_measures()
        self.anew_at = entry.step

    def _forget_measures(self) -> None:
        """Of what is no longer there. The newest message now may be another one than it was."""
        self.measures = [known for known in self.measures if known.count < len(self.messages)]

    def _roll_back(self, turns: int) -> None:
        if self.is_open:
            return  # Nobody may have written that.
        self._settle()
        kept, forgotten = self.marks[:-turns] if turns else self.marks, self.marks[-turns:] if turns else []
        if forgotten:
            self.marks = kept
            del self.messages[forgotten[0].at :]
            self._forget_measures()
            self.ended = None
            self.text = last_text(self.messages)

    def _ask(self, entry: j.ApprovalAsked) -> None:
        self.questions[entry.approval] = Question(**_fields(entry))

    def _answer(self, entry: j.ApprovalResolved) -> None:
        self.questions.pop(entry.approval, None)
        self.resolutions.append(Resolution(**_fields(entry)))
        if len(self.resolutions) > 2 * MAX_SETTLED:
            # What holds for the session holds, however long ago it was said.
            old, new = self.resolutions[:-MAX_SETTLED], self.resolutions[-MAX_SETTLED:]
            self.resolutions = [*({r.tool: r for r in old if r.scope == "session"}).values(), *new]

    def _end_child(self, entry: j.ChildEnded) -> None:
        self.ended_children[entry.child] = entry
        if entry.number:
            self._wait(child_report(entry))

    def _settle(self) -> None:
        """Something followed the newest response: it and the results of its calls belong to the conversation."""
        response, self.response = self.response, None
        if response is None or not response.blocks:
            return
        if self.budget is not None:
            if text := text_of(response):
                self.messages.append(AssistantMessage(blocks=(Text(text=text),)))
            return
        calls = calls_of(response)
        if what_is_wrong(calls):
            return
        self.messages.append(AssistantMessage(blocks=response.blocks))
        if calls:
            self.messages.append(ToolResults(results=tuple(self._result(call) for call in calls)))

    def _result(self, call: ToolCall) -> ToolResult:
        known = self.results.get(call.call)
        if known is not None:
            return known
        return unknown_result(call) if call.call in self.intents else not_started(call)

    def restored(self) -> Restored:
        live = (child for name, child in self.children.items() if name not in self.ended_children)
        return Restored(
            has_begun=self.has_begun,
            messages=tuple(self.messages),
            turn=self.turn,
            open=self._open_turn() if self.is_open else None,
            ended=self.ended,
            inbox=tuple(self.inbox),
            newest_number=self.newest_number,
            usages=tuple(self.usages),
            children=tuple(live),
            started=tuple(self.children.values()),
            ended_children=tuple(self.ended_children.values()),
            closed=self.closed,
            said=self.said,
            text=self.text,
            questions=tuple(self.questions.values()),
            resolutions=tuple(self.resolutions),
            marks=tuple(self.marks),
            is_paused=self.is_paused,
            pause_reason=self.pause_reason,
            attempts=tuple(self.attempts.values()),
            measures=tuple(self.measures),
            processes=tuple(self.processes.values()),
            workflow=tuple(self.workflow),
            deliveries=tuple(self.deliveries),
            heard=self.heard.keys,
            asked=tuple(self.asked.values()),
            text_answers=self.text_answers,
            notes=self.notes,
        )

    def _open_turn(self) -> OpenTurn:
        calls = calls_of(self.response) if self.response is not None else ()
        undecided = [c for c in calls if c.call in self.intents and c.call not in self.results]
        return OpenTurn(
            event=TurnResumed(
                turn=self.turn,
                step=self.responded_step,
                response=self.response,
                results=tuple(self.results[c.call] for c in calls if c.call in self.results),
                begun=frozenset(c.call for c in undecided if self.intents[c.call]),
                text=self.turn_text,
                budget=self.budget,
                steers=tuple(Steer(number=m.number, text=m.text, sender=m.sender) for m in self.inbox if m.is_steer),
                anew_at=self.anew_at,
            ),
            unknown=tuple(c for c in undecided if not self.intents[c.call]),
            said=self.said,
            is_known=self.called_step > 0,
            is_model_call_open=self.called_step > self.responded_step,
        )

    # ------------------------------------------------------------ as one entry

    def snapshot(self) -> j.Snapshot:
        """All of it."""
        response, ended = self.response, self.ended
        return j.Snapshot(
            has_begun=self.has_begun,
            messages=tuple(self.messages),
            marks=tuple((mark.turn, mark.at) for mark in self.marks),
            inbox=tuple(
                j.InputAccepted(
                    number=m.number, text=m.text, sender=m.sender, steer=m.is_steer, key=m.key, asks=m.asks
                )
                for m in self.inbox
            ),
            newest_number=self.newest_number,
            usages=tuple(self.usages),
            children=tuple(self.children.values()),
            ended_children=tuple(self.ended_children.values()),
            closed=self.closed,
            text=self.text,
            turn=self.turn,
            is_open=self.is_open,
            ended=None
            if ended is None
            else j.TurnEnded(
                turn=ended.turn, outcome=ended.outcome, failure=ended.failure, interrupted=ended.is_interrupt
            ),
            ended_steps=ended.steps if ended is not None else 0,
            ended_text=ended.text if ended is not None else "",
            said=self.said,
            called_step=self.called_step,
            responded_step=self.responded_step,
            turn_text=self.turn_text,
            response=response,
            intents=dict(self.intents) if response is not None else {},
            results=tuple(self.results.values()) if response is not None else (),
            questions=tuple(j.ApprovalAsked(**_fields(q)) for q in self.questions.values()),
            resolutions=tuple(j.ApprovalResolved(**_fields(r)) for r in self.resolutions),
            is_paused=self.is_paused,
            pause_reason=self.pause_reason,
            budget=self.budget,
            attempts=tuple((a.permit, a.target, a.usage) for a in self.attempts.values()),
            measures=tuple((known.count, known.tokens) for known in self.measures),
            anew_at=self.anew_at,
            processes=tuple(self.processes.values()),
            workflow=tuple(self.workflow),
            deliveries=tuple(self.deliveries),
            heard=self.heard.keys,
            asked=tuple(self.asked.values()),
            text_answers=self.text_answers,
            notes=self.notes,
        )

    def _load(self, entry: j.Snapshot) -> None:
        self.has_begun, self.closed = entry.has_begun, entry.closed
        self.messages = list(entry.messages)
        self.marks = [TurnMark(turn=turn, at=at) for turn, at in entry.marks]
        self.inbox = [_waiting(m) for m in entry.inbox]
        self.newest_number = entry.newest_number
        self.usages = list(entry.usages)
        self.children = {child.child: child for child in entry.children}
        self.ended_children = {child.child: child for child in entry.ended_children}
        self.processes = {process.process: process for process in entry.processes}
        self.text, self.turn, self.said = entry.text, entry.turn, entry.said
        self.called_step, self.responded_step = entry.called_step, entry.responded_step
        self.turn_text, self.is_open = entry.turn_text, entry.is_open
        self.response, self.intents = entry.response, dict(entry.intents)
        self.results = {result.call: result for result in entry.results}
        self.questions = {asked.approval: Question(**_fields(asked)) for asked in entry.questions}
        self.resolutions = [Resolution(**_fields(known)) for known in entry.resolutions]
        self.is_paused, self.pause_reason = entry.is_paused, entry.pause_reason
        self.budget = entry.budget
        self.attempts = {
            permit: Attempt(permit=permit, target=target, usage=usage) for permit, target, usage in entry.attempts
        }
        self.measures = [Measure(count=count, tokens=tokens) for count, tokens in entry.measures]
        self.anew_at = entry.anew_at
        self.workflow, self.deliveries = list(entry.workflow), list(entry.deliveries)
        self.heard = Heard(entry.heard)
        self.asked = {asked.key: asked for asked in entry.asked}
        self.text_answers = entry.text_answers
        self.notes = entry.notes
        self.ended = _end_of(entry.ended, entry) if entry.ended is not None else None


def _waiting(entry: j.InputAccepted) -> Waiting:
    return Waiting(
        number=entry.number,
        text=entry.text,
        sender=entry.sender,
        is_steer=entry.steer,
        key=entry.key,
        asks=entry.asks,
    )


def _end_of(ended: j.TurnEnded, entry: j.Snapshot) -> EndTurn:
    return EndTurn(
        turn=ended.turn,
        steps=entry.ended_steps,
        outcome=ended.outcome,
        text=entry.ended_text,
        failure=ended.failure,
        is_interrupt=ended.interrupted,
    )


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    """An entry's fields for the value of the same shape, and the other way round."""
    return {name: getattr(value, name) for name in value.__struct_fields__}
