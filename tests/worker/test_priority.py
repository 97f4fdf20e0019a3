"""What a worker gives way to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ottod.worker.priority import LOW_NICE

STEP_BACK = """
import os, sys
from ottod.worker.priority import step_back
step_back(sys.argv[1])
print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
"""


@pytest.mark.parametrize("priority", ["idle", "low", "normal"])
def test_a_worker_steps_back_as_far_as_it_is_told(priority: str) -> None:
    """Idle has what nobody else wants, low has less than others, normal stays as it is."""
    own = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    scheduler, nice = {"idle": (os.SCHED_IDLE, own[1]), "low": (os.SCHED_BATCH, LOW_NICE), "normal": own}[priority]
    argv = [sys.executable, "-c", STEP_BACK, priority]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(scheduler), str(nice)]
