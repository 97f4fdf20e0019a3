"""Stops: of a session with everything below it, for good; of a worker, so that its session can go on with another.

A session's stop flows down at once, as the order to cancel the turn, and is carried out from below: the newest child
first, then the next, then the session itself, each up the stop ladder (`ottod.core.stop_ladder`). All of them share
one deadline. What has not ended by then is stopped everywhere at the same time, so the depth of a tree does not
multiply how long its stop takes.
"""

from __future__ import annotations

import asyncio
import signal

from msgspec.structs import replace

from ottod.core.stop_ladder import (
    LAST_RESORT_S,
    TERM_GRACE_S,
    LadderAction,
    OrderCancel,
    ReportRemaining,
    SignalKill,
    SignalTerm,
    StopLadder,
    StopOrdered,
    Ticked,
    WakeAt,
)
from ottod.errors import OttoError
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.events import SessionStateChanged
from ottod.protocol.results import Halt, StopResult
from ottod.protocol.worker import StopTurn
from ottod.root.context import RootContext
from ottod.root.groups import Groups
from ottod.root.loss import Loss
from ottod.root.session_table import Incarnation, Session

COMMAND_TIMEOUT_S = 10.0
NOTE_S = 2.0
"""So long a stop waits for its being on record. It is not put off for a disk that does not answer."""


