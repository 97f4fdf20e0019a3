"""The mechanics of a supervised group: in which order members stop and start, and what waits for what.

Theory of operation. Nothing is decided here: `ottod.core.supervision` does that. A group holds its members in start
order, the exits whose decision has to wait (the mailbox), and at most one task. A restart of several members is a
`StopTask` over the scope, then the delay of the child that caused it, then a `StartTask`; each step of a task waits
for the answer of one child. Orders are collected in `actions` for the event that is being handled.

At most one member of a group with tasks stands before a timer. Who has to wait meanwhile joins: the first of them in
start order is waited for, until the later of their times, and the others are owed to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ottod.core.supervised_member import (
    ALIVE,
    DELAYED,
    UP,
    Letter,
    Member,
    StartTask,
    StopTask,
    Task,
)
from ottod.core.supervision_events import (
    ArmTimer,
    ChildSpec,
    DisarmTimer,
    DropChild,
    ExitReason,
    KeepDown,
    StartChild,
    StopChild,
    SupervisionAction,
)
from ottod.protocol.specs import Group


class SupervisedGroup:
    """Members, mailbox and task of one node. `now_ns` and `actions` belong to the event that is being handled."""

    def __init__(self, *, spec: Group, children: Iterable[ChildSpec] = ()) -> None:
        self.spec = spec
        self.members = {child.id: Member(spec=child, state="running") for child in children}
        self.mailbox: list[Letter] = []
        self.task: Task | None = None
        self.is_stopped_for_good = False
        self.now_ns = 0
        self.actions: list[SupervisionAction] = []

    # -------------------------------------------------------------- members come and go

    def admit(self, spec: ChildSpec) -> None:
        """Somebody is starting this child. A member that has no process keeps its place."""
        member = self.members.get(spec.id)
        if member is None:
            self.members[spec.id] = Member(spec=spec, state="starting")
        elif member.state not in ALIVE:
            self._cancel_what_waits(member)
            member.spec, member.state = spec, "starting"

    def keep_down(self, member: Member) -> None:
        """It ended well and stays a member."""
        member.state = "down"
        self.actions.append(KeepDown(child=member.spec.id))

    def drop(self, member: Member) -> None:
        """It is not a member any more, and its session has to know."""
        self.forget(member.spec.id)
        self.actions.append(DropChild(child=member.spec.id))

    def forget(self, child: str) -> None:
        """It is not a member any more, as somebody says who knows it."""
        member = self.members.pop(child, None)
        if member is not None:
            self._cancel_what_waits(member)

    def went_down(self, member: Member, reason: ExitReason) -> None:
        """An exit that is not booked: the child was stopped, or was going to be."""
        is_final = self.is_stopped_for_good or member.for_good or member.spec.restart == "temporary"
        if is_final or reason == "withdrawn":
            self.drop(member)
        elif member.state != "stopping" and member.spec.restart == "transient" and reason != "error":
            self.keep_down(member)
        else:
            member.state = "owed"

    def abandon(self) -> None:
        """Ends the task, all waits and the mailbox: whoever was to be started is owed."""
        self.task = None
        letters, self.mailbox = self.mailbox, []
        for letter in letters:
            self.went_down(self.members[letter.child], letter.reason)
        for member in self.members.values():
            if member.state in DELAYED:
                self._cancel_what_waits(member)
                member.state = "owed"

    def _cancel_what_waits(self, member: Member) -> None:
        child = member.spec.id
        if member.state == "waiting":
            self.actions.append(DisarmTimer(child=child))
        self.mailbox = [letter for letter in self.mailbox if letter.child != child]

    # -------------------------------------------------------------- one member

    def start(self, member: Member) -> None:
        member.state = "starting"
        self.actions.append(StartChild(child=member.spec.id, attempt=member.attempt))

    def wait(self, member: Member) -> None:
        """A timer until `member.due_ns`."""
        member.state = "waiting"
        self.actions.append(ArmTimer(child=member.spec.id, due_ns=member.due_ns))

    def stop(self, member: Member, *, for_restart: bool) -> None:
        member.state, member.for_restart = "stopping", for_restart
        self.actions.append(StopChild(child=member.spec.id, for_restart=for_restart))

    # -------------------------------------------------------------- several members

    def scope_of(self, cause: str) -> list[str]:
        """Who is restarted together with `cause`, in start order."""
        order = list(self.members)
        match self.spec.strategy:
            case "one_for_one":
                return []
            case "one_for_all":
                return [child for child in order if child != cause]
            case "rest_for_one":
                return order[order.index(cause) + 1 :]

    def is_being_stopped(self, child: str) -> bool:
        """The task is going to stop this child, or has."""
        return isinstance(self.task, StopTask) and child in self.task.scope

    def restart_together(self, cause: str) -> None:
        """Begins a task over the scope of `cause`. Exits of the scope that nobody has decided on are not booked."""
        scope = self.scope_of(cause)
        for letter in [letter for letter in self.mailbox if letter.child in scope]:
            self.mailbox.remove(letter)
            self.went_down(self.members[letter.child], letter.reason)
        self.task = StopTask(cause=cause, scope=tuple(scope))

    def is_busy(self) -> bool:
        """Takes the task as far as it goes. True if it waits for a child's answer."""
        if isinstance(self.task, StopTask):
            if self.stop_last_of(self.task.scope, for_restart=True):
                return True
            cause, self.task = self.task.cause, None
            self._join_waits(cause)
        if isinstance(self.task, StartTask):
            if self._start_next(self.task):
                return True
            self.task = None
        return False

    def stop_last_of(self, scope: Iterable[str], *, for_restart: bool) -> bool:
        """Orders the last living member of `scope` to stop, unless it has been. False if none lives."""
        wanted = frozenset(scope)
        for child, member in reversed(self.members.items()):
            if child in wanted and member.state in ALIVE:
                if member.state in UP:
                    self.stop(member, for_restart=for_restart and member.spec.restart != "temporary")
                return True
        return False

    def start_due(self) -> bool:
        """Starts what has waited long enough. False if there is nothing."""
        due = next((member for member in self.members.values() if member.state == "due"), None)
        if due is None:
            return False
        if self.spec.strategy == "one_for_one":
            self.start(due)
            return True
        due.state = "owed"
        scope = {due.spec.id, *self.scope_of(due.spec.id)}
        self.task = StartTask(
            left=[
                child
                for child, member in self.members.items()
                if member.state == "owed" or (member.state == "down" and child in scope)
            ]
        )
        return True

    def start_owed(self) -> bool:
        """Starts those whose start no wait will bring about any more. False if there are none."""
        left = [child for child, member in self.members.items() if member.state == "owed"]
        if not left or any(member.state == "waiting" for member in self.members.values()):
            return False
        self.task = StartTask(left=left)
        return True

    def _join_waits(self, cause: str) -> None:
        """The scope of `cause` is down: the start follows after the delay, jointly with a wait that is under way."""
        joined = [m for m in self.members.values() if m.state in DELAYED or m.spec.id == cause]
        if not joined:
            return
        leader, due_ns = joined[0], max(member.due_ns for member in joined)
        if leader.state == "waiting" and leader.due_ns == due_ns > self.now_ns:
            joined.remove(leader)
        for member in joined:
            self._cancel_what_waits(member)
            member.state = "owed"
        leader.due_ns = due_ns
        if due_ns <= self.now_ns:
            leader.state = "due"
        elif leader in joined:
            self.wait(leader)

    def _start_next(self, task: StartTask) -> bool:
        current = self.members.get(task.current)
        if current is not None and current.state == "starting":
            return True
        while task.left:
            member = self.members.get(task.left.pop(0))
            if member is not None and member.state in ("owed", "down"):
                task.current = member.spec.id
                self.start(member)
                return True
        return False

    # -------------------------------------------------------------- checks

    def validate(self) -> None:
        """Raises AssertionError if an open group is in a state that no sequence of events may lead to."""
        states = [member.state for member in self.members.values()]
        exited = sorted(child for child, member in self.members.items() if member.state == "exited")
        assert sorted(letter.child for letter in self.mailbox) == exited, "one letter for every undecided exit"
        assert all(child == member.spec.id for child, member in self.members.items())
        if self.spec.strategy != "one_for_one":
            assert sum(state in DELAYED for state in states) <= 1, "two waits in one group"
        match self.task:
            case StopTask(scope=scope):
                assert any(self.members[child].state == "stopping" for child in scope if child in self.members)
            case StartTask(current=current):
                assert self.members[current].state == "starting"
            case None:
                assert not self.mailbox, "an exit is left without a decision"
                assert "due" not in states, "a child whose time has come is not started"
                assert "owed" not in states or "waiting" in states, "a child is lost: nothing will start it"
