"""Whether a silent worker hangs or starves."""

from __future__ import annotations

import os
import time

import pytest

from ottod.root.vitals import Vitals, is_starved, is_stuck, look, may_speak


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


@pytest.mark.parametrize(
    ("before", "after", "stuck"),
    [
        (Vitals("R", 1.00, 0), Vitals("T", 1.50, 2), True),  # stopped
        (Vitals("S", 1.00, 0), Vitals("S", 1.00, 2), True),  # sleeps, and has not run
        (Vitals("S", 1.00, 0), Vitals("S", 1.01, 2), False),  # has run in between
        (Vitals("R", 1.00, 0), Vitals("R", 1.00, 2), False),  # gets no processor
        (Vitals("R", 1.00, 0), Vitals("R", 2.90, 2), False),  # computes
        (Vitals("D", 1.00, 0), Vitals("D", 1.00, 2), False),  # waits for a disk
        (Vitals("S", 1.00, 0), Vitals("R", 1.00, 2), False),  # is about to run
    ],
)
def test_who_is_stuck(before: Vitals, after: Vitals, stuck: bool) -> None:
    """Only a process that does nothing and is not about to; one that is slow is left alone."""
    assert is_stuck(before, after) is stuck


@pytest.mark.parametrize(
    ("after", "newcomer", "known"),
    [
        (Vitals("R", 2.90, 2), True, False),  # computes: one that is known should have been back at its loop
        (Vitals("R", 1.01, 2), True, True),  # gets no processor
        (Vitals("T", 1.00, 2), False, False),  # stopped
        (Vitals("S", 1.50, 2), True, False),  # streams to a socket that nobody reads yet
    ],
)
def test_who_may_speak_yet(after: Vitals, newcomer: bool, known: bool) -> None:
    """A worker that has not come to a new daemon is waited for as long as it does anything."""
    before = Vitals("R", 1.00, 0)
    assert may_speak(before, after, has_come=False) is newcomer
    assert may_speak(before, after, has_come=True) is known


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
