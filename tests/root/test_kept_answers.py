"""What root keeps for a session without a process: taken in time, with its moment, and for the next one's birth."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from ottod.errors import Failure, RefusedError
from ottod.protocol.requests import ResolveApproval
from ottod.protocol.results import ApprovalAnswer, PendingApproval, SessionInfo
from ottod.root.approvals import BUDGET_TOOL, Approvals, kept_answers

APPROVAL = "a-0123456789"
NO_WORKER = Failure(code="session_ended", message="its process has ended")
HOUR_NS = 3600 * 10**9
INFO = SessionInfo(session="s-0000000000", agent="a", model="m", state="running")


class Root:
    """One session whose worker is away, and as much of root as answers need."""

    def __init__(self, expires_at_ns: int | None) -> None:
        pending = PendingApproval(approval=APPROVAL, call="c", tool="shell", expires_at_ns=expires_at_ns)
        self.session: Any = SimpleNamespace(
            id=INFO.session,
            info=replace(INFO, approvals=(pending,)),
            incarnation=None,
            has_ended=False,
            is_stopping=False,
        )
        self.stored: list[SessionInfo] = []
        context: Any = SimpleNamespace(gate=self, table=self, database=self)
        self.approvals = Approvals(context, None)  # type: ignore[arg-type]

    def update(self, session: Any, info: SessionInfo) -> None:
        session.info = info

    async def put_session(self, info: SessionInfo) -> None:
        self.stored.append(info)

    async def command(self, session: Any, order: Any, *, timeout_s: float) -> Failure:
        return NO_WORKER

    def say(self) -> str:
        request = ResolveApproval(approval=APPROVAL, decision="approved")
        try:
            result = asyncio.run(self.approvals.resolve(self.session, request, "me"))
        except RefusedError as error:
            return f"{error.code}: {error.message}"
        return "kept" if result.is_kept else "taken"


@pytest.mark.parametrize("expires_in_ns", [None, HOUR_NS])
def test_an_answer_is_kept_with_its_moment(expires_in_ns: int | None) -> None:
    before_ns = time.time_ns()
    root = Root(None if expires_in_ns is None else before_ns + expires_in_ns)
    assert root.say() == "kept"
    (pending,) = root.stored[-1].approvals
    assert pending.answer is not None and before_ns <= pending.answer.answered_at_ns <= time.time_ns()
    assert kept_answers(root.session.info) == {APPROVAL: pending.answer}
    assert not root.approvals.waiting([root.session]).approvals


def test_an_answer_after_the_deadline_is_not_taken() -> None:
    """Also if no process is there to say so; nor is the question listed as one that waits."""
    root = Root(time.time_ns() - 1)
    assert not root.approvals.waiting([root.session]).approvals
    assert root.say() == f"already_resolved: {APPROVAL} was expired"
    assert not root.stored and not kept_answers(root.session.info)


def test_a_birth_has_what_was_answered_but_nothing_of_budgets() -> None:
    """A budget grows before its worker hears of it: such an answer is delivered by itself."""
    answer = ApprovalAnswer(decision="approved", answered_at_ns=1)
    asked = tuple(
        PendingApproval(approval=name, call="c", tool=tool, answer=said)
        for name, tool, said in (("a-1", "shell", answer), ("a-2", "shell", None), ("a-3", BUDGET_TOOL, answer))
    )
    assert kept_answers(replace(INFO, approvals=asked)) == {"a-1": answer}