class Stops:
    """Carries out stops."""

    def __init__(self, context: RootContext, groups: Groups) -> None:
        self._c = context
        self._groups = groups
        groups.stop = self.begin_for
        groups.stop_for_restart = self.stop_worker

    # ------------------------------------------------------------ for good

    async def stop(
        self, session: Session, *, grace_s: float | None, reason: str, cause: CauseKind = "cancelled"
    ) -> StopResult:
        """Stops a session and all below it and gives the proof. A second stop joins the first, and may hurry it."""
        if session.has_ended:
            return stop_result(session, already_ended=True)
        grace_s = self.grace_s(session, grace_s)
        if grace_s <= 0:
            for each in session.line_up():
                each.is_killed = True
        self.begin(session, deadline_s=self._c.loop.time() + grace_s, reason=reason, cause=cause)
        try:
            async with asyncio.timeout(grace_s + TERM_GRACE_S + LAST_RESORT_S):
                await session.until_ended(self._c.loop)
        except TimeoutError:
            # Not even SIGKILL ends it: something is stuck in the kernel. The truth is an answer too.
            pids = tuple(s.info.pid for s in session.line_up() if s.info.pid)
            return StopResult(session=session.id, cause=Cause(kind=cause, message=reason), remaining_pids=pids)
        return stop_result(session)

    def grace_s(self, session: Session, asked_s: float | None) -> float:
        """How long the session may take to end by itself: as asked, else as its agent says, else the daemon."""
        if asked_s is not None:
            return asked_s
        shutdown = session.plan.spec.restart.shutdown if session.plan is not None else None
        if shutdown is not None and shutdown.brutal:
            return 0.0
        own_s = shutdown.grace_s if shutdown is not None else None
        return self._c.settings.sessions.stop_grace_s if own_s is None else own_s

    def begin_for(self, session: Session, reason: str, cause: CauseKind) -> None:
        """Begins a stop that comes from above: it shares the parent's deadline."""
        deadline_s = self._c.loop.time() + self.grace_s(session, None)
        parent = self._c.table.get(session.info.parent) if session.info.parent else None
        if parent is not None and parent.stop_deadline_s:
            deadline_s = min(deadline_s, parent.stop_deadline_s)
        self.begin(session, deadline_s=deadline_s, reason=reason, cause=cause)

    async def tell_time_up(self, session: Session, why: str) -> bool:
        """A workflow is to end by itself, since it may have to undo what it did; whether it has heard.

        What answers for a worker that is gone, or makes room for the next one, says nothing about the session. One of
        an older version, which would stop and wait for root to end its steps, is stopped with all below it.
        """
        worker = session.incarnation
        if worker is not None and worker.identity is not None and not worker.knows_undo:
            self.begin_for(session, why, "budget")
            return True
        order = StopTurn(reason=why, cause="budget", may_undo=True)
        failure = await self._c.gate.command(session, order, timeout_s=COMMAND_TIMEOUT_S)
        return failure is None or session.has_ended

    def begin(self, session: Session, *, deadline_s: float, reason: str, cause: CauseKind) -> None:
        """Begins a stop, or hurries one that has begun."""
        is_first = session.stop_cause is None
        if is_first or deadline_s < session.stop_deadline_s:
            session.stop_deadline_s = deadline_s
            session.timers.append(self._c.loop.call_at(deadline_s, self._hurry, session))
        if not is_first:
            if session.stop_ladder is not None:
                self._climb(session, session.stop_ladder, deadline_s)
            return
        session.stop_cause, session.stop_reason = cause, reason
        is_halting = session.info.halt is not None
        self._show_stopping(session, reason)
        self._groups.stop_requested(session)
        if not session.has_ended:
            self._c.spawn(self._carry_out(session, is_halting=is_halting))

    def _show_stopping(self, session: Session, reason: str) -> None:
        if session.incarnation is not None or session.is_being_born:
            # Its worker says so itself, unless it was told that the session goes on: see `_carry_out`.
            self._c.table.update(session, replace(session.info, state="stopping", halt=None))
        elif not session.has_ended and session.announced.is_set():
            event = SessionStateChanged(state="stopping", previous=session.info.state, reason=reason[:500])
            self._c.record(session, event)

    async def _carry_out(self, session: Session, *, is_halting: bool) -> None:
        if is_halting:
            # That the session goes on is on record, and its worker was told so. A stop wins, over both.
            await self._note(session)
        is_told_otherwise = session.stop_ladder is not None and session.stop_ladder.rung == "cancelling"
        if is_told_otherwise or (session.children and self._c.loop.time() < session.stop_deadline_s):
            # The turn ends now; the worker itself waits for its children, and so for its own turn in the order.
            self._c.spawn(self._order_stop(session))
        await self._groups.stop_children(session)
        await session.announced.wait()
        if session.is_refused or session.has_ended or session.is_being_born:
            return  # A worker that is just being born is killed as soon as it can be.
        if session.incarnation is None:
            cause = Cause(kind=session.stop_cause or "cancelled", message=session.stop_reason)
            self._groups.end(session, Loss(cause=cause))
            return
        self._climb(session, ladder_of(session), session.stop_deadline_s)

    def _hurry(self, session: Session) -> None:
        """The deadline has passed: whatever is alive at or below the session is stopped now, all at once."""
        now_s = self._c.loop.time()
        for each in session.line_up():
            if each.has_ended:
                continue
            if each.stop_cause is None:
                self.begin(each, deadline_s=now_s, reason="its parent stops", cause=session.stop_cause or "cancelled")
            if each.incarnation is not None:
                # It may be on a ladder already, with more time: its worker was to make room for the next one.
                self._climb(each, ladder_of(each), now_s)

    # ------------------------------------------------------------ a worker only

    def stop_worker(self, session: Session) -> None:
        """Stops the present worker; what becomes of the session is its node's to say."""
        incarnation = session.incarnation
        if incarnation is None:
            session.is_halting = session.is_being_born
            return
        incarnation.is_for_restart = True
        if not session.is_stopping:
            self._c.table.update(session, replace(session.info, halt=Halt(verdict=incarnation.verdict)))
        self._c.spawn(self._halt(session, incarnation))

    async def _halt(self, session: Session, incarnation: Incarnation) -> None:
        """First why is on record, so that a later root does not take it for a stop for good; then it begins."""
        await self._note(session)
        # A stop for good that has begun meanwhile has its own order: first what is below.
        if session.incarnation is incarnation and session.stop_ladder is None and session.stop_cause is None:
            self._climb(session, ladder_of(session), self._c.loop.time() + self.grace_s(session, None))

    async def _note(self, session: Session) -> None:
        """Has it on record what is meant by a stop, before its worker hears of it."""
        try:
            async with asyncio.timeout(NOTE_S):
                await self._c.database.put_session(session.info, durable=False)
        except (OttoError, TimeoutError) as error:
            self._c.log(
                f"its stop is not on record: {str(error) or 'the database does not answer'}", session=session.id
            )

    def adopted(self, session: Session) -> None:
        """An earlier root's worker can be spoken to now: a stop that has begun is told to it."""
        if session.stop_ladder is not None and session.stop_ladder.rung == "cancelling":
            self._c.spawn(self._order_stop(session))

    # ------------------------------------------------------------ the ladder

    def _climb(self, session: Session, ladder: StopLadder, deadline_s: float) -> None:
        """Begins or hurries a ladder."""
        now_s = self._c.loop.time()
        # A worker that has never been heard of knows no orders. One of an earlier root will yet be heard.
        worker = session.incarnation
        is_deaf = worker is not None and worker.identity is None and not worker.adopt_by_s
        order = StopOrdered(grace_s=max(0.0, deadline_s - now_s), brutal=is_deaf or is_brutal(session))
        self._perform(session, ladder, ladder.step(order, now_ns=self._now_ns()))

    def _tick(self, session: Session, ladder: StopLadder) -> None:
        if session.stop_ladder is ladder and session.incarnation is not None:
            self._perform(session, ladder, ladder.step(Ticked(), now_ns=self._now_ns()))

    def _perform(self, session: Session, ladder: StopLadder, actions: list[LadderAction]) -> None:
        for action in actions:
            match action:
                case OrderCancel():
                    self._c.spawn(self._order_stop(session))
                case SignalTerm():
                    if session.incarnation is not None:
                        session.incarnation.send_signal(signal.SIGTERM)
                case SignalKill():
                    # The rest of the session goes when the worker's death is heard of: see `burials`.
                    if session.incarnation is not None:
                        session.incarnation.send_signal(signal.SIGKILL)
                case ReportRemaining():
                    self._c.log(f"process {session.info.pid} outlives SIGKILL", session=session.id)
                case WakeAt():
                    timer = self._c.loop.call_at(action.due_ns / 1e9, self._tick, session, ladder)
                    session.timers.append(timer)

    async def _order_stop(self, session: Session) -> None:
        cause = session.stop_cause
        verdict = session.incarnation.verdict if session.incarnation is not None else None
        reason = session.stop_reason or ("its group restarts" if session.stop_cause is None else "")
        if verdict is not None:
            reason = verdict.message
        order = StopTurn(
            reason=reason,
            cause=cause if cause == "daemon_stop" or cause == "budget" else "cancelled",
            for_restart=session.stop_cause is None,
        )
        failure = await self._c.gate.command(session, order, timeout_s=COMMAND_TIMEOUT_S)
        if failure is not None and not session.has_ended and session.incarnation is not None:
            self._c.log(f"stop: {failure.message}", session=session.id)

    def _now_ns(self) -> int:
        return int(self._c.loop.time() * 1e9)


def ladder_of(session: Session) -> StopLadder:
    """The stop of its present worker, which begins with this if it has not."""
    if session.stop_ladder is None:
        session.stop_ladder = StopLadder()
    return session.stop_ladder


def is_brutal(session: Session) -> bool:
    """Whether the session is stopped without any grace: somebody said so, or its agent does."""
    return session.is_killed or (session.plan is not None and session.plan.spec.restart.shutdown.brutal)


def stop_result(session: Session, *, already_ended: bool = False) -> StopResult:
    """What a stop of an ended session answers."""
    assert session.info.cause is not None
    return StopResult(
        session=session.id,
        cause=session.info.cause,
        remaining_pids=session.info.remaining_pids,
        already_ended=already_ended,
        proof=session.proof,
        stopped=() if already_ended else (*session.stopped_below, session.id),
    )
