"""Leave for tool calls: what becomes of a question, whatever happens in whatever order."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from ottod.core.approval import (
    MAX_SETTLED,
    AnswerGiven,
    ApprovalBook,
    Ask,
    CallAbandoned,
    CallHeld,
    ClockLooked,
    Question,
    Refuse,
    Resolution,
    Settle,
    approval_id,
    normalise_approval,
)
from ottod.core.projection import MAX_PENDING, SHOWN_ARGUMENTS_CHARS, fold
from ottod.core.resume import restore
from ottod.ids import ALPHABET
from ottod.protocol import events as ev
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.results import ApprovalAnswer, SessionInfo

INFO = SessionInfo(session="s-0000000000", agent="a", model="m", state="running")


def question(name: str = "a-1", *, tool: str = "shell", expires_at_ns: int | None = None) -> Question:
    return Question(approval=name, turn=1, step=1, call=name, tool=tool, expires_at_ns=expires_at_ns)


def held(book: ApprovalBook, *names: str, tool: str = "shell") -> None:
    for name in names:
        book.step(CallHeld(question=question(name, tool=tool)), now_ns=0)


def test_an_id_follows_from_the_place_of_the_call() -> None:
    """The same call gives the same id, another place another one; it can be typed, with or without its prefix."""
    place = {"turn": 1, "step": 2, "call": "c"}
    first = approval_id("s-1", **place)  # type: ignore[arg-type]
    assert first == approval_id("s-1", **place)  # type: ignore[arg-type]
    others = [approval_id("s-2", **place), approval_id("s-1", **{**place, "call": "d"})]  # type: ignore[arg-type]
    others += [approval_id("s-1", **{**place, name: 3}) for name in ("turn", "step")]  # type: ignore[arg-type]
    others.append(approval_id("s-1", **place, is_own=True))  # type: ignore[arg-type]
    assert len({first, *others}) == 6
    assert len(first) == 12 and set(first[2:]) <= set(ALPHABET)
    assert normalise_approval(f" {first[2:6].upper()}") == first[:6] == normalise_approval(first[:6])


@given(call=st.text(max_size=300))
def test_any_call_has_an_id(call: str) -> None:
    """A model names its calls as it likes."""
    assert len(approval_id("s-1", turn=1, step=1, call=call)) == 12


# ------------------------------------------------------------------ questions


def test_a_question_is_settled_once() -> None:
    """The second answer is told what the first one was, and by whom."""
    book = ApprovalBook()
    assert book.step(CallHeld(question=question()), now_ns=0) == [Ask(question=question(), is_again=False)]
    (settled,) = book.step(AnswerGiven(approval="a-1", decision="denied", by="me", reason="no"), now_ns=0)
    assert settled == Settle(
        resolution=Resolution(approval="a-1", tool="shell", decision="denied", by="me", reason="no")
    )
    (refused,) = book.step(AnswerGiven(approval="a-1", decision="approved", by="you"), now_ns=0)
    assert isinstance(refused, Refuse) and refused.failure.code == "already_resolved"
    assert "denied by me: no" in refused.failure.message
    known = book.known("a-1", "shell")
    assert known is not None and known.decision == "denied"
    assert book.known("a-2", "shell") is None, "an answer for once is none for the next call"


def test_leave_for_the_agent_settles_what_asks_for_exactly_the_same() -> None:
    """It is for claims that are known exactly, and for leave only; later questions are for grants to answer."""
    book = ApprovalBook()
    names = {
        "a-1": ("exec git push",),
        "a-2": ("exec git push",),
        "a-3": ("exec git pull",),
        "a-4": ("exec git push",),
    }
    for name, claims in names.items():
        asked = replace(question(name), claims=claims, is_grantable=name != "a-4")
        book.step(CallHeld(question=asked), now_ns=0)
    (refused,) = book.step(AnswerGiven(approval="a-4", decision="approved", scope="agent"), now_ns=0)
    assert isinstance(refused, Refuse) and refused.failure.code == "bad_scope"
    (refused,) = book.step(AnswerGiven(approval="a-1", decision="denied", scope="agent"), now_ns=0)
    assert isinstance(refused, Refuse) and refused.failure.code == "bad_scope"
    actions = book.step(AnswerGiven(approval="a-1", decision="approved", scope="agent", by="me"), now_ns=0)
    assert [a.resolution.approval for a in actions if isinstance(a, Settle)] == ["a-1", "a-2"]
    assert book.known("a-5", "shell") is None and [q.approval for q in book.open] == ["a-3", "a-4"]


def test_an_unknown_question_has_no_answer() -> None:
    """Nothing is remembered of an answer to what nobody asked."""
    book = ApprovalBook()
    (refused,) = book.step(AnswerGiven(approval="a-9", decision="approved", scope="session"), now_ns=0)
    assert isinstance(refused, Refuse) and refused.failure.code == "no_such_approval"
    assert book.known("a-9", "shell") is None


@pytest.mark.parametrize("decision", ["approved", "denied"])
def test_an_answer_for_the_session_answers_for_the_tool(decision: str) -> None:
    """What is open for it is settled, what comes later is known; other tools are still asked about."""
    book = ApprovalBook()
    held(book, "a-1", "a-2")
    held(book, "a-3", tool="git")
    actions = book.step(AnswerGiven(approval="a-2", decision=decision, scope="session", by="me"), now_ns=0)  # type: ignore[arg-type]
    assert {a.resolution.approval for a in actions if isinstance(a, Settle)} == {"a-1", "a-2"}
    later = book.known("a-4", "shell")
    assert later is not None and (later.decision, later.by) == (decision, "me")
    assert book.known("a-5", "git") is None and [q.approval for q in book.open] == ["a-3"]


def test_time_expires_and_never_denies() -> None:
    """At its deadline a question is expired; an answer that comes then is told so, looked at or not."""
    for answers_first in (False, True):
        book = ApprovalBook()
        book.step(CallHeld(question=question(expires_at_ns=100)), now_ns=0)
        assert book.step(ClockLooked(), now_ns=99) == []
        answer = AnswerGiven(approval="a-1", decision="approved")
        actions = book.step(answer if answers_first else ClockLooked(), now_ns=100)
        assert isinstance(actions[0], Settle) and actions[0].resolution.decision == "expired"
        refused = actions[1] if answers_first else book.step(answer, now_ns=101)[0]
        assert isinstance(refused, Refuse) and "expired" in refused.failure.message


def test_a_cancelled_call_withdraws_its_question() -> None:
    """And only its own; a question that is settled stays as it is."""
    book = ApprovalBook()
    held(book, "a-1", "a-2")
    book.step(AnswerGiven(approval="a-2", decision="approved"), now_ns=0)
    (settled,) = book.step(CallAbandoned(approval="a-1"), now_ns=0)
    assert isinstance(settled, Settle) and settled.resolution.decision == "withdrawn"
    assert book.step(CallAbandoned(approval="a-2"), now_ns=0) == []


def test_another_incarnation_asks_the_same_question() -> None:
    """With the deadline that was told first; and finds what was answered before."""
    book = ApprovalBook(
        [question(expires_at_ns=100)], [Resolution(approval="a-0", tool="shell", decision="approved")]
    )
    (ask,) = book.step(CallHeld(question=question(expires_at_ns=500)), now_ns=50)
    assert ask == Ask(question=question(expires_at_ns=100), is_again=True)
    known = book.known("a-0", "shell")
    assert known is not None and known.decision == "approved"
    late = ApprovalBook([question(expires_at_ns=100)])
    asked, settled = late.step(CallHeld(question=question()), now_ns=100)
    assert isinstance(asked, Ask) and isinstance(settled, Settle) and settled.resolution.decision == "expired"


def test_what_is_remembered_is_bounded() -> None:
    """Old answers are forgotten, except those that hold for the session."""
    book = ApprovalBook()
    held(book, "a-s", tool="git")
    book.step(AnswerGiven(approval="a-s", decision="approved", scope="session"), now_ns=0)
    for number in range(MAX_SETTLED + 10):
        held(book, f"a-{number}")
        book.step(AnswerGiven(approval=f"a-{number}", decision="approved"), now_ns=0)
    assert book.known("a-0", "shell") is None and book.known("a-20", "shell") is not None
    assert book.known("a-new", "git") is not None


class BookMachine(RuleBasedStateMachine):
    """Any events in any order, with the worker dying between them: each question is settled once, and for good."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.book = ApprovalBook()
        self.now_ns = 0
        self.journal: list[j.JournalEntry] = []
        self.settled: dict[str, str] = {}

    @rule(target=names, letter=st.sampled_from(string.ascii_lowercase[:5]))
    def name(self, letter: str) -> str:
        return f"a-{letter}"

    @rule(name=names, tool=st.sampled_from(["shell", "git"]), expires=st.none() | st.integers(0, 20))
    def hold(self, name: str, tool: str, expires: int | None) -> None:
        if self.book.known(name, tool) is None:
            asked = question(name, tool=tool, expires_at_ns=None if expires is None else self.now_ns + expires)
            self._take(self.book.step(CallHeld(question=asked), now_ns=self.now_ns))

    @rule(
        name=names,
        decision=st.sampled_from(["approved", "denied"]),
        scope=st.sampled_from(["once", "session"]),
    )
    def answer(self, name: str, decision: str, scope: str) -> None:
        event = AnswerGiven(approval=name, decision=decision, scope=scope)  # type: ignore[arg-type]
        actions = self.book.step(event, now_ns=self.now_ns)
        told = [a for a in actions if isinstance(a, Settle | Refuse)]
        assert told, "an answer is never left without a word"
        self._take(actions)

    @rule(name=names)
    def abandon(self, name: str) -> None:
        self._take(self.book.step(CallAbandoned(approval=name), now_ns=self.now_ns))

    @rule(later=st.integers(0, 15))
    def look(self, later: int) -> None:
        self.now_ns += later
        self._take(self.book.step(ClockLooked(), now_ns=self.now_ns))
        assert all(q.expires_at_ns is None or q.expires_at_ns > self.now_ns for q in self.book.open)

    @rule()
    def die_and_resume(self) -> None:
        past = restore(self.journal)
        before = self.book.open
        self.book = ApprovalBook(past.questions, past.resolutions)
        assert self.book.open == before

    def _take(self, actions: list[Ask | Settle | Refuse]) -> None:
        for action in actions:
            match action:
                case Ask():
                    assert action.question.approval not in self.settled
                    assert action.is_again == any(
                        isinstance(e, j.ApprovalAsked) and e.approval == action.question.approval
                        for e in self.journal
                    )
                    if not action.is_again:
                        self.journal.append(j.ApprovalAsked(**_fields(action.question)))
                case Settle():
                    assert action.resolution.approval not in self.settled, "settled twice"
                    self.settled[action.resolution.approval] = action.resolution.decision
                    self.journal.append(j.ApprovalResolved(**_fields(action.resolution)))
                case Refuse():
                    pass

    @invariant()
    def nothing_settled_is_open(self) -> None:
        assert not {q.approval for q in self.book.open} & set(self.settled)
        for name, decision in self.settled.items():
            known = self.book.known(name, "shell")
            assert known is not None and known.decision == decision


