"""Leave for tool calls: which rule speaks about a call, and what becomes of the questions that a rule asks.

Theory of operation. A call that a rule says `ask` about becomes a *question*. Its id follows from the session and the
call's place in it, so that an incarnation that comes to the same call again asks the same question. A question is
settled once: approved, denied, expired when nobody answered in time, or withdrawn with its call. Whoever answers
later hears what had become of it. An answer with scope `session` settles all open questions about its tool, and is
the answer to every later one.

The book is pure. The worker writes each `Settle` to the journal before anybody acts on it, and gives a later
incarnation what the journal holds.

Of a rule's conditions `tool`, `agent` and `run_mode` count. One with `path`, `command` or `host` has no effect yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Literal, assert_never

import msgspec

from ottod.errors import Failure
from ottod.ids import ALPHABET, ID_CHARS
from ottod.protocol.specs import PermissionRule

PREFIX = "a-"
MAX_SETTLED = 1000
"""Settled questions that are remembered for whoever answers them again."""

Decision = Literal["approved", "denied", "expired", "withdrawn"]
Scope = Literal["once", "session"]

_STRENGTH = {"deny": 2, "ask": 1, "allow": 0}
_WILD = "*?["


def is_enforced(rule: PermissionRule) -> bool:
    """Whether a rule's conditions are such that it has an effect."""
    return not (rule.path or rule.command or rule.host)


def rule_for(rules: Iterable[PermissionRule], *, tool: str, agent: str, run_mode: str) -> PermissionRule | None:
    """The rule that speaks about a call of `tool`: the most specific, and of those the strictest; None if none does.

    A tool's own name is more specific than a pattern, a longer pattern more than a shorter one. Between rules with
    the same tool the agent decides, then whether they name a run mode. Deny is stricter than ask, ask than allow.
    """
    fitting = [
        rule
        for rule in rules
        if is_enforced(rule)
        and fnmatchcase(tool, rule.tool)
        and fnmatchcase(agent, rule.agent)
        and rule.run_mode in ("", run_mode)
    ]
    return max(fitting, key=_rank, default=None)


def _rank(rule: PermissionRule) -> tuple[int, int, int, int, bool, int]:
    return (*_specificity(rule.tool), *_specificity(rule.agent), rule.run_mode != "", _STRENGTH[rule.effect])


def _specificity(pattern: str) -> tuple[int, int]:
    """An exact name before all patterns, then by the number of characters that are no wildcards."""
    literal = sum(char not in _WILD for char in pattern)
    return int(literal == len(pattern)), literal


def approval_id(session: str, *, turn: int, step: int, call: str) -> str:
    """The id of the question about a call: `a-` and ten characters, the same for the same call."""
    digest = blake2b(f"{session}/{turn}/{step}/{call}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return PREFIX + "".join(ALPHABET[number >> 5 * place & 31] for place in range(ID_CHARS))


def normalise_approval(text: str) -> str:
    """An approval's id or its beginning as typed, with or without `a-`, in canonical form."""
    text = text.strip().lower()
    return text if text.startswith(PREFIX) else PREFIX + text


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that questions, events and actions share."""


class Question(Value, frozen=True, kw_only=True):
    """A call that waits for leave. `expires_at_ns` is the wall clock's: it has to hold for later incarnations."""

    approval: str
    turn: int
    step: int
    call: str
    tool: str
    reason: str = ""
    expires_at_ns: int | None = None


class Resolution(Value, frozen=True, kw_only=True):
    """What became of a question."""

    approval: str
    tool: str
    decision: Decision
    scope: Scope = "once"
    by: str = ""
    reason: str = ""

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
                    approval=approval, tool=question.tool, decision=decision, scope=scope, by=by, reason=reason
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
