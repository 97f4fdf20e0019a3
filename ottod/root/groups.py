"""The supervisor nodes and what their orders mean for sessions.

One node stands above each top-level session, with the daemon's own allowance of restarts, so that one flapping agent
cannot exhaust anybody else's; one is in each session that has children, with the group that its agent declares. The
nodes decide (`ottod.core.supervision`, OTP's rules); this module translates: a lost worker is told to its node, a
node's order to start becomes the next incarnation, an order to stop goes up the stop ladder. Giving up is escalated
to the parent's own node or, at the top, parks the session.

A session that is over never returns, so it is taken out of its node at once, whatever the group does later.

Source: ADR 0008.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, assert_never

from msgspec.structs import replace

from ottod.core.supervision import (
    ArmTimer,
    AutoShutdown,
    ChildAdded,
    ChildDeleted,
    ChildExited,
    ChildReady,
    ChildStopRequested,
    DisarmTimer,
    DropChild,
    ExitReason,
    GiveUp,
    GroupStopped,
    StartChild,
    StartFailed,
    StopChild,
    StopRequested,
    SupervisionAction,
    SupervisionEvent,
    TimerFired,
    Unparked,
)
from ottod.core.supervision_events import KeepDown
from ottod.protocol.cause import BEYOND_RESTART, COUNTED_AS_CRASH, Cause, CauseKind
from ottod.protocol.events import Event, IncarnationExited, SessionState, SessionStateChanged
from ottod.root.births import Births
from ottod.root.burials import Burials
from ottod.root.context import RootContext
from ottod.root.loss import Loss
from ottod.root.nodes import ABOVE, WITHIN, Nodes, child_spec, key_of
from ottod.root.session_table import Incarnation, Session

MAX_STEP_RESTARTS = 3
"""Workers that a step of a workflow may lose before it has failed."""


class Groups:
    """All nodes of this root. `stop` begins a session's stop; `stop_for_restart` stops a worker only."""

    def __init__(self, context: RootContext, births: Births, burials: Burials) -> None:
        self._c = context
        self._births = births
        self._burials = burials
        self._nodes = Nodes(context)
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._stopped: dict[str, asyncio.Future[None]] = {}
        self._deferred: list[tuple[str, list[SupervisionAction]]] = []
        """What nodes ordered when they were restored."""
        self.stop: Callable[[Session, str, CauseKind], None] = lambda session, reason, cause: None
        self.stop_for_restart: Callable[[Session], None] = lambda session: None
        self.on_child_ended: Callable[[Session], None] = lambda session: None
        self.on_created: Callable[[Session], None] = lambda session: None
        burials.on_lost = self.lost
        births.on_failed = self.birth_failed

    def _tell(self, key: str, event: SupervisionEvent) -> None:
        self._perform(key, self._nodes.step(key, event))

    # ------------------------------------------------------------ news of sessions

    def join(self, session: Session) -> None:
        """A session was created; its worker is on the way."""
        self.on_created(session)
        self._tell(key_of(session), ChildAdded(child=child_spec(session)))

    def left(self, session: Session) -> None:
        """It never came to be."""
        key = key_of(session)
        self._tell(key, ChildExited(child=session.id, reason="withdrawn"))
        self._tell(key, ChildDeleted(child=session.id))
        if session.is_top:
            self._nodes.forget(key)

    def ready(self, session: Session) -> None:
        """Its worker is ready."""
        session.cancel_abandonment()
        self._tell(key_of(session), ChildReady(child=session.id))

    def stop_requested(self, session: Session) -> None:
        """Somebody stops it for good: no restart of it any more."""
        self._tell(key_of(session), ChildStopRequested(child=session.id))

    def birth_failed(self, session: Session, cause: Cause) -> None:
        """No worker could be had for it."""
        if session.has_ended:
            return
        if session.is_stopping:
            cause = Cause(kind=session.stop_cause or "cancelled", message=session.stop_reason)
        self._lost(session, Loss(cause=cause), StartFailed(child=session.id))

    def lost(self, session: Session, incarnation: Incarnation, loss: Loss) -> None:
        """Its worker is gone: the session ends, or goes on with another one."""
        if self._is_slice_over(session, incarnation, loss):
            self._go_on(session, loss, how="scheduled")
            return
        ran_ns = int((self._c.loop.time() - incarnation.started_s) * 1e9) if incarnation.is_ready else 0
        is_wanted = not (session.is_stopping or session.is_ending or loss.remaining)
        is_halted = incarnation.is_for_restart and incarnation.verdict is None and is_wanted
        if is_halted and not self.is_stopped_for_restart(session):
            # Its node did not order that: it was let go in the middle of its group's restart, or root died before
            # the order was on record.
            self._go_on(session, loss, how="group")
            return
        reason: ExitReason = "error"
        if incarnation.verdict is not None or incarnation.is_for_restart:
            reason = "shutdown"
        elif loss.cause.kind == "completed":
            reason = "normal"
        event: SupervisionEvent = ChildExited(child=session.id, reason=reason, ran_ns=ran_ns)
        if reason == "error" and not incarnation.is_ready:
            event = StartFailed(child=session.id)
        if is_halted:
            self._suspend(session, loss, event, how="group")
        else:
            self._lost(session, loss, event, has_spoken=incarnation.exiting is not None)

    def _is_slice_over(self, session: Session, incarnation: Incarnation, loss: Loss) -> bool:
        """Whether the worker left for the next one to go on, and nobody wants anything else.

        It may not do so before its time: what is not counted must not happen as often as a worker likes.
        """
        said = incarnation.exiting
        slice_s = session.plan.spec.time_slice_s if session.plan is not None else None
        # An adopted worker's time began under another root: only the wall clock knows how long ago.
        ran_s = max(self._c.loop.time() - incarnation.started_s, (time.time_ns() - incarnation.started_at_ns) / 1e9)
        if slice_s is None or ran_s < slice_s:
            return False
        is_wanted = not (session.is_stopping or session.is_ending or incarnation.is_for_restart or loss.remaining)
        return said is not None and said.continues and incarnation.verdict is None and is_wanted

    def halted(self, session: Session, loss: Loss) -> None:
        """The same for a worker that an earlier root was stopping, and that none saw end."""
        halt = session.info.halt
        down = ChildExited(child=session.id, reason="shutdown")
        if halt is not None and halt.verdict is not None:
            self._lost(session, replace(loss, cause=halt.verdict), down)
        elif session.info.state == "restarting":
            self._tell(key_of(session), down)  # That is on record; what its node made of it is not.
        else:
            self._suspend(session, loss, down, how="group")

    def _go_on(self, session: Session, loss: Loss, *, how: Literal["group", "scheduled"]) -> None:
        """To its node nothing has happened: this is no restart, and counts as none."""
        session.lost_to, session.last_loss = loss.cause.kind, loss
        exited = IncarnationExited(
            incarnation=session.info.incarnation, cause=loss.cause, restart=how, restarts=session.info.restarts
        )
        self._move(session, "restarting", loss.cause.message, exited)
        self._await_return(session)
        self.next_incarnation(session)

    def _lost(self, session: Session, loss: Loss, event: SupervisionEvent, *, has_spoken: bool = False) -> None:
        is_over = session.is_stopping or bool(loss.remaining) or is_final(session, has_spoken=has_spoken)
        if is_over or not returns(session.info.restart, loss.cause, event):
            # What remains could still write to the journal: the session cannot go on beside it.
            self.end(session, loss)
        else:
            self._suspend(session, loss, event, how="scheduled")

    def _suspend(
        self, session: Session, loss: Loss, event: SupervisionEvent, *, how: Literal["group", "scheduled"]
    ) -> None:
        """The session stays alive without a worker, until its node says when the next one comes."""
        key = key_of(session)
        session.lost_to = loss.cause.kind
        session.last_loss = loss
        actions = self._nodes.step(key, event)
        given_up = [a.reason for a in actions if isinstance(a, GiveUp) and key.startswith(ABOVE)]
        due = [a.due_ns for a in actions if isinstance(a, ArmTimer) and a.child == session.id]
        delay_ms = max(0, due[0] - self._nodes.now_ns()) // 1_000_000 if due else 0
        exited = IncarnationExited(
            incarnation=session.info.incarnation,
            cause=loss.cause,
            restart="parked" if given_up else how,
            delay_ms=delay_ms,
            restarts=session.info.restarts + 1,
        )
        if given_up:
            self._move(session, "parked", given_up[0], exited)
        else:
            self._move(session, "restarting", f"{loss.cause}: {loss.cause.message}".rstrip(": "), exited)
        self._await_return(session)
        self._perform(key, actions)

    def _move(self, session: Session, state: SessionState, reason: str, *after: Event) -> None:
        """Its new state, on record together with what it follows from."""
        event = SessionStateChanged(state=state, previous=session.info.state, reason=reason[:500])
        self._c.record(session, *after, event)
        session.release_waiters()

    def _await_return(self, session: Session) -> None:
        """Children run on while their parent is away, but not for ever."""
        if session.children:
            grace_s = self._c.settings.sessions.orphan_grace_s
            session.abandon_later(self._c.loop.call_later(grace_s, self._abandon, session))

    def _abandon(self, session: Session) -> None:
        if session.has_ended or session.is_stopping or session.incarnation is not None:
            return
        for child in reversed(list(session.children.values())):
            self.stop(child, "its parent did not come back in time", "cancelled")

    # ------------------------------------------------------------ orders of nodes

    def _perform(self, key: str, actions: list[SupervisionAction]) -> None:
        for action in actions:
            match action:
                case StartChild():
                    self._start(key, action.child)
                case ArmTimer():
                    self._arm(key, action.child, action.due_ns)
                case DisarmTimer():
                    if (timer := self._timers.pop((key, action.child), None)) is not None:
                        timer.cancel()
                case StopChild():
                    self._stop(key, action)
                case DropChild():
                    self._dropped(action.child)
                case GiveUp():
                    self._gave_up(key, action)
                case AutoShutdown():
                    self._shut_down_parent(key, action.child)
                case GroupStopped():
                    self._group_stopped(key)
                case KeepDown():
                    pass  # The session has ended or is ending; it is taken out of the node then.
                case _:
                    assert_never(action)

    def _start(self, key: str, child: str) -> None:
        session = self._c.table.get(child)
        if session is None or session.has_ended:
            self._tell(key, ChildDeleted(child=child))
        elif session.is_stopping or session.is_ending:
            self._tell(key, ChildExited(child=child, reason="withdrawn"))
        elif session.incarnation is None and not session.is_being_born and session.clearing is None:
            self.next_incarnation(session)

    def next_incarnation(self, session: Session) -> None:
        """Gives a session without a worker its next one."""
        self._c.table.update(session, replace(session.info, incarnation=session.info.incarnation + 1))
        self._move(session, "starting", "")
        self._c.instruments.restarted(session.lost_to or "daemon_stop")
        self._births.bear_soon(session)

    def _arm(self, key: str, child: str, due_ns: int) -> None:
        def fire() -> None:
            self._timers.pop((key, child), None)
            self._tell(key, TimerFired(child=child))

        if (old := self._timers.pop((key, child), None)) is not None:
            old.cancel()
        self._timers[key, child] = self._c.loop.call_at(due_ns / 1e9, fire)

    def _stop(self, key: str, order: StopChild) -> None:
        session = self._c.table.get(order.child)
        if session is None or session.has_ended:
            self._tell(key, ChildDeleted(child=order.child))
        elif order.for_restart and not session.is_stopping:
            self.stop_for_restart(session)
        else:
            parent = self._c.table.get(session.info.parent)
            reason, cause = "its group stops", parent.stop_cause if parent is not None else None
            self.stop(session, reason, cause or "cancelled")

    def _dropped(self, child: str) -> None:
        session = self._c.table.get(child)
        if session is None or session.has_ended or session.is_ending:
            return
        if session.incarnation is not None or session.is_being_born:
            return
        parent = None if session.is_top else self._c.table.get(session.info.parent)
        stopped = Loss(cause=Cause(kind=session.stop_cause or "cancelled", message=session.stop_reason))
        if not session.is_stopping and parent is not None and (parent.is_stopping or parent.is_ending):
            # It waited for its restart when its group was stopped.
            stopped = Loss(cause=Cause(kind=parent.stop_cause or "cancelled", message="its group stops"))
        elif not session.is_stopping:
            stopped = session.last_loss or stopped
        self.end(session, stopped)

    def _gave_up(self, key: str, order: GiveUp) -> None:
        if key.startswith(ABOVE):
            session = self._c.table.get(key.removeprefix(ABOVE))
            if session is not None and not session.has_ended:
                if session.info.state != "parked":
                    self._move(session, "parked", order.reason)
                self._c.instruments.parked()
            return
        parent = self._c.table.get(key.removeprefix(WITHIN))
        if parent is not None:
            cause = Cause(kind="failed", message=f"its children: {order.reason}", code="restart_intensity")
            self._escalate(key, parent, cause)

    def _shut_down_parent(self, key: str, child: str) -> None:
        parent = self._c.table.get(key.removeprefix(WITHIN))
        if parent is not None:
            message = f"its significant child {child} has ended"
            self._escalate(key, parent, Cause(kind="failed", message=message, code="auto_shutdown"))

    def _escalate(self, key: str, parent: Session, cause: Cause) -> None:
        """The group is over, and with it its parent: to the parent's own node that is an exit `shutdown`."""
        for child in reversed(list(parent.children.values())):
            if child.incarnation is None and not child.is_being_born and not child.is_ending:
                self.end(child, child.last_loss or Loss(cause=Cause(kind="cancelled", message="its group ended")))
        self._nodes.forget(key)
        if parent.incarnation is not None and parent.incarnation.verdict is None and not parent.is_stopping:
            parent.incarnation.verdict = cause
            self.stop_for_restart(parent)

    def unpark(self, session: Session) -> None:
        """Another try, with a fresh allowance. The session is parked."""
        key = ABOVE + session.id
        self._tell(key, Unparked())
        if session.info.state == "parked":
            self.next_incarnation(session)  # An earlier root parked it, and its node is not known any more.

    # ------------------------------------------------------------ the end of sessions

    def end(self, session: Session, loss: Loss) -> None:
        """The session ends for good: first what is below it, then itself."""
        if session.is_ending or session.has_ended:
            return
        session.is_ending = True
        session.cancel_abandonment()
        for child in list(session.children.values()):
            if (
                child.plan is not None
                and child.plan.spec.restart.on_parent_exit == "keep"
                and not session.is_stopping
            ):
                self._let_go(session, child)
        if session.children or session.clearing is not None:
            self._c.spawn(self._end_after_others(session, loss))
        else:
            self._finish(session, loss)

    async def _end_after_others(self, session: Session, loss: Loss) -> None:
        """After its children, and after what a worker has left that no root saw end."""
        await self.stop_children(session)
        if session.clearing is not None:
            loss = replace(loss, remaining=tuple(await session.clearing))
        self._finish(session, loss)

    def _let_go(self, parent: Session, child: Session) -> None:
        """A child that is to outlive its parent becomes a top-level session."""
        self._tell(WITHIN + parent.id, ChildDeleted(child=child.id))
        parent.children.pop(child.id, None)
        child.is_top = True
        self._tell(ABOVE + child.id, ChildAdded(child=child_spec(child)))
        if child.incarnation is not None and child.incarnation.is_ready:
            self._tell(ABOVE + child.id, ChildReady(child=child.id))
        elif child.incarnation is None and not child.is_being_born:
            self._tell(ABOVE + child.id, StartFailed(child=child.id))

    async def stop_children(self, session: Session) -> None:
        """Stops the group within a session, the newest child first; returns when all have ended."""
        if not session.children:
            return
        key = WITHIN + session.id
        stopped = self._stopped.get(key)
        if stopped is None:
            stopped = self._stopped[key] = self._c.loop.create_future()
            self._tell(key, StopRequested())
        await asyncio.shield(stopped)
        while session.children:
            # What the node does not know any more (its group had given up) ends by its own stop.
            for child in reversed(list(session.children.values())):
                self.stop(child, "its parent ends", session.stop_cause or "cancelled")
            await asyncio.sleep(0.01)

    def _group_stopped(self, key: str) -> None:
        future = self._stopped.pop(key, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _finish(self, session: Session, loss: Loss) -> None:
        key = key_of(session)
        self._burials.finish(session, loss)
        parent = None if session.is_top else self._c.table.get(session.info.parent)
        if parent is not None:
            parent.children.pop(session.id, None)
        above = parent
        while above is not None:
            if above.is_stopping:
                above.stopped_below.append(session.id)
            above = None if above.is_top else self._c.table.get(above.info.parent)
        # Whoever could have returned and does not was stopped: to its node that is final.
        stays = returns(session.info.restart, loss.cause, ChildDeleted(child=session.id))
        reason: ExitReason = "withdrawn" if stays or session.is_stopping else exit_reason(loss.cause)
        self._tell(key, ChildExited(child=session.id, reason=reason))
        self._tell(key, ChildDeleted(child=session.id))
        self._nodes.forget(WITHIN + session.id)
        if session.is_top:
            self._nodes.forget(key)
        if parent is not None:
            self.on_child_ended(session)

    # ------------------------------------------------------------ after a restart of root

    def restore(self, kept: dict[str, bytes]) -> None:
        """Nodes as an earlier root left them, for the sessions that are in the table by now."""
        members: dict[str, list[Session]] = {}
        for session in sorted(self._c.table.live, key=lambda s: s.info.created_at_ns):
            members.setdefault(key_of(session), []).append(session)
        self._nodes.restore(kept, members)
        for key, sessions in members.items():
            if sessions[0].is_top and sessions[0].info.state == "parked" and not self._nodes.get(key).is_closed:
                # Root died before it could note that the node had given up: what is noted is void.
                self._nodes.forget(key)
            node = self._nodes.get(key)
            for session in sessions:
                if node.member(session.id) is None and not node.is_closed:
                    # What it makes of that waits: nobody knows yet who has a worker.
                    self._deferred += [(key, self._nodes.step(key, ChildAdded(child=child_spec(session))))]

    def resume_orders(self) -> None:
        """Performs again what nodes had ordered and no one answered: timers, and starts of what is down."""
        deferred, self._deferred = self._deferred, []
        for key, actions in deferred:
            self._perform(key, actions)
        for key, node in self._nodes:
            above = self._c.table.get(key.removeprefix(ABOVE)) if key.startswith(ABOVE) else None
            if above is None or above.info.state != "parked":
                self._perform(key, node.outstanding())

    def has_given_up(self, session: Session) -> bool:
        """Whether the node above a top-level session has used up its allowance."""
        return session.is_top and self._nodes.get(key_of(session)).is_closed

    def is_stopped_for_restart(self, session: Session) -> bool:
        """Whether its node has ordered its worker to make room for the next one, and nothing else since."""
        member = self._nodes.get(key_of(session)).member(session.id)
        return member is not None and member.state == "stopping" and member.for_restart and not member.for_good

    def is_waiting(self, session: Session) -> bool:
        """Whether its node has a timer for its restart, or holds it back until its siblings are ready."""
        member = self._nodes.get(key_of(session)).member(session.id)
        return member is not None and member.state in ("waiting", "due", "owed", "exited")


def exit_reason(cause: Cause) -> ExitReason:
    """A cause in OTP's terms."""
    if cause.kind == "completed":
        return "normal"
    return "error" if cause.kind in COUNTED_AS_CRASH and cause.code not in BEYOND_RESTART else "withdrawn"


def is_final(session: Session, *, has_spoken: bool) -> bool:
    """Whether a workflow, or a step of one, is over with this worker, whatever its restart type.

    What it says of its own end counts. Without a word it goes on, a step only so often: its workflow has other means.
    """
    plan = session.plan
    if plan is None or not (plan.is_step or plan.workflow is not None):
        return False
    return has_spoken or (plan.is_step and session.info.restarts >= MAX_STEP_RESTARTS)


def returns(policy: str, cause: Cause, event: SupervisionEvent) -> bool:
    """Whether a session with this policy goes on after its worker was lost to this cause."""
    if isinstance(event, ChildExited) and event.reason == "shutdown":
        return policy == "permanent"
    reason = exit_reason(cause)
    if reason == "error":
        return policy in ("permanent", "transient")
    return reason == "normal" and policy == "permanent"