def _fields(struct: Question | Resolution) -> dict[str, object]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


TestBook = BookMachine.TestCase
TestBook.settings = hypothesis_settings(max_examples=100, stateful_step_count=30, deadline=None)


# ------------------------------------------------------------------ what a journal says


def asked(name: str, turn: int = 1) -> j.ApprovalAsked:
    return j.ApprovalAsked(approval=name, turn=turn, step=1, call=name, tool="shell")


def test_a_journal_holds_what_is_open_and_what_was_answered() -> None:
    """Questions of a turn that is over are no longer open; answers are kept in their order."""
    answered = j.ApprovalResolved(approval="a-2", tool="shell", decision="approved", scope="session", by="me")
    said = j.UserSaid(text="go", turn=1)
    past = restore([said, asked("a-1"), asked("a-2"), answered])
    assert [q.approval for q in past.questions] == ["a-1"]
    assert [(r.approval, r.scope, r.by) for r in past.resolutions] == [("a-2", "session", "me")]
    for over in (j.TurnEnded(turn=1, outcome="cancelled"), j.UserSaid(text="next", turn=2)):
        assert restore([said, asked("a-1"), over]).questions == ()


def test_a_long_journal_keeps_what_holds_for_the_session() -> None:
    """However many answers follow it."""
    standing = j.ApprovalResolved(approval="a-s", tool="git", decision="denied", scope="session")
    many = [j.ApprovalResolved(approval=f"a-{n}", tool="shell", decision="approved") for n in range(5 * MAX_SETTLED)]
    past = restore([standing, *many])
    assert len(past.resolutions) <= 2 * MAX_SETTLED + 1
    known = ApprovalBook(past.questions, past.resolutions).known("a-new", "git")
    assert known is not None and known.decision == "denied"


