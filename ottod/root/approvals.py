"""Approvals as clients see them: what waits for an answer, and how an answer gets to the worker that asked.

Theory of operation. What waits stands in the session's row, folded from its events, so every root knows it. An answer
counts once it is safe: in the journal of the worker that asked, or, while the session has no worker, in the session's
row, from where the next one is born with it, and is told of it once it listens. A worker that has died in the midst
may or may not have noted it; then it is kept as well, and the next worker says if it knows it already. It counts by
the moment at which it was taken, so that a question which was answered in time does not expire while nobody listens.

What is said about a budget is kept in any case, before the worker hears of it: the first answer is the one that
counts, and only if it is yes does the budget grow. It has grown by the time the worker asks again, and each root that
delivers the answer sees to it that it has.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from msgspec.structs import replace

from ottod.core.approval import PREFIX, cannot_stand, normalise_approval
from ottod.errors import UNDECODABLE, Failure, RefusedError, StorageError
from ottod.protocol.requests import ResolveApproval
from ottod.protocol.results import (
    ApprovalAnswer,
    ApprovalList,
    ApprovalResult,
    PendingApproval,
    SessionInfo,
    WaitingApproval,
)
from ottod.protocol.worker import ResolveApproval as Order
from ottod.protocol.worker_requests import BudgetRefusal
from ottod.root.context import RootContext
from ottod.root.grants import Grants
from ottod.root.session_table import Session

COMMAND_TIMEOUT_S = 10.0
DELIVER_ATTEMPTS = 30
DELIVER_AGAIN_S = 0.5
"""Between two attempts to tell a worker that takes no messages for the moment."""
MAX_REASON_CHARS = 2000
MAX_BY_CHARS = 200
MAX_ID_CHARS = 100
BUDGET_TOOL = "budget"
"""The tool that a question about a budget names."""
MAX_REMEMBERED = 1000
"""Answers that are remembered for whoever gives another one without naming the session."""


class Approvals:
    """Of all sessions of this root."""

    def __init__(self, context: RootContext, grants: Grants) -> None:
        self._c = context
        self._grants = grants
        self._answered: OrderedDict[str, str] = OrderedDict()
        """Approval → what became of it."""
        self.on_budget_granted: Callable[[Session, BudgetRefusal], Awaitable[bool]] = _knows_no_budget
        """Somebody lets a budget grow. Its worker asks again as soon as it hears the answer."""

    def waiting(self, sessions: Iterable[Session]) -> ApprovalList:
        """What waits for an answer in these sessions, oldest first; not what has been answered, or is too late."""
        now_ns = time.time_ns()
        found = [
            WaitingApproval(session=info.session, agent=info.agent, title=info.title, approval=pending)
            for info in (session.info for session in sessions)
            for pending in info.approvals
            if pending.answer is None and not _is_late(pending, now_ns)
        ]
        return ApprovalList(approvals=tuple(sorted(found, key=lambda w: w.approval.asked_at_ns)))

    # ------------------------------------------------------------ answering

    async def resolve(self, session: Session | None, request: ResolveApproval, by: str) -> ApprovalResult:
        """Takes an answer; returns when it cannot be lost any more.

        Raises: RefusedError: `already_resolved` with what had become of it, `no_such_approval`,
            `ambiguous_approval`, or what keeps the worker from hearing it; StorageError.
        """
        wanted = normalise_approval(request.approval[:MAX_ID_CHARS])
        session, pending = self._find(session, wanted)
        answer = ApprovalAnswer(
            decision=request.decision,
            scope=request.scope,
            by=by[:MAX_BY_CHARS],
            reason=request.reason[:MAX_REASON_CHARS],
            answered_at_ns=time.time_ns(),
        )
        approval = pending.approval if pending is not None else wanted
        self._check_open(session, pending, answer)
        if answer.scope == "agent":
            self._check_can_stand(approval, pending, answer)
        is_kept = False
        if pending is not None and pending.tool == BUDGET_TOOL:
            await self._keep(session, approval, answer)
            is_kept = not await self._tell(session, replace(pending, answer=answer))
            if is_kept:
                self._c.spawn(self.deliver_kept(session))
        elif (failure := await self._deliver(session, approval, answer)) is not None:
            if failure.code == "already_resolved":
                self._drop(session, approval)
            if pending is None or not _has_no_worker(session, failure):
                raise _refused(failure)
            await self._keep(session, approval, answer)
            is_kept = True
        self._remember(approval, answer)
        grant = ""
        if answer.scope == "agent" and pending is not None:
            stands = await self._grants.add(
                session, pending, by=answer.by, reason=answer.reason, expires_s=request.expires_s
            )
            grant = stands.grant
        return ApprovalResult(
            session=session.id, approval=approval, decision=answer.decision, is_kept=is_kept, grant=grant
        )

    def _check_can_stand(self, approval: str, pending: PendingApproval | None, answer: ApprovalAnswer) -> None:
        """Raises RefusedError for an answer that cannot hold for all sessions of an agent."""
        if answer.decision != "approved" or pending is None or not pending.is_grantable:
            raise _refused(cannot_stand(approval, answer.decision))
        self._grants.check_room()

    async def _tell(self, session: Session, pending: PendingApproval) -> bool:
        """Acts on a kept answer about a budget and delivers it; whether it has arrived. Raises RefusedError."""
        assert pending.answer is not None
        if not await self._grant(session, pending):
            self._c.table.update(session, _with_answer(session.info, pending.approval, None))
            raise RefusedError(f"{pending.approval} is about a budget that is not there any more")
        failure = await self._deliver(session, pending.approval, pending.answer)
        if self._is_heard(session, pending, failure) and failure is not None:
            if self._answered.get(pending.approval) != _told(pending.answer):
                raise _refused(failure)
            return True  # The worker said hello meanwhile, and was told what stood in the row: this answer.
        return failure is None

    async def _grant(self, session: Session, pending: PendingApproval) -> bool:
        """Lets a budget grow if that is what was answered. False if there is no such budget any more."""
        if pending.tool != BUDGET_TOOL or pending.answer is None or pending.answer.decision != "approved":
            return True
        try:
            wanted = msgspec.json.decode(pending.arguments, type=BudgetRefusal)
        except UNDECODABLE:
            return False
        return await self.on_budget_granted(session, wanted)

    def _find(self, session: Session | None, wanted: str) -> tuple[Session, PendingApproval | None]:
        """The approval that is meant. In a session that is named one may be meant that no longer waits."""
        if wanted == PREFIX:
            raise RefusedError(
                "the answer names no approval", code="no_such_approval", mend="see `ottoctl approvals`"
            )
        sessions = [session] if session is not None else self._c.table.live
        pairs = [(s, p) for s in sessions for p in s.info.approvals]
        found = [pair for pair in pairs if pair[1].approval == wanted]
        found = found or [pair for pair in pairs if pair[1].approval.startswith(wanted)]
        if len(found) > 1:
            raise RefusedError(
                f"{len(found)} approvals start with {wanted}", code="ambiguous_approval", mend="type more of the id"
            )
        if found:
            return found[0]
        if session is not None and not session.has_ended and wanted not in self._answered:
            return session, None  # The worker knows what has become of it, if it ever asked.
        known = [approval for approval in self._answered if approval.startswith(wanted)]
        if len(known) == 1:
            raise RefusedError(f"{known[0]} was {self._answered[known[0]]}", code="already_resolved")
        raise RefusedError(
            f"no approval {wanted} is pending", code="no_such_approval", mend="see `ottoctl approvals`"
        )

    @staticmethod
    def _check_open(session: Session, pending: PendingApproval | None, answer: ApprovalAnswer) -> None:
        if session.has_ended or session.is_stopping:
            raise RefusedError(
                f"{session.id} has ended or is stopping: its approvals are withdrawn", code="session_ended"
            )
        if pending is not None and pending.answer is not None:
            raise RefusedError(f"{pending.approval} was {_told(pending.answer)}", code="already_resolved")
        if pending is not None and _is_late(pending, answer.answered_at_ns):
            raise RefusedError(f"{pending.approval} was expired", code="already_resolved")

    async def _deliver(self, session: Session, approval: str, answer: ApprovalAnswer) -> Failure | None:
        order = Order(
            approval=approval,
            decision=answer.decision,
            scope=answer.scope,
            by=answer.by,
            reason=answer.reason,
            answered_at_ns=answer.answered_at_ns,
        )
        return await self._c.gate.command(session, order, timeout_s=COMMAND_TIMEOUT_S)

    async def _keep(self, session: Session, approval: str, answer: ApprovalAnswer) -> None:
        """Puts the answer into the session's row. Raises RefusedError if it was settled meanwhile; StorageError."""
        pending = next((p for p in session.info.approvals if p.approval == approval), None)
        if pending is None:
            raise RefusedError(f"{approval} was resolved or withdrawn meanwhile", code="already_resolved")
        self._check_open(session, pending, answer)
        self._c.table.update(session, _with_answer(session.info, approval, answer))
        try:
            await self._c.database.put_session(session.info)
        except StorageError:
            self._c.table.update(session, _with_answer(session.info, approval, None))
            raise

    def _drop(self, session: Session, approval: str) -> None:
        """The worker has settled it; if its event has not come yet, that is no reason to show it as pending."""
        left = tuple(p for p in session.info.approvals if p.approval != approval)
        if len(left) < len(session.info.approvals):
            self._c.table.update(session, replace(session.info, approvals=left))

    def _remember(self, approval: str, answer: ApprovalAnswer) -> None:
        self._answered[approval] = _told(answer)
        while len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)

    # ------------------------------------------------------------ what was kept

    async def deliver_kept(self, session: Session) -> None:
        """A worker listens: it hears what was answered while there was none."""
        incarnation = session.incarnation
        for pending in session.info.approvals:
            for _ in range(DELIVER_ATTEMPTS):
                if pending.answer is None or session.incarnation is not incarnation or session.is_stopping:
                    break  # Another worker, if there is one, is told when it listens.
                await self._grant(session, pending)  # An earlier root may have died before it came to that.
                failure = await self._deliver(session, pending.approval, pending.answer)
                if failure is None:
                    self._remember(pending.approval, pending.answer)
                if self._is_heard(session, pending, failure):
                    break
                await asyncio.sleep(DELIVER_AGAIN_S)

    def _is_heard(self, session: Session, pending: PendingApproval, failure: Failure | None) -> bool:
        """Whether the worker has said what becomes of a kept answer."""
        if failure is None:
            return True
        if failure.code == "already_resolved":
            self._drop(session, pending.approval)
            return True
        if failure.code == "no_such_approval":
            # Its journal was lost, and with it the question. It will ask again, and somebody has to answer again.
            self._c.log(f"the answer to {pending.approval} came to nothing", session=session.id)
            self._c.table.update(session, _with_answer(session.info, pending.approval, None))
            return True
        return False


