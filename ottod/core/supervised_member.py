"""The members of a supervised group, and what of the group survives a restart of the daemon.

A member's states:

| state | has a process | meaning |
|---|---|---|
| `starting` | yes | ordered to start, not ready yet |
| `running` | yes | ready |
| `stopping` | yes | ordered to stop, its exit will come |
| `exited` | no | its exit waits in the mailbox for a decision |
| `waiting` | no | a timer stands between it and its restart |
| `due` | no | its timer has fired |
| `owed` | no | it will be started with its group, or when the group is unparked |
| `down` | no | ended well; only a restart of its group starts it again |
"""

from __future__ import annotations

from typing import Literal, Self

import msgspec

from ottod.core.supervision_events import ChildSpec, Ending, ExitReason

MemberState = Literal["starting", "running", "stopping", "exited", "waiting", "due", "owed", "down"]
UP: frozenset[MemberState] = frozenset({"starting", "running"})
ALIVE: frozenset[MemberState] = UP | {"stopping"}
DELAYED: frozenset[MemberState] = frozenset({"waiting", "due"})


class Member(msgspec.Struct, kw_only=True):
    """One child's place in its group. `due_ns` means something while the member is delayed or owed."""

    spec: ChildSpec
    state: MemberState
    attempt: int = 0
    """Restarts in a row; the next delay grows with it."""
    due_ns: int = 0
    for_good: bool = False
    """Somebody stopped this child: no restart of it any more."""
    for_restart: bool = False
    """How the last order to stop it was meant."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An exit that waits for its decision until the group's task is done. There is at most one for each member."""

    child: str
    reason: ExitReason


class StopTask(msgspec.Struct, kw_only=True, tag=True):
    """Stop `scope`, last child first, one at a time; then `cause` and its scope are started again."""

    cause: str
    scope: tuple[str, ...]


class StartTask(msgspec.Struct, kw_only=True, tag=True):
    """Start `left` in this order, one at a time; `current` is starting now."""

    left: list[str]
    current: str = ""


Task = StopTask | StartTask


class MemberSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A member without its spec. `remaining_ns` is the rest of its delay."""

    child: str
    state: MemberState
    attempt: int = 0
    remaining_ns: int = 0
    for_good: bool = False
    for_restart: bool = False

    @classmethod
    def of(cls, member: Member, *, now_ns: int) -> Self:
        return cls(
            child=member.spec.id,
            state=member.state,
            attempt=member.attempt,
            remaining_ns=max(0, member.due_ns - now_ns),
            for_good=member.for_good,
            for_restart=member.for_restart,
        )

    def as_member(self, spec: ChildSpec, *, now_ns: int) -> Member:
        """The member again, on a clock that shows `now_ns`."""
        return Member(
            spec=spec,
            state=self.state,
            attempt=self.attempt,
            due_ns=now_ns + self.remaining_ns,
            for_good=self.for_good,
            for_restart=self.for_restart,
        )


class NodeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A node as plain values. Times are ages and rests, so that another monotonic clock can take them over."""

    members: tuple[MemberSnapshot, ...] = ()
    """In start order."""
    restart_ages_ns: tuple[int, ...] = ()
    mailbox: tuple[Letter, ...] = ()
    task: Task | None = None
    ending: Ending | None = None
    is_closed: bool = False
