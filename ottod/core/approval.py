"""Leave for tool calls: what becomes of the questions that permission rules ask.

Theory of operation. A call that a rule says `ask` about (see `permission`) becomes a *question*. Its id follows from
the session and the call's place in it, so that an incarnation that comes to the same call again asks the same
question. A question is settled once: approved, denied, expired when nobody answered in time, or withdrawn with its
call. Whoever answers later hears what had become of it. An answer with scope `session` settles all open questions
about its tool, and is the answer to every later one. Leave with scope `agent` settles the open questions about the
same claims; root keeps it, and gives it to every session of the agent as a standing grant.

The book is pure. The worker writes each `Settle` to the journal before anybody acts on it, and gives a later
incarnation what the journal holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Literal, assert_never

import msgspec

from ottod.errors import Failure
from ottod.ids import ALPHABET, ID_CHARS

PREFIX = "a-"
OWN_QUESTIONS = b"otto's own"
MAX_SETTLED = 1000
"""Settled questions that are remembered for whoever answers them again."""

Decision = Literal["approved", "denied", "expired", "withdrawn"]
Scope = Literal["once", "session", "agent"]


def approval_id(session: str, *, turn: int, step: int, call: str, is_own: bool = False) -> str:
    """The id of the question about a call: `a-` and ten characters, the same for the same call.

    `is_own`: the question is Otto's own and `call` its name. No call has its id, whatever a model's answer calls it.
    """
    place = f"{session}/{turn}/{step}/{call}".encode("utf-8", "surrogatepass")
    digest = blake2b(place, digest_size=8, person=OWN_QUESTIONS if is_own else b"").digest()
    number = int.from_bytes(digest, "big")
    return PREFIX + "".join(ALPHABET[number >> 5 * place & 31] for place in range(ID_CHARS))


def normalise_approval(text: str) -> str:
    """An approval's id or its beginning as typed, with or without `a-`, in canonical form."""
    text = text.strip().lower()
    return text if text.startswith(PREFIX) else PREFIX + text


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that questions, events and actions share."""


class Question(Value, frozen=True, kw_only=True):
    """A call that waits for leave. `expires_at_ns` is the wall clock's: it has to hold for later incarnations.

    `claims` are what it needs leave for, `source` is where the rule stands. `is_grantable`: the claims say exactly
    what that is, so that leave for them can stand. `shown` is the digest of the diff that is shown with it.
    """

    approval: str
    turn: int
    step: int
    call: str
    tool: str
    reason: str = ""
    expires_at_ns: int | None = None
    claims: tuple[str, ...] = ()
    source: str = ""
    is_grantable: bool = False
    shown: str = ""


class Resolution(Value, frozen=True, kw_only=True):
    """What became of a question. `shown` is the question's: what its answer is about."""

    approval: str
    tool: str
    decision: Decision
    scope: Scope = "once"
    by: str = ""
    reason: str = ""
    shown: str = ""

    def __str__(self) -> str:
        return self.decision + (f" by {self.by}" if self.by else "") + (f": {self.reason}" if self.reason else "")


# ------------------------------------------------------------------ events


class CallHeld(Value, frozen=True, kw_only=True, tag=True):
    """A call came to a rule that says ask, and nothing that is known answers it."""

    question: Question


class AnswerGiven(Value, frozen=True, kw_only=True, tag=True):
    """Somebody answered."""

    approval: str
    decision: Literal["approved", "denied"]
    scope: Scope = "once"
    by: str = ""
    reason: str = ""


class CallAbandoned(Value, frozen=True, kw_only=True, tag=True):
    """The call was cancelled: nobody needs an answer any more."""

    approval: str
    reason: str = ""


class ClockLooked(Value, frozen=True, kw_only=True, tag=True):
    """Time has passed."""


ApprovalEvent = CallHeld | AnswerGiven | CallAbandoned | ClockLooked

# ------------------------------------------------------------------ actions


class Ask(Value, frozen=True, kw_only=True, tag=True):
    """Tell everybody of the question. `is_again`: the journal has it, and an earlier incarnation has asked it."""

    question: Question
    is_again: bool


class Settle(Value, frozen=True, kw_only=True, tag=True):
    """Note and tell what became of a question, and let its call go on."""

    resolution: Resolution


class Refuse(Value, frozen=True, kw_only=True, tag=True):
    """The answer came to nothing; tell whoever gave it."""

    failure: Failure


ApprovalAction = Ask | Settle | Refuse