# ------------------------------------------------------------------ what root knows


def requested(name: str, turn: int = 1) -> ev.ApprovalRequested:
    return ev.ApprovalRequested(approval=name, call="c", tool="shell", arguments="x" * 9999, turn=turn)


def test_what_waits_is_folded_from_the_events() -> None:
    """Asked, and settled; the same question again keeps its age and its answer; nothing waits after the end."""
    info = fold(fold(INFO, requested("a-1"), 10), requested("a-2"), 20)
    kept = replace(info.approvals[0], answer=ApprovalAnswer(decision="approved"))
    info = replace(info, approvals=(kept, *info.approvals[1:]))
    info = fold(info, requested("a-1"), 30)
    assert [(a.approval, a.asked_at_ns) for a in info.approvals] == [("a-1", 10), ("a-2", 20)]
    assert info.approvals[0].answer is not None and len(info.approvals[0].arguments) == SHOWN_ARGUMENTS_CHARS
    again = fold(info, ev.TurnStarted(turn=1), 5)
    assert again.approvals == info.approvals, "events that are folded in once more take nothing away"
    resolved = fold(info, ev.ApprovalResolved(approval="a-1", decision="approved"), 40)
    assert [a.approval for a in resolved.approvals] == ["a-2"]
    for over in (ev.TurnCancelled(turn=1), ev.TurnStarted(turn=2), ev.SessionExited(cause=Cause(kind="failed"))):
        assert fold(info, over, 50).approvals == ()


def test_a_call_that_has_begun_or_ended_waits_no_more() -> None:
    """Also without word of its answer; but what is folded in again, from before the question, takes it not away."""
    info = fold(INFO, requested("a-1"), 10)
    begun = ev.ToolStarted(call="c", tool="shell")
    for event in (begun, ev.ToolCompleted(call="c", tool="shell")):
        assert fold(info, event, 20).approvals == ()
        assert fold(info, event, 5).approvals == info.approvals
    assert fold(info, ev.ToolStarted(call="d", tool="shell"), 20).approvals == info.approvals


def test_a_worker_cannot_fill_roots_memory_with_questions() -> None:
    """What it asks beyond the bound is not remembered, nor are ids of any length."""
    info = fold(INFO, requested("a-" + "x" * 100_000), 1)
    assert info.approvals == ()
    for number in range(MAX_PENDING + 5):
        info = fold(info, requested(f"a-{number}"), 1)
    assert len(info.approvals) == MAX_PENDING
