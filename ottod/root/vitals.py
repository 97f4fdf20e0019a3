"""Whether a silent worker hangs, or merely gets no processor.

A worker whose heartbeat has stopped is *hung* if it sleeps, is stopped, or burns processor time without coming back
to its loop. If it wants to run and the machine does not let it, killing it would punish the session for somebody
else's load. Blocks; for a thread.
"""

from __future__ import annotations

import os
from typing import NamedTuple

STARVED_SHARE = 0.02
"""A runnable worker that got less than this share of one processor is starved."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Vitals(NamedTuple):
    """One look at a process: the kernel's state letter, and the processor time that it has used, in seconds."""

    state: str
    cpu_s: float
    at_s: float


def look(pid: int, *, now_s: float) -> Vitals | None:
    """The process's vitals; None if it is gone. Source: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return Vitals(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, now_s)


def is_stuck(before: Vitals, after: Vitals) -> bool:
    """Whether the process did nothing in between and is not about to: stopped, or asleep without having run.

    One that computes, or waits for a disk, may merely be slow.
    """
    if after.state in "TtZ":
        return True
    return "S" == before.state == after.state and after.cpu_s == before.cpu_s


def is_starved(before: Vitals, after: Vitals) -> bool:
    """Whether the process wanted to run all the time and hardly could."""
    elapsed_s = after.at_s - before.at_s
    if elapsed_s <= 0 or "R" not in (before.state, after.state) or after.state in "TtZ":
        return False
    return (after.cpu_s - before.cpu_s) / elapsed_s < STARVED_SHARE


def may_speak(before: Vitals, after: Vitals, *, has_come: bool) -> bool:
    """Whether a silent worker may speak yet, if it is waited for: a starved one will.

    One that has not come to this daemon (`has_come`) is busy with what an earlier one gave it, and a slow machine may
    keep it from coming for long: as long as it does anything, it is waited for.
    """
    return is_starved(before, after) if has_come else not is_stuck(before, after)
