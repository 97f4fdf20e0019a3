"""What was done to whom, and which ends that can explain.

Every deed has a wall clock time in nanoseconds, the clock of events. A cause that no deed explains is a violation: a
session must not die of something that nobody did to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ottod.isolation.processes import ProcessId
from ottod.protocol.cause import Cause
from tests.chaos.population import KINDS

if TYPE_CHECKING:
    from tests.chaos.story import Story

S = 1_000_000_000
AFTERMATH_S = 60.0
"""How long a deed against root or the zygote can still be the reason of a birth that failed."""


class Deeds:
    """The storm's memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.killed: set[tuple[str, int]] = set()
        """Session and incarnation whose worker got SIGKILL."""
        self.frozen: set[tuple[str, int]] = set()
        self.stops_ns: dict[str, int] = {}
        """Session → when a stop of it was first asked for."""
        self.root_deaths_ns: list[int] = []
        self.root_troubles_ns: list[int] = []
        """Root was killed or frozen."""
        self.birth_troubles_ns: list[int] = []
        """The zygote, or a worker that nobody's session it was yet, was killed or frozen."""
        self.processes: set[ProcessId] = set()
        """Workers that got SIGKILL before anybody knew whose they were."""

    def stopped(self, session: str, now_ns: int) -> None:
        """A stop was asked for."""
        self.stops_ns.setdefault(session, now_ns)

    def root_deaths_since(self, since_ns: int) -> int:
        return sum(at > since_ns for at in self.root_deaths_ns)

    def objection(self, story: Story, cause: Cause, at_ns: int, line: Iterable[Story], kin: Iterable[Story]) -> str:
        """Why this cause cannot be; empty if it can.

        `line` are the session's ancestors, the nearest first, `kin` the other members of its group.
        """
        incarnation = (story.session, story.incarnation)
        match cause.kind:
            case "completed":
                return "" if KINDS[story.agent].may_complete else "its script has no end"
            case "crashed":
                return self._crash_objection(story, cause)
            case "hung":
                is_known = incarnation in self.frozen or self._recent(self.root_troubles_ns, at_ns)
                return "" if is_known else "nobody froze it, nor root"
            case "start_failed":
                troubles = [*self.birth_troubles_ns, *self.root_troubles_ns]
                is_known = bool(self._recent(troubles, at_ns)) or incarnation in self.killed | self.frozen
                return "" if is_known else "nobody disturbed its birth"
            case "cancelled":
                return self._cancel_objection(story, at_ns, line, kin)
            case "daemon_stop":
                return "" if self.root_deaths_since(story.created_ns) else "root did not die in its life"
            case "failed":
                return "" if cause.code in ("restart_intensity", "auto_shutdown") else "its script does not fail"
            case _:
                return "nothing here can cause that"

    def _crash_objection(self, story: Story, cause: Cause) -> str:
        if cause.code == "launcher_lost":
            return "" if self.counts["SIGKILL of a tool"] else "nobody killed its launcher"
        if cause.signal and cause.signal == KINDS[story.agent].crash_signal:
            return ""
        if (story.session, story.incarnation) in self.killed and cause.signal in ("SIGKILL", ""):
            if cause.signal or self.root_deaths_since(story.created_ns):
                return ""
            return "it was killed under its own parent, and its signal is not named"
        if not cause.signal and KINDS[story.agent].crash_signal and self.root_deaths_since(story.created_ns):
            return ""  # It crashed itself as the child of a root that is no more: how, nobody could see.
        return "nobody killed this incarnation"

    def _cancel_objection(self, story: Story, at_ns: int, line: Iterable[Story], kin: Iterable[Story]) -> str:
        if story.session in self.stops_ns:
            return ""
        for above in line:
            if above.session in self.stops_ns or above.exited is not None or above.losses:
                return ""
            if (above.session, above.incarnation) in self.killed | self.frozen:
                return ""  # Its children are stopped before its own end is announced.
            if self._recent(self.root_deaths_ns, at_ns):
                return ""  # So they are if it could not be adopted.
        if any(each.losses or each.exited is not None for each in kin):
            return ""
        return "nobody stopped it, nor anything above or beside it"

    @staticmethod
    def _recent(times_ns: Iterable[int], at_ns: int) -> bool:
        return any(at_ns - AFTERMATH_S * S <= each <= at_ns + S for each in times_ns)
