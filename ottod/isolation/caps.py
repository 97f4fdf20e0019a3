"""The words of session enclosures: what a session may use, what it uses, and the interface of what encloses it.

An *enclosure* holds all processes of one session, measures them together and ends them together. There are two kinds
with the same interface: a cgroup v2 leaf, where the kernel holds the caps (`cgroups`), and a watchdog, which looks at
the session's tree of processes again and again (`watchdog`). Everything blocks and is meant for a thread.

Source: ADR 0009.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from ottod.errors import OttoError
from ottod.isolation.processes import ProcessId

EnclosureKind = Literal["cgroup", "watchdog"]


class IsolationError(OttoError):
    """An enclosure cannot be made, entered or removed; the message names the file and the reason."""

    code = "isolation_unavailable"


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of a session together may use. None: no cap.

    `pids` counts tasks, as the kernel does: each thread of each process. `cpu_weight` is a share from 1 to 10,000
    that counts only while processors are short; 100 is what every session has by itself.
    """

    memory_bytes: int | None = None
    pids: int | None = None
    cpu_weight: int | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a session uses, all its processes together. Sizes in bytes, processor time in milliseconds.

    `memory_kills` counts how often its processes were killed for want of memory since the enclosure was made,
    `pid_refusals` how often the kernel refused a fork. A watchdog kills nothing: it says `is_over_memory` or
    `is_over_pids`, and who reads it must act. `is_exact` False: memory is an estimate (see `tree_watch`).
    """

    memory_bytes: int = 0
    peak_bytes: int = 0
    processes: int = 0
    tasks: int = 0
    cpu_ms: int = 0
    memory_kills: int = 0
    pid_refusals: int = 0
    cap_bytes: int | None = None
    pids_cap: int | None = None
    is_over_memory: bool = False
    is_over_pids: bool = False
    is_exact: bool = True


class Enclosure(Protocol):
    """One session's enclosure."""

    @property
    def session(self) -> str:
        """The session's id."""

    @property
    def kind(self) -> EnclosureKind:
        """Who holds the caps: the kernel, or root by looking."""

    @property
    def caps(self) -> Caps:
        """What the session may use."""

    def admit(self, pid: int) -> None:
        """Takes in a process and all that it will start. Raises IsolationError."""

    def holds(self, pid: int) -> bool:
        """Whether the process is inside: asked after the spawn and again later, for it may have left."""

    def read(self) -> Reading:
        """What the session uses now."""

    def members(self) -> list[ProcessId]:
        """The live processes inside, by pid."""

    def kill(self, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        """Ends every process of the session, escaped ones too; gives what remains after `deadline_s`.

        An empty answer is a proof: the enclosure is empty, and there is no process with the session's marker, none of
        the `known` ones, and nothing below any of them.
        """

    def close(self) -> None:
        """Removes the enclosure; one that is already gone is no error. Raises IsolationError if it is not empty."""