def cannot_stand(approval: str, decision: str) -> Failure:
    """Why an answer cannot hold for an agent's later sessions."""
    if decision != "approved":
        text, mend = "only permission can stand for an agent", "to forbid it for good, write a rule with effect: deny"
    else:
        text = f"what {approval} asks for cannot be said exactly, so permission for it cannot stand"
        mend = "answer once or for the session, or write a rule with effect: allow"
    return Failure(code="bad_scope", message=text, mend=mend)


def _is_same(one: Question, other: Question) -> bool:
    return one.is_grantable and one.tool == other.tool and one.claims == other.claims


class ApprovalBook:
    """One session's questions, open and settled."""

    def __init__(self, asked: Sequence[Question] = (), settled: Sequence[Resolution] = ()) -> None:
        """With what a journal holds: `asked` are the questions that are open, `settled` all the others, in order."""
        self._open: dict[str, Question] = {question.approval: question for question in asked}
        self._settled: OrderedDict[str, Resolution] = OrderedDict()
        self._standing: dict[str, Resolution] = {}
        for resolution in settled:
            self._remember(resolution)

    @property
    def open(self) -> tuple[Question, ...]:
        """The questions that wait, oldest first."""
        return tuple(self._open.values())

    def known(self, approval: str, tool: str) -> Resolution | None:
        """What is known already: the question's own end, or an answer that holds for its tool in this session."""
        return self._settled.get(approval) or (None if approval in self._open else self._standing.get(tool))

    def step(self, event: ApprovalEvent, *, now_ns: int) -> list[ApprovalAction]:
        """Takes one event and gives the orders that follow. `now_ns` is the wall clock."""
        match event:
            case CallHeld():
                return [*self._hold(event.question), *self._lapse(now_ns)]
            case AnswerGiven():
                # An answer that comes too late is told so, also if nobody has looked at the clock before.
                return [*self._lapse(now_ns), *self._answer(event)]
            case CallAbandoned():
                return self._end([event.approval], "withdrawn", reason=event.reason)
            case ClockLooked():
                return self._lapse(now_ns)
            case _:
                assert_never(event)

    def _hold(self, question: Question) -> list[ApprovalAction]:
        if question.approval in self._settled:
            return []
        is_again = question.approval in self._open
        # The deadline that was told first holds, however often the question is asked.
        asked = self._open.setdefault(question.approval, question)
        return [Ask(question=asked, is_again=is_again)]

    def _answer(self, answer: AnswerGiven) -> list[ApprovalAction]:
        question = self._open.get(answer.approval)
        if question is None:
            return [Refuse(failure=self._why_not(answer.approval))]
        approvals = [answer.approval]
        if answer.scope == "session":
            approvals += [q.approval for q in self._open.values() if q.tool == question.tool and q is not question]
        if answer.scope == "agent":
            if answer.decision != "approved" or not question.is_grantable:
                return [Refuse(failure=cannot_stand(answer.approval, answer.decision))]
            approvals += [q.approval for q in self._open.values() if _is_same(q, question) and q is not question]
        return self._end(approvals, answer.decision, scope=answer.scope, by=answer.by, reason=answer.reason)

    def _why_not(self, approval: str) -> Failure:
        settled = self._settled.get(approval)
        if settled is not None:
            return Failure(code="already_resolved", message=f"{approval} was {settled}")
        return Failure(
            code="no_such_approval", message=f"no approval {approval} is pending", mend="see `ottoctl approvals`"
        )

    def _lapse(self, now_ns: int) -> list[ApprovalAction]:
        late = [q.approval for q in self._open.values() if q.expires_at_ns is not None and q.expires_at_ns <= now_ns]
        return self._end(late, "expired")

    def _end(
        self, approvals: Iterable[str], decision: Decision, *, scope: Scope = "once", by: str = "", reason: str = ""
    ) -> list[ApprovalAction]:
        actions: list[ApprovalAction] = []
        for approval in approvals:
            question = self._open.pop(approval, None)
            if question is not None:
                resolution = Resolution(
                    approval=approval,
                    tool=question.tool,
                    decision=decision,
                    scope=scope,
                    by=by,
                    reason=reason,
                    shown=question.shown,
                )
                self._remember(resolution)
                actions.append(Settle(resolution=resolution))
        return actions

    def _remember(self, resolution: Resolution) -> None:
        self._settled[resolution.approval] = resolution
        while len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)
        if resolution.scope == "session":
            self._standing[resolution.tool] = resolution