def kept_answers(info: SessionInfo) -> dict[str, ApprovalAnswer]:
    """What the session's next worker is born with. None about a budget, which has to grow first."""
    return {p.approval: p.answer for p in info.approvals if p.answer is not None and p.tool != BUDGET_TOOL}


async def _knows_no_budget(session: Session, refused: BudgetRefusal) -> bool:
    return False


def _has_no_worker(session: Session, failure: Failure) -> bool:
    """Whether the answer failed because nobody listens: there is no worker yet, or it died before it could reply."""
    incarnation = session.incarnation
    return failure.code == "session_ended" or incarnation is None or incarnation.identity is None


def _is_late(pending: PendingApproval, now_ns: int) -> bool:
    return pending.expires_at_ns is not None and pending.expires_at_ns <= now_ns


def _with_answer(info: SessionInfo, approval: str, answer: ApprovalAnswer | None) -> SessionInfo:
    approvals = (replace(p, answer=answer) if p.approval == approval else p for p in info.approvals)
    return replace(info, approvals=tuple(approvals))


def _told(answer: ApprovalAnswer) -> str:
    """`denied by ottoctl: too wide`."""
    return answer.decision + (f" by {answer.by}" if answer.by else "") + (f": {answer.reason}" * bool(answer.reason))


def _refused(failure: Failure) -> RefusedError:
    return RefusedError(failure.message, code=failure.code, mend=failure.mend)
