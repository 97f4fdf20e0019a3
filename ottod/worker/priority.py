"""How much of the processor a worker asks for: whoever routes events goes first."""

from __future__ import annotations

import os
from typing import Literal

LOW_NICE = 10


def step_back(priority: Literal["idle", "low", "normal"]) -> None:
    """Lowers the calling thread's priority. ZeroMQ's threads are older and keep theirs: what has been said leaves.

    Raises: OSError.
    """
    match priority:
        case "idle":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        case "low":
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, LOW_NICE)
        case "normal":
            pass
