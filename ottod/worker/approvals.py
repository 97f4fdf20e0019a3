"""Leave for tool calls, as the turn sees it: a call that a rule says `ask` about waits here until somebody answers.

A question is in the journal with its event, and its answer before the call goes on or whoever gave it is told that it
was taken. So the wait outlives this process: the next incarnation asks the same question, and finds an answer that
came in between. Root may be away for as long as it likes. In a headless session nobody is asked: the call fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Literal

import msgspec
from msgspec.structs import replace

from ottod.core.approval import (
    AnswerGiven,
    ApprovalAction,
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
)
from ottod.core.permission import MAX_KEYS, Verdict, covering_grant, grant_keys
from ottod.core.resume import Restored
from ottod.core.text_diff import shown_diff
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.birth import Birth
from ottod.protocol.events import ApprovalRequested, ApprovalResolved, LogWarning, PolicyDecided
from ottod.protocol.model import ToolCall
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import ApprovalAnswer
from ottod.protocol.worker import ResolveApproval
from ottod.protocol.worker_requests import BudgetRefusal
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.judge import Judge
from ottod.worker.link import Link
from ottod.worker.preview import Preview
from ottod.worker.text import MAX_ARGUMENTS_BYTES, cut

Outcome = Literal["denied", "unavailable", "granted"]
_AS_OUTCOME: dict[str, Outcome] = {"approved": "granted", "denied": "denied"}
MAX_REASON_BYTES = 2000
"""Of a rule's reason, and of an answer's."""
MODEL_TOOL = "model"
"""The tool's name in the question whether a model is to be asked again."""
STEP_TOOL = "step"
"""The tool's name in the question whether a step of a workflow may begin."""
BUDGET_TOOL = "budget"
"""The tool's name in a question about a budget."""

MAX_TOLD_CLAIMS = 20
"""Of one decision, in its event."""
MAX_LOOK_S = 3600.0
"""Between two looks at the clock while an approval waits that expires: the wall clock may be set meanwhile."""


