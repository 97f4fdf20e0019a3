"""Whether a silent worker hangs or starves."""

from __future__ import annotations

import os
import time

import pytest

from ottod.root.vitals import Vitals, is_starved, look


@pytest.mark.parametrize(
    ("before", "after", "starved"),
    [
        (Vitals("R", 1.00, 0), Vitals("R", 1.01, 2), True),  # wants to run, gets half a percent
        (Vitals("R", 1.00, 0), Vitals("S", 1.01, 2), True),  # just got off the processor
        (Vitals("R", 1.00, 0), Vitals("R", 2.90, 2), False),  # spins
        (Vitals("S", 1.00, 0), Vitals("S", 1.00, 2), False),  # sleeps: a deadlock
        (Vitals("D", 1.00, 0), Vitals("D", 1.00, 2), False),  # stuck in the kernel
        (Vitals("R", 1.00, 0), Vitals("T", 1.00, 2), False),  # stopped
        (Vitals("R", 1.00, 2), Vitals("R", 1.00, 2), False),  # no time has passed
    ],
)
def test_verdicts(before: Vitals, after: Vitals, starved: bool) -> None:
    """Only a worker that wants to run and cannot is starved."""
    assert is_starved(before, after) is starved


def test_a_look_at_oneself() -> None:
    """A running process is seen as running, and its processor time grows."""
    first = look(os.getpid(), now_s=0.0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        later = look(os.getpid(), now_s=1.0)
        assert first is not None and later is not None
        if later.cpu_s > first.cpu_s:
            break
    assert later.cpu_s > first.cpu_s and later.state == "R"


def test_nobody_there() -> None:
    """A pid beyond the kernel's range is nobody."""
    assert look(2**30, now_s=0.0) is None
