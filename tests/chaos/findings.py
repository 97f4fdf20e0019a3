"""What was checked, how often, and what did not hold."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

MAX_VIOLATIONS = 200
"""One defect can break thousands of events; the first ones tell."""
MAX_TRACE_LINES = 4000

INVARIANTS: dict[str, str] = {
    "seq": "A session's seq has no hole and is never used twice",
    "offset": "Every event comes once and in order, or a gap says exactly what is missing",
    "content": "What a session streamed within an incarnation is complete: no piece lost, none doubled",
    "one_end": "A session ends once, and nothing follows",
    "no_process": "After the end no process of the session exists",
    "stop_wins": "A session that was stopped never runs again",
    "allowance": "Restarts stay within the allowance; beyond it the session is parked, or its group gives up",
    "cause": "Causes are typed, and plausible for what was done",
    "answers": "Every request is answered or fails with its connection; none hangs",
    "progress": "No session stays in a passing state, and no tool call outlives its time",
    "counters": "Counters only grow within one life of root",
    "identity": "Every incarnation is one process: pid and start time are on record before it works",
    "idempotency": "The same key never makes a second session, whatever root went through",
    "late_reader": "A reader that comes late is given what the witness saw, or an exact gap",
    "nothing_left": "At the end no process, socket or control group is left",
    "database": "At the end the database says the same as the stream",
}


class Violation(NamedTuple):
    """Something that must not be. `at_s` counts from the start of the run."""

    invariant: str
    session: str
    text: str
    at_s: float


class Findings:
    """Counts checks and collects violations. `trace` is the end of what happened, for whoever has to explain it."""

    def __init__(self) -> None:
        self.checks: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.trace: deque[str] = deque(maxlen=MAX_TRACE_LINES)
        self.now_s = 0.0
        self.up_s = 0.0
        """Like `now_s`, but stands still while root is dead or frozen."""
        self.dropped = 0

    def check(self, invariant: str, holds: bool, text: str = "", session: str = "") -> bool:
        """One check. `invariant` is a key of INVARIANTS; `text` says what was found if it does not hold."""
        assert invariant in INVARIANTS
        self.checks[invariant] += 1
        if not holds:
            self.violated(invariant, text, session)
        return holds

    def violated(self, invariant: str, text: str, session: str = "") -> None:
        """Something does not hold."""
        self.note(f"VIOLATION {invariant} {session}: {text}")
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(invariant, session, text, round(self.now_s, 3)))
        else:
            self.dropped += 1

    def note(self, line: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.now_s:9.3f} {line}")

    def unchecked(self) -> list[str]:
        """Invariants that nothing was checked of."""
        return [name for name in INVARIANTS if not self.checks[name]]