class Approvals:
    """One session's. `on_wait` is called when a call begins or ceases to wait.

    `judge` and `preview` are set before the first call: they know the tools, which an idle session does not have.
    """

    def __init__(
        self,
        birth: Birth,
        link: Link,
        *,
        on_wait: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._session = birth.session
        self._run_mode = birth.run_mode
        self._link = link
        self._on_wait = on_wait
        self._now_ns = now_ns
        self._book = ApprovalBook()
        self._journal: JournalWriter | None = None
        self._grants = birth.grants
        self._kept = birth.answers
        self.judge: Judge | None = None
        self.preview: Preview | None = None
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self.waiting_calls = 0
        """Tool calls that wait for an answer now."""

    def begin(self, restored: Restored, journal: JournalWriter) -> None:
        """Takes over what earlier incarnations asked, what they were told, and what was said since."""
        self._book = ApprovalBook(restored.questions, restored.resolutions)
        self._journal = journal
        # Each counts by its own moment, before anybody looks at the clock: a question that was answered in time has
        # not expired, however late this process is.
        for approval, answer in sorted(self._kept.items(), key=lambda pair: pair[1].answered_at_ns):
            given = _given(approval, answer)
            self._perform(self._book.step(given, now_ns=answer.answered_at_ns))

    # ------------------------------------------------------------ for the turn

    def verdict(self, call: ToolCall) -> Verdict:
        """What the rules say of a call."""
        assert self.judge is not None
        return self.judge.verdict(call)

    def is_guarded(self, call: ToolCall) -> bool:
        """Whether the call needs leave, or is forbidden."""
        return self.verdict(call).effect != "allow"

    async def leave(self, call: ToolCall, *, turn: int, step: int, has_begun: bool = False) -> Failure | None:
        """Waits until the call may begin; or says why it may not. A cancellation leaves the question open.

        Leave that was given for a diff is for that alone, unless the call `has_begun` to make it true.

        Raises: StorageError if the question cannot be noted.
        """
        verdict = self.verdict(call)
        if verdict.effect == "allow":
            return None
        keys, is_grantable = grant_keys(verdict, arguments=call.arguments)
        why = f": {cut(verdict.reason, MAX_REASON_BYTES)[0]}" if verdict.reason else ""
        if verdict.effect == "deny":
            self._tell(call, verdict, turn, step, outcome="denied")
            about = f" ({verdict.decisive.claim})" if verdict.decisive.claim.object else ""
            return Failure(
                code="denied", message=f"a rule forbids {call.tool}{why}{about}", mend="do it in another way"
            )
        approval = approval_id(self._session, turn=turn, step=step, call=call.call)
        known = self._book.known(approval, call.tool)
        if known is None:
            grant = covering_grant(
                self._grants, tool=call.tool, keys=keys, is_exact=is_grantable, now_ns=self._now_ns()
            )
            if grant is not None:
                self._tell(call, verdict, turn, step, outcome="granted", grant=grant.grant)
                return None
            if self._run_mode == "headless":
                self._tell(call, verdict, turn, step, outcome="unavailable")
                return Failure(
                    code="approval_unavailable",
                    message=f"{call.tool} needs approval{why}, and in a headless session nobody can give it",
                    mend="do it without this tool; a rule with run_mode: headless can allow it",
                )
            diff = await self._diff(call)
            # Meanwhile somebody may have answered for the tool.
            known = self._book.known(approval, call.tool)
            if known is None:
                question = self._question(approval, call, turn, step, verdict, keys, is_grantable)
                question = replace(question, shown=_digest(diff))
                known = await self._hold(question, call.arguments, diff or "")
        if known.approval != approval:
            self._tell(call, verdict, turn, step, outcome=_AS_OUTCOME[known.decision], grant=known.approval)
        elif not has_begun and await self._has_changed(known, call):
            return Failure(
                code="changed",
                message=f"{call.tool} was approved as it was shown, and would change something else by now",
                mend="read the file again, then make the change anew",
            )
        return _refusal(known)

    async def _has_changed(self, known: Resolution, call: ToolCall) -> bool:
        """Whether leave was given for a diff, and the call would not make that one any more."""
        is_for_diff = known.decision == "approved" and known.scope == "once" and bool(known.shown)
        return is_for_diff and _digest(await self._diff(call)) != known.shown

    async def _diff(self, call: ToolCall) -> str | None:
        """What the call would change, for who is asked, freed of secrets; None if that cannot be said."""
        if self.preview is None:
            return None
        try:
            return self._link.redacted(await self.preview.diff(call))
        except Exception as error:  # noqa: BLE001 - a defect in a tool must not keep anybody from being asked
            text = f"what {call.tool} would change cannot be shown: {type(error).__name__}: {error}"
            self._link.emit(LogWarning(message=cut(text, MAX_REASON_BYTES)[0], code="no_diff"))
            return None

    def _tell(
        self, call: ToolCall, verdict: Verdict, turn: int, step: int, *, outcome: Outcome, grant: str = ""
    ) -> None:
        """A decision that is more than a plain leave, for whoever watches and for the record."""
        found = [f for f in verdict.findings if f.effect == verdict.effect]
        claims = tuple(dict.fromkeys(str(finding.claim) for finding in found))
        self._link.emit(
            PolicyDecided(
                call=call.call,
                tool=call.tool,
                outcome=outcome,
                claims=claims[:MAX_TOLD_CLAIMS],
                rule=str(verdict.rule),
                source=verdict.source,
                reason=cut(verdict.reason, MAX_REASON_BYTES)[0],
                grant=grant,
                turn=turn,
                step=step,
            )
        )

    def _question(
        self,
        approval: str,
        call: ToolCall,
        turn: int,
        step: int,
        verdict: Verdict,
        keys: tuple[str, ...],
        is_grantable: bool,
    ) -> Question:
        # Of several rules that ask the most impatient one counts.
        waits_s = [f.rule.expires_s for f in verdict.asks if f.rule.expires_s is not None]
        return Question(
            approval=approval,
            turn=turn,
            step=step,
            call=call.call,
            tool=call.tool,
            reason=cut(verdict.reason, MAX_REASON_BYTES)[0],
            expires_at_ns=self._now_ns() + int(min(waits_s) * 1e9) if waits_s else None,
            claims=tuple(cut(key, MAX_REASON_BYTES)[0] for key in keys[:MAX_KEYS]),
            source=verdict.source,
            is_grantable=is_grantable,
        )

    async def _hold(self, question: Question, arguments: str, diff: str = "") -> Resolution:
        """Asks, and waits for what becomes of it."""
        approval = question.approval
        waiter = self._waiters[approval] = asyncio.get_running_loop().create_future()
        self.waiting_calls += 1
        try:
            actions = self._book.step(CallHeld(question=question), now_ns=self._now_ns())
            self._perform(actions, arguments=arguments, diff=diff)
            self._on_wait()
            await self._let_go(actions)
            await self._answered(waiter, approval)
        finally:
            self.waiting_calls -= 1
            del self._waiters[approval]
            self._on_wait()
        known = self._book.known(approval, question.tool)
        assert known is not None
        return known

    async def more_budget(self, refusal: BudgetRefusal, why: str, *, turn: int, step: int) -> bool:
        """Asks whether a budget may grow by as much again as it is. Root, which hears the answer, lets it grow.

        Raises: StorageError if the question cannot be noted.
        """
        # Each limit is a question of its own: what was said about one says nothing about a larger one.
        name = f"budget:{refusal.session}:{refusal.budget}:{refusal.limit}"
        arguments = msgspec.json.encode(refusal).decode()
        approval = approval_id(self._session, turn=turn, step=step, call=name, is_own=True)
        known = self._book.known(approval, "")
        if known is None:
            reason = cut(why, MAX_REASON_BYTES)[0]
            question = Question(approval=approval, turn=turn, step=step, call=name, tool=BUDGET_TOOL, reason=reason)
            known = await self._hold(question, arguments)
        return known.decision == "approved"

    async def another_try(self, failure: Failure, *, turn: int, step: int, asked: int) -> bool:
        """Asks whether a model call that failed is to be made again. In a headless session the answer is no.

        `asked` counts these questions within the call. Raises: StorageError if the question cannot be noted.
        """
        if self._run_mode == "headless":
            return False
        name = f"model:{asked}"
        approval = approval_id(self._session, turn=turn, step=step, call=name, is_own=True)
        known = self._book.known(approval, "")
        if known is None:
            reason = cut(f"no model answers; approve to try again: {failure.message}", MAX_REASON_BYTES)[0]
            question = Question(approval=approval, turn=turn, step=step, call=name, tool=MODEL_TOOL, reason=reason)
            known = await self._hold(question, msgspec.json.encode(failure).decode())
        return known.decision == "approved"

    async def step_leave(self, path: str, reason: str, *, expires_s: float | None) -> Failure | None:
        """Asks whether a step of a workflow may begin; or says why it may not. In a headless session nobody is asked.

        Raises: StorageError if the question cannot be noted.
        """
        if self._run_mode == "headless":
            text = f"{path} needs approval, and in a headless session nobody can give it"
            return Failure(code="approval_unavailable", message=text)
        approval = self._step_question(path)
        known = self._book.known(approval, STEP_TOOL)
        if known is None:
            until_ns = None if expires_s is None else self._now_ns() + int(expires_s * 1e9)
            question = Question(
                approval=approval,
                turn=0,
                step=0,
                call=path,
                tool=STEP_TOOL,
                reason=cut(reason, MAX_REASON_BYTES)[0],
                expires_at_ns=until_ns,
            )
            known = await self._hold(question, msgspec.json.encode({"step": path}).decode())
        if known.decision == "approved":
            return None
        text = "nobody answered in time" if known.decision == "expired" else str(known)
        return Failure(code=known.decision, message=f"{path} did not get its approval: {text}")

    def withdraw_step(self, path: str, reason: str) -> None:
        """Nobody need answer any more. Whoever waits for the answer is cancelled as well."""
        event = CallAbandoned(approval=self._step_question(path), reason=reason)
        self._perform(self._book.step(event, now_ns=self._now_ns()))

    def _step_question(self, path: str) -> str:
        return approval_id(self._session, turn=0, step=0, call=path)

    async def _answered(self, waiter: asyncio.Future[None], approval: str) -> None:
        """Returns when the question is settled, by an answer or by the clock, and that is durable."""
        while not waiter.done():
            due_ns = next((q.expires_at_ns for q in self._book.open if q.approval == approval), None)
            left_s = None if due_ns is None else min(MAX_LOOK_S, max(0.0, (due_ns - self._now_ns()) / 1e9))
            await asyncio.wait({waiter}, timeout=left_s)
            if not waiter.done():
                await self._settle(self._book.step(ClockLooked(), now_ns=self._now_ns()))

    def withdraw(self, call: ToolCall, *, turn: int, step: int) -> None:
        """The call is cancelled for good: if it waits, nobody need answer. The call's own result is noted next."""
        approval = approval_id(self._session, turn=turn, step=step, call=call.call)
        if approval in self._waiters:
            event = CallAbandoned(approval=approval, reason="the call was cancelled")
            self._perform(self._book.step(event, now_ns=self._now_ns()))

    # ------------------------------------------------------------ for root

    async def answer(self, order: ResolveApproval) -> Failure | None:
        """Takes somebody's answer, durably, or says why not. Raises StorageError."""
        event = _given(order.approval, order)
        actions = self._book.step(event, now_ns=order.answered_at_ns or self._now_ns())
        await self._settle(actions)
        return next((action.failure for action in actions if isinstance(action, Refuse)), None)

    async def set_grants(self, grants: tuple[StandingGrant, ...]) -> None:
        """Leave stands, or stands no more; open questions that it covers are answered. Raises StorageError."""
        self._grants = grants
        now_ns = self._now_ns()
        for question in self._book.open:
            grant = covering_grant(
                grants, tool=question.tool, keys=question.claims, is_exact=question.is_grantable, now_ns=now_ns
            )
            if grant is not None:
                event = AnswerGiven(approval=question.approval, decision="approved", scope="agent", by=grant.by)
                await self._settle(self._book.step(event, now_ns=now_ns))

    # ------------------------------------------------------------ what the book orders

    async def _settle(self, actions: Sequence[ApprovalAction]) -> None:
        """Notes and tells what was settled, and lets the calls go on. Raises StorageError."""
        self._perform(actions)
        await self._let_go(actions)

    async def _let_go(self, actions: Sequence[ApprovalAction]) -> None:
        """Lets the calls go on whose questions were settled, once that is durable. Raises StorageError."""
        assert self._journal is not None
        await self._journal.put(())
        for action in actions:
            waiter = self._waiters.get(action.resolution.approval) if isinstance(action, Settle) else None
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _perform(self, actions: Sequence[ApprovalAction], *, arguments: str = "{}", diff: str = "") -> None:
        assert self._journal is not None
        for action in actions:
            match action:
                case Ask():
                    self._tell_question(action, arguments, diff)
                case Settle():
                    resolution = action.resolution
                    fields = {name: getattr(resolution, name) for name in resolution.__struct_fields__}
                    self._journal.note(j.ApprovalResolved(**fields))
                    del fields["tool"], fields["shown"]
                    self._link.emit(ApprovalResolved(**fields))
                case Refuse():
                    pass  # For whoever answered; `answer` tells it.

    def _tell_question(self, ask: Ask, arguments: str, diff: str) -> None:
        question = ask.question
        fields = {name: getattr(question, name) for name in question.__struct_fields__}
        if not ask.is_again:
            assert self._journal is not None
            self._journal.note(j.ApprovalAsked(**fields))
        del fields["shown"]
        told = cut(arguments, MAX_ARGUMENTS_BYTES)[0]
        self._link.emit(ApprovalRequested(arguments=told, diff=shown_diff(diff), **fields))


def _given(approval: str, answer: ApprovalAnswer | ResolveApproval) -> AnswerGiven:
    return AnswerGiven(
        approval=approval,
        decision=answer.decision,
        scope=answer.scope,
        by=answer.by,
        reason=cut(answer.reason, MAX_REASON_BYTES)[0],
    )


def _digest(diff: str | None) -> str:
    return "" if diff is None else sha256(diff.encode("utf-8", "replace")).hexdigest()


def _refusal(known: Resolution) -> Failure | None:
    """What the model hears of a call that did not get its leave."""
    match known.decision:
        case "approved":
            return None
        case "denied":
            return Failure(code="denied", message=f"{known.tool} was {known}", mend="do it without this tool")
        case "expired":
            text = f"{known.tool} needed approval, and nobody answered in time"
            return Failure(code="expired", message=text, mend="go on without it, or ask again")
        case "withdrawn":
            return Failure(code="cancelled", message=f"cancelled while it waited for approval {known.approval}")
