"""Limits that a worker sets on itself at birth, and that everything it starts inherits.

`CORE` 0 always: a core dump would put a conversation and its keys on the disk.

`DATA` only without a memory controller. It bounds the private writable memory of *one process*: heap, anonymous
maps, touched or not. The cap of a session is for its whole tree and is held by the watchdog, which looks about once a
second; `DATA` bounds how far a single process can get between two looks. The slack on top of the cap is for memory
that is mapped and never touched, which every runtime has: the watchdog counts pages, `DATA` counts maps.

`NPROC` is not used for the cap on tasks. It counts all processes of a *user*, not of a session: a limit of 100 would
fail the first fork on a desktop where the user already runs 300, and an honest session would pay for another one's
fork bomb. Nor does it hold for root. Tasks are counted in the tree instead, or by `pids.max`.

Names are those of the `resource` module without `RLIMIT_`. Source: getrlimit(2), prlimit(2).
"""

from __future__ import annotations

import resource
from collections.abc import Iterable

from ottod.isolation.caps import Caps, EnclosureKind, IsolationError

DATA_SLACK_BYTES = 512 * 1024 * 1024
"""Private writable maps that a process may have beyond the memory that it may touch."""

Limit = tuple[str, int]


def limits_for(caps: Caps, *, kind: EnclosureKind = "watchdog") -> list[Limit]:
    """What a worker with these caps sets, given who holds the caps. Sizes in bytes."""
    limits: list[Limit] = [("CORE", 0)]
    if caps.memory_bytes is not None and kind == "watchdog":
        limits.append(("DATA", caps.memory_bytes + DATA_SLACK_BYTES))
    return limits


def set_own_limits(limits: Iterable[Limit]) -> None:
    """Sets soft and hard limits of this process, never above the hard limit that is there. Raises IsolationError."""
    for name, value in limits:
        which = getattr(resource, f"RLIMIT_{name}", None)
        if not isinstance(which, int):
            raise IsolationError(f"there is no resource limit {name!r}", mend="use a name that getrlimit(2) lists")
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (bound, bound))
        except (OSError, ValueError) as error:
            raise IsolationError(f"the resource limit {name} cannot be set to {bound}: {error}") from error
