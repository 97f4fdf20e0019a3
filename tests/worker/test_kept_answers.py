"""An answer that was taken while there was no process counts in the next one, by the moment at which it was given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ottod.core.approval import Question, approval_id
from ottod.core.resume import Restored
from ottod.protocol import journal as j
from ottod.protocol.birth import Birth
from ottod.protocol.events import ApprovalResolved
from ottod.protocol.results import ApprovalAnswer
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker import ResolveApproval
from ottod.worker.approvals import STEP_TOOL, Approvals

SESSION = "s-0000000000"
DEADLINE_NS = 1000
LATE_NS = 5000


class Records:
    """A journal and a line to root that keep what they are told."""

    def __init__(self) -> None:
        self.entries: list[j.JournalEntry] = []
        self.events: list[Any] = []

    def note(self, entry: j.JournalEntry) -> None:
        self.entries.append(entry)

    async def put(self, entries: Any) -> None:
        self.entries += entries

    def emit(self, event: Any) -> None:
        self.events.append(event)

    def decisions(self) -> list[str]:
        told = [e.decision for e in self.events if isinstance(e, ApprovalResolved)]
        assert told == [e.decision for e in self.entries if isinstance(e, j.ApprovalResolved)]
        return told


def gate(path: str, expires_at_ns: int | None = DEADLINE_NS) -> Question:
    approval = approval_id(SESSION, turn=0, step=0, call=path)
    return Question(approval=approval, turn=0, step=0, call=path, tool=STEP_TOOL, expires_at_ns=expires_at_ns)


def begun(answers: dict[str, ApprovalAnswer], *questions: Question) -> tuple[Approvals, Records]:
    """The next incarnation, that begins long after the deadline of what the one before asked."""
    birth = Birth(
        session=SESSION,
        incarnation=2,
        secret=b"",
        next_seq=1,
        endpoint="",
        spec=AgentSpec(name="tester"),
        models=(),
        cwd="/",
        session_dir="/",
        answers=answers,
    )
    records = Records()
    approvals = Approvals(birth, records, on_wait=lambda: None, now_ns=lambda: LATE_NS)  # type: ignore[arg-type]
    approvals.begin(Restored(questions=questions), records)  # type: ignore[arg-type]
    return approvals, records


def gives_leave(approvals: Approvals, path: str) -> str:
    """What becomes of a step that waits for leave."""
    failure = asyncio.run(approvals.step_leave(path, "", expires_s=None))
    return failure.code if failure is not None else "approved"


@pytest.mark.parametrize(
    ("answered_at_ns", "expected"), [(0, "approved"), (DEADLINE_NS - 1, "approved"), (DEADLINE_NS, "expired")]
)
def test_an_answer_counts_that_was_given_in_time(answered_at_ns: int, expected: str) -> None:
    """However late the next process comes; one of an older daemon, that noted no moment, was in time."""
    question = gate("deploy")
    answer = ApprovalAnswer(decision="approved", by="me", answered_at_ns=answered_at_ns)
    approvals, records = begun({question.approval: answer}, question)
    assert gives_leave(approvals, "deploy") == expected
    assert records.decisions() == [expected]


def test_without_an_answer_the_time_is_over() -> None:
    approvals, records = begun({}, gate("deploy"))
    assert gives_leave(approvals, "deploy") == "expired" and records.decisions() == ["expired"]


def test_an_answer_for_the_session_settles_what_was_open_then() -> None:
    """Each question by what had been said before its own deadline."""
    one, other, short = gate("one", None), gate("other"), gate("short", 10)
    answer = ApprovalAnswer(decision="approved", scope="session", answered_at_ns=500)
    approvals, records = begun({one.approval: answer}, one, other, short)
    assert [gives_leave(approvals, path) for path in ("one", "other", "short")] == ["approved", "approved", "expired"]
    assert sorted(records.decisions()) == ["approved", "approved", "expired"]


def test_an_answer_to_what_the_journal_does_not_know_changes_nothing() -> None:
    """The journal was lost with the question: root hears so when it delivers the answer."""
    answer = ApprovalAnswer(decision="approved", scope="session")
    approvals, records = begun({"a-0000000000": answer}, gate("deploy"))
    assert records.decisions() == [] and gives_leave(approvals, "deploy") == "expired"


def test_who_delivers_it_again_hears_what_became_of_it() -> None:
    question = gate("deploy")
    approvals, records = begun({question.approval: ApprovalAnswer(decision="denied", by="me")}, question)
    order = ResolveApproval(approval=question.approval, decision="denied", by="me")
    failure = asyncio.run(approvals.answer(order))
    assert failure is not None and failure.code == "already_resolved" and "denied by me" in failure.message
    assert records.decisions() == ["denied"]


@pytest.mark.parametrize(("answered_at_ns", "expected"), [(0, "already_resolved"), (DEADLINE_NS - 1, "")])
def test_a_delivered_answer_counts_by_its_moment(answered_at_ns: int, expected: str) -> None:
    """As long as nobody has looked at the clock meanwhile."""
    question = gate("deploy")
    approvals, _ = begun({}, question)
    order = ResolveApproval(approval=question.approval, decision="approved", answered_at_ns=answered_at_ns)
    failure = asyncio.run(approvals.answer(order))
    assert (failure.code if failure is not None else "") == expected
