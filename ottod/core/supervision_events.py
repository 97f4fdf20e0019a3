"""The words of supervision: what a supervisor node is told (events) and what it orders (actions).

The rules that hold between them are in `ottod.core.supervision`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ottod.protocol.specs import Backoff

ExitReason = Literal["normal", "shutdown", "error", "withdrawn"]
"""Why a child ended. The first three are OTP's: `normal`, `shutdown` (also `{shutdown, Term}`), anything else.

`withdrawn` is ours: whatever its restart type, the child never comes back and nothing is booked against its group
(causes like cancelled, budget, auth, bad_spec). For auto-shutdown it counts as a `shutdown`.
"""

RestartType = Literal["permanent", "transient", "temporary"]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that events and actions share."""


class ChildSpec(Value, frozen=True, kw_only=True):
    """A child as its supervisor sees it. `significant` matters only to a group with auto-shutdown."""

    id: str
    restart: RestartType = "permanent"
    significant: bool = False
    backoff: Backoff = Backoff()


# ------------------------------------------------------------------ events


class ChildAdded(Value, frozen=True, kw_only=True, tag=True):
    """Somebody is starting a child: it joins at the end of the start order. One that is down keeps its place."""

    child: ChildSpec


class ChildReady(Value, frozen=True, kw_only=True, tag=True):
    """A child that was starting works now."""

    child: str


class ChildExited(Value, frozen=True, kw_only=True, tag=True):
    """No process of the child is left. `ran_ns`: how long it had been ready."""

    child: str
    reason: ExitReason
    ran_ns: int = 0


class StartFailed(Value, frozen=True, kw_only=True, tag=True):
    """A start or restart did not get to ready, and no process of it is left."""

    child: str


class TimerFired(Value, frozen=True, kw_only=True, tag=True):
    """The time that `ArmTimer` named has come."""

    child: str


class StopRequested(Value, frozen=True, kw_only=True, tag=True):
    """The whole group is to stop for good, and wins over everything that is pending. Answered by `GroupStopped`."""


class ChildStopRequested(Value, frozen=True, kw_only=True, tag=True):
    """One child is to stop for good, and wins over any restart of it. Ends in its `DropChild`."""

    child: str


class ChildDeleted(Value, frozen=True, kw_only=True, tag=True):
    """A child that has no process was taken out for good. Unknown ids are fine: the same end may be told twice."""

    child: str


class Unparked(Value, frozen=True, kw_only=True, tag=True):
    """After `GiveUp`: somebody wants another try. Means nothing to a group that has not given up."""


SupervisionEvent = (
    ChildAdded
    | ChildReady
    | ChildExited
    | StartFailed
    | TimerFired
    | StopRequested
    | ChildStopRequested
    | ChildDeleted
    | Unparked
)

# ------------------------------------------------------------------ actions


class StartChild(Value, frozen=True, kw_only=True, tag=True):
    """Start the child now. `attempt` counts its own restarts in a row; 0 if only a sibling's end restarts it."""

    child: str
    attempt: int


class ArmTimer(Value, frozen=True, kw_only=True, tag=True):
    """Send `TimerFired` at `due_ns` of the monotonic clock that `step` is given."""

    child: str
    due_ns: int


class DisarmTimer(Value, frozen=True, kw_only=True, tag=True):
    """The timer is not wanted any more. Should it fire all the same, that does no harm."""

    child: str


class StopChild(Value, frozen=True, kw_only=True, tag=True):
    """Stop the child; its `ChildExited` must come.

    `for_restart`: it will be started again by itself. The order may come a second time, with `for_restart` withdrawn.
    """

    child: str
    for_restart: bool


class KeepDown(Value, frozen=True, kw_only=True, tag=True):
    """A transient child ended well. It stays a member, and would be started again together with its siblings.

    A session that is over must not come back: answer with `ChildDeleted`.
    """

    child: str


class DropChild(Value, frozen=True, kw_only=True, tag=True):
    """The child is not a member any more and never comes back."""

    child: str


class GiveUp(Value, frozen=True, kw_only=True, tag=True):
    """Too many restarts; all children have been stopped. Escalate (exit as `shutdown`), or park until `Unparked`."""

    reason: str
    restarts: int
    period_s: float


class AutoShutdown(Value, frozen=True, kw_only=True, tag=True):
    """The significant `child` ended, and all others have been stopped. The supervisor exits as `shutdown`."""

    child: str


class GroupStopped(Value, frozen=True, kw_only=True, tag=True):
    """The answer to `StopRequested`: nothing runs, nothing will."""


SupervisionAction = (
    StartChild | ArmTimer | DisarmTimer | StopChild | KeepDown | DropChild | GiveUp | AutoShutdown | GroupStopped
)
Ending = GiveUp | AutoShutdown | GroupStopped
"""How a group ends: the last action it emits."""
