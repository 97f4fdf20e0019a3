"""A supervisor node: what to do when a child of a group ends. The decisions are those of OTP's `supervisor`.

Theory of operation. A node holds its members in start order and takes one event at a time. A child that ended is
decided on by its restart type: it is forgotten, stays down, or is restarted; a restart is booked in the window, and
one too many makes the node give up. What is restarted follows from the strategy. `one_for_one` restarts the child
alone. The other two run a *task* over a scope (all the others, or those after it): first the scope is stopped, last
child first, then the child's delay passes, then all of them are started in order; each step waits for its answer.

While a task runs, OTP's supervisor does not look into its mailbox; so here. The exit of a child that the task was
going to stop anyway is not booked; every other exit becomes a letter and is decided on when the task is done. A start
that fails ends the task and goes to the end of the mailbox: it is booked once more, and tried again from there. A
node whose end has begun (given up, shut down, stopped) decides nothing any more, it only stops what is alive.

Beyond OTP: the delay (`Backoff`) between the stop and the start, during which the mailbox is open. At most one member
of a group with tasks is waiting for a timer; who ends meanwhile joins its wait, which is never shortened by that.
Without delays (`base_s = 0`) every decision is OTP's, which `tests/core/otp` compares. Stops do not queue: they win
over a restart in whatever state they find it. Children of `one_for_one` start side by side.

A session that is over must not be started again with its siblings: root answers `KeepDown` with `ChildDeleted`.

Source: OTP's stdlib `supervisor`, ADR 0008.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Self, assert_never

from ottod.core.backoff import delay_s
from ottod.core.restart_window import RestartWindow
from ottod.core.supervised_group import SupervisedGroup
from ottod.core.supervised_member import ALIVE, DELAYED, UP, Letter, Member, MemberSnapshot, NodeSnapshot, StartTask
from ottod.core.supervision_events import (
    ArmTimer,
    AutoShutdown,
    ChildAdded,
    ChildDeleted,
    ChildExited,
    ChildReady,
    ChildSpec,
    ChildStopRequested,
    DisarmTimer,
    DropChild,
    Ending,
    ExitReason,
    GiveUp,
    GroupStopped,
    KeepDown,
    StartChild,
    StartFailed,
    StopChild,
    StopRequested,
    SupervisionAction,
    SupervisionEvent,
    TimerFired,
    Unparked,
)
from ottod.protocol.specs import Group

__all__ = [
    "ArmTimer",
    "AutoShutdown",
    "ChildAdded",
    "ChildDeleted",
    "ChildExited",
    "ChildReady",
    "ChildSpec",
    "ChildStopRequested",
    "DisarmTimer",
    "DropChild",
    "ExitReason",
    "GiveUp",
    "GroupStopped",
    "KeepDown",
    "NodeSnapshot",
    "StartChild",
    "StartFailed",
    "StopChild",
    "StopRequested",
    "SupervisionAction",
    "SupervisionEvent",
    "SupervisorNode",
    "TimerFired",
    "Unparked",
]

NS_PER_S = 1_000_000_000


class SupervisorNode:
    """One group of children. `children` are running already, in this start order."""

    def __init__(self, *, group: Group, children: Iterable[ChildSpec] = ()) -> None:
        self.group = group
        self.period_ns = round(group.period_s * NS_PER_S)
        self._group = SupervisedGroup(spec=group, children=children)
        self._window = RestartWindow(max_restarts=group.max_restarts, period_ns=self.period_ns)
        self._ending: Ending | None = None
        self._is_closed = False
        self._random = 0.5

    # -------------------------------------------------------------- what one may ask

    @property
    def children(self) -> tuple[str, ...]:
        """Ids of the members, in start order."""
        return tuple(self._group.members)

    @property
    def is_closed(self) -> bool:
        """The group has come to its end: given up, shut down or stopped, and all children are down."""
        return self._is_closed

    def member(self, child: str) -> Member | None:
        """What the node knows of a child. To be looked at, not to be changed."""
        return self._group.members.get(child)

    def outstanding(self) -> list[SupervisionAction]:
        """After `restore`: every order whose answer has not come, in start order, given once more.

        Members that were forgotten may have been all that the node waited for; what follows from that is in it too.
        """
        self._group.actions = []
        self._settle()
        for child, member in self._group.members.items():
            order = _order_to(child, member)
            if order is not None and order not in self._group.actions:
                self._group.actions.append(order)
        return self._group.actions

    # -------------------------------------------------------------- events

    def step(self, event: SupervisionEvent, *, now_ns: int, random: float = 0.5) -> list[SupervisionAction]:
        """Takes one event and gives the orders that follow, in order.

        `now_ns` is monotonic; `random` is uniform in [0, 1) and jitters delays. An event that comes late, twice or
        for a child that is not a member changes nothing.
        """
        self._random = random
        self._group.now_ns, self._group.actions = now_ns, []
        match event:
            case ChildAdded():
                self._group.admit(event.child)
            case ChildReady():
                self._ready(event.child)
            case ChildExited():
                self._exited(event.child, event.reason, event.ran_ns)
            case StartFailed():
                self._exited(event.child, "error", 0)
            case TimerFired():
                self._timer_fired(event.child)
            case StopRequested():
                self._stop_requested()
            case ChildStopRequested():
                self._stop_for_good(event.child)
            case ChildDeleted():
                self._group.forget(event.child)
            case Unparked():
                self._unparked()
            case _:
                assert_never(event)
        self._settle()
        return self._group.actions

    def _ready(self, child: str) -> None:
        member = self._group.members.get(child)
        if member is not None and member.state == "starting":
            member.state = "running"

    def _exited(self, child: str, reason: ExitReason, ran_ns: int) -> None:
        group = self._group
        member = group.members.get(child)
        if member is None or member.state not in ALIVE:
            return
        if ran_ns > self.period_ns:
            member.attempt = 0
        if self._ending is not None or member.state == "stopping" or group.is_being_stopped(child):
            group.went_down(member, reason)
            return
        member.state = "exited"
        group.mailbox.append(Letter(child=child, reason=reason))
        if isinstance(group.task, StartTask) and group.task.current == child and reason == "error":
            group.task = None

    def _timer_fired(self, child: str) -> None:
        member = self._group.members.get(child)
        if member is None or member.state != "waiting":
            return
        if self._group.now_ns < member.due_ns:
            self._group.wait(member)
            return
        member.state = "due"

    def _stop_for_good(self, child: str) -> None:
        member = self._group.members.get(child)
        if member is None:
            return
        member.for_good = True
        if member.state in UP or (member.state == "stopping" and member.for_restart):
            self._group.stop(member, for_restart=False)
        elif member.state != "stopping":
            self._group.drop(member)

    def _stop_requested(self) -> None:
        """Those that are up will be stopped one after the other; for all others the stop is final at once."""
        if isinstance(self._ending, GroupStopped):
            self._is_closed = False
            return
        self._begin_end(GroupStopped())
        for child, member in reversed(list(self._group.members.items())):
            if member.state not in UP:
                self._stop_for_good(child)

    def _unparked(self) -> None:
        """A fresh allowance; also for one that does not remember that it gave up, because root died meanwhile."""
        if self._ending is not None:
            if not (self._is_closed and isinstance(self._ending, GiveUp)):
                return
            self._ending, self._is_closed = None, False
        self._window.clear()
        for member in self._group.members.values():
            member.attempt = 0

    # -------------------------------------------------------------- decisions

    def _settle(self) -> None:
        """Goes on with whatever can go on without another word from outside."""
        group = self._group
        while True:
            if self._ending is not None:
                self._end(self._ending)
                return
            if group.is_busy():
                return
            if group.start_due():
                continue
            if group.mailbox:
                letter = group.mailbox.pop(0)
                self._decide(group.members[letter.child], letter.reason)
            elif not group.start_owed():
                return

    def _decide(self, member: Member, reason: ExitReason) -> None:
        """A child ended by itself. Source: `do_restart` in OTP's `supervisor`."""
        restart = member.spec.restart
        if reason == "withdrawn" or restart == "temporary":
            self._group.drop(member)
        elif restart == "permanent" or reason == "error":
            self._restart(member)
            return
        else:
            self._group.keep_down(member)
        self._consider_auto_shutdown(member.spec)

    def _consider_auto_shutdown(self, ended: ChildSpec) -> None:
        mode = self.group.auto_shutdown
        if mode == "never" or not ended.significant:
            return
        members = self._group.members.values()
        others = any(m.spec.significant and m.state != "down" and not m.for_good for m in members)
        if mode == "any_significant" or not others:
            self._begin_end(AutoShutdown(child=ended.id))

    def _restart(self, member: Member) -> None:
        child, group = member.spec.id, self.group
        member.state = "owed"
        if not self._window.add(self._group.now_ns):
            restarts, allowed = len(self._window), self._window.max_restarts
            reason = f"{child} asks for restart {restarts} within {group.period_s:g} s; {allowed} are allowed"
            self._begin_end(GiveUp(reason=reason, restarts=restarts, period_s=group.period_s))
            return
        member.attempt += 1
        delay_ns = round(delay_s(member.spec.backoff, member.attempt, random=self._random) * NS_PER_S)
        member.due_ns = self._group.now_ns + delay_ns
        if group.strategy != "one_for_one":
            self._group.restart_together(child)
        elif delay_ns > 0:
            self._group.wait(member)
        else:
            self._group.start(member)

    # -------------------------------------------------------------- the end

    def _begin_end(self, ending: Ending) -> None:
        """From here on nothing is decided: what is alive is stopped, then `ending` is emitted."""
        self._ending, self._is_closed = ending, False
        self._group.is_stopped_for_good = isinstance(ending, GroupStopped)
        self._group.abandon()

    def _end(self, ending: Ending) -> None:
        if self._group.stop_last_of(self._group.members, for_restart=False) or self._is_closed:
            return
        self._is_closed = True
        self._group.actions.append(ending)

    # -------------------------------------------------------------- across a restart of the daemon

    def snapshot(self, *, now_ns: int) -> NodeSnapshot:
        """Everything that another process needs to go on. Specs are not in it."""
        group = self._group
        return NodeSnapshot(
            members=tuple(MemberSnapshot.of(member, now_ns=now_ns) for member in group.members.values()),
            restart_ages_ns=self._window.ages_ns(now_ns),
            mailbox=tuple(group.mailbox),
            task=deepcopy(group.task),
            ending=self._ending,
            is_closed=self._is_closed,
        )

    @classmethod
    def restore(cls, *, group: Group, children: Iterable[ChildSpec], snapshot: NodeSnapshot, now_ns: int) -> Self:
        """A node that goes on where `snapshot` was taken. Members without a spec in `children` are forgotten.

        Look after what is `outstanding`, then tell the node what has happened meanwhile.
        """
        specs = {spec.id: spec for spec in children}
        node = cls(group=group)
        node._window.take_over(snapshot.restart_ages_ns, now_ns=now_ns)
        node._ending, node._is_closed = snapshot.ending, snapshot.is_closed
        mechanics = node._group
        mechanics.now_ns = now_ns
        mechanics.members = {
            kept.child: kept.as_member(specs[kept.child], now_ns=now_ns)
            for kept in snapshot.members
            if kept.child in specs
        }
        mechanics.mailbox = [letter for letter in snapshot.mailbox if letter.child in specs]
        mechanics.task = deepcopy(snapshot.task)
        mechanics.is_stopped_for_good = isinstance(snapshot.ending, GroupStopped)
        return node

    def validate(self) -> None:
        """Raises AssertionError if the node is in a state that no sequence of events may lead to."""
        group = self._group
        if self._ending is None:
            assert not self._is_closed and len(self._window) <= self.group.max_restarts
            group.validate()
            return
        states = {member.state for member in group.members.values()}
        assert group.task is None and not group.mailbox and not DELAYED & states, "an end that still decides"
        assert self._is_closed or ALIVE & states, "an end that waits for nobody"
        assert "stopping" in states or not UP & states, "a group that ends lets a child live"


def _order_to(child: str, member: Member) -> SupervisionAction | None:
    """The order that this member has been given and has not answered."""
    match member.state:
        case "starting":
            return StartChild(child=child, attempt=member.attempt)
        case "stopping":
            return StopChild(child=child, for_restart=member.for_restart)
        case "waiting":
            return ArmTimer(child=child, due_ns=member.due_ns)
        case _:
            return None
