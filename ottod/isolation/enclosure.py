"""Which kind of enclosure this host gives, decided once at boot, and all enclosures of it.

`Enclosures.find` chooses cgroup leaves if the memory and pids controllers can really be used, and the watchdog
otherwise; `reason` says why not the better one. `settle` then prepares the base group. If that fails after all, the
daemon does not: the kind falls back to the watchdog. Everything blocks and is meant for a thread; calls may come from
several threads, but for one session from one at a time.

Source: ADR 0009.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from ottod.isolation.caps import Caps, Enclosure, EnclosureKind, IsolationError, Reading
from ottod.isolation.cgroup_base import UNIT_VARIABLE, CgroupBase, find_base, find_hierarchy
from ottod.isolation.cgroups import CgroupEnclosure, find_leaf, open_leaf
from ottod.isolation.processes import ProcessId, is_alive
from ottod.isolation.tree_watch import TreeWatch
from ottod.isolation.watchdog import WatchdogEnclosure

__all__ = ["Caps", "Enclosure", "EnclosureKind", "Enclosures", "IsolationError", "Reading"]

LOOK_S = 1.0
"""Between two looks at all sessions."""
HASTY_LOOK_S = 0.2
"""The same while a session is more than half way to a cap that only looking holds."""
HASTY_SHARE = 0.5
SWEEP_DEADLINE_S = 5.0
"""The longest that ending one leftover leaf may take."""


class Enclosures:
    """Makes and finds enclosures of the one kind that this host gives."""

    def __init__(self, base: CgroupBase | None, *, reason: str = "") -> None:
        self._base = base
        self._watch = TreeWatch()
        self.reason = reason
        """Why not a cgroup, or why not the unit that was asked for; empty if nothing better could be had."""

    @classmethod
    def find(cls, *, environ: Mapping[str, str]) -> Enclosures:
        """What this host gives. Tries it with a throw-away child, and changes nothing."""
        base, reason = find_base(find_hierarchy(), unit=environ.get(UNIT_VARIABLE, ""))
        return cls(base, reason=reason)

    @property
    def kind(self) -> EnclosureKind:
        """Who holds the caps."""
        return "watchdog" if self._base is None else "cgroup"

    @property
    def gives_memory(self) -> bool:
        """Whether the kernel itself holds a memory cap."""
        return self._base is not None

    @property
    def place(self) -> str:
        """The base group's directory; empty under the watchdog."""
        return "" if self._base is None else str(self._base.group.path)

    @property
    def outlives_daemon(self) -> bool:
        """Whether sessions are in a unit of their own, which a restart of root's unit leaves alone."""
        return self._base is not None and not self._base.is_own

    def settle(self) -> None:
        """Prepares the base group. On a failure the watchdog takes over, and `reason` says why."""
        if self._base is None:
            return
        try:
            self._base.settle()
        except (IsolationError, OSError) as error:
            self._base.close()
            self._base = None
            self.reason = "; ".join(each for each in (self.reason, str(error)) if each)

    def close(self) -> None:
        """Gives up the base for the next daemon; leaves stay."""
        if self._base is not None:
            self._base.close()

    def open(self, session: str, caps: Caps) -> Enclosure:
        """A fresh enclosure. Raises IsolationError, also if an earlier one of the session still holds processes."""
        if self._base is None:
            return WatchdogEnclosure(self._watch, session=session, caps=caps)
        return open_leaf(self._base, session, caps, self._watch)

    def reopen(self, session: str, caps: Caps) -> Enclosure | None:
        """The enclosure that an earlier root made, with its counts; None if there is none.

        Under the watchdog there is always one: admit the worker to it. Raises IsolationError.
        """
        if self._base is None:
            return WatchdogEnclosure(self._watch, session=session, caps=caps)
        return find_leaf(self._base, session, caps, self._watch)

    def read_all(self, enclosures: Iterable[Enclosure]) -> dict[str, Reading]:
        """What all these sessions use, by session. Once a second: one walk for all that are under the watchdog."""
        watched: dict[str, WatchdogEnclosure] = {}
        readings = {}
        for each in enclosures:
            if isinstance(each, WatchdogEnclosure):
                watched[each.session] = each
            else:
                readings[each.session] = each.read()
        for session, reading in self._watch.read_all([each.watched for each in watched.values()]).items():
            readings[session] = watched[session].note(reading)
        return readings

    def escaped(
        self, workers: Mapping[str, ProcessId], enclosures: Iterable[Enclosure]
    ) -> dict[str, list[ProcessId]]:
        """The processes of each session that are outside its leaf, though its worker's or marked.

        An agent's command line may move itself to a scope of its own, and out of its caps. Admit what is found here
        again, or end it. One walk over /proc, and one more read for each process of a session: for every few seconds.
        Under the watchdog there is nothing to leave.
        """
        leaves = {each.session: each for each in enclosures if each.kind == "cgroup" and each.session in workers}
        if not leaves:
            return {}
        # Whoever is inside now is remembered, and known when it is met outside.
        found = self._watch.find_all(
            {session: (workers[session], *leaf.members()) for session, leaf in leaves.items()}
        )
        left = {
            session: [each for each in tree if not leaves[session].holds(each.pid)] for session, tree in found.items()
        }
        return {session: out for session, tree in left.items() if (out := [each for each in tree if is_alive(each)])}

    def next_look_s(self, readings: Iterable[Reading]) -> float:
        """Seconds until the next look should come: sooner while somebody nears a cap that only looking holds."""
        if self.kind == "watchdog":
            for each in readings:
                if each.cap_bytes is not None and each.memory_bytes > HASTY_SHARE * each.cap_bytes:
                    return HASTY_LOOK_S
                if each.pids_cap is not None and each.tasks > HASTY_SHARE * each.pids_cap:
                    return HASTY_LOOK_S
        return LOOK_S

    def strangers(self, known: Container[str]) -> list[str]:
        """The sessions that have a leaf and are not `known`.

        Under the watchdog there are none: a process with the marker of an unknown session may be another daemon's.
        """
        if self._base is None:
            return []
        return [name for group in self._base.sessions.children() if (name := group.path.name) not in known]

    def sweep(self, sessions: Iterable[str]) -> list[str]:
        """Ends and removes the leaves of these sessions; gives those that had one.

        What cannot be ended stays, and is met again by the next root.
        """
        swept = []
        for session in sessions:
            leaf = find_leaf(self._base, session, Caps()) if self._base is not None else None
            if isinstance(leaf, CgroupEnclosure):
                leaf.group.kill(deadline_s=SWEEP_DEADLINE_S)
                leaf.group.remove()
                swept.append(session)
        return swept
