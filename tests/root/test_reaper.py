"""Who hears how a child ended: whoever started it, and for strangers nobody.

Each claim is tried in a process of its own: a reaper takes every child that it does not know, also a test's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ottod.isolation.processes import become_subreaper
from ottod.root.reaper import Reaper

DEADLINE_S = 60.0
Start = Callable[[Reaper, list[str]], "subprocess.CompletedProcess[bytes]"]


def run_known(reaper: Reaper, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """As root runs a program of its own."""
    return reaper.run(argv, timeout_s=DEADLINE_S)


def run_spared(reaper: Reaper, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """As code runs one that knows of no reaper."""
    with reaper.sparing():
        return subprocess.run(argv, capture_output=True, timeout=DEADLINE_S, check=False)


def run_out_of_time(reaper: Reaper, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """And after it one that does not end, which is killed, and one that there is not: nothing of them is left."""
    done = run_known(reaper, argv)
    with pytest.raises(subprocess.TimeoutExpired):
        reaper.run(["/bin/sleep", "600"], timeout_s=0.01)
    with pytest.raises(FileNotFoundError):
        reaper.run(["/no/such/program"], timeout_s=DEADLINE_S)
    return done


@pytest.mark.parametrize("start", [run_known, run_spared, run_out_of_time])
def test_a_thread_hears_how_its_program_ended(start: Start, tmp_path: Path) -> None:
    """Also if it asks long after the end; the orphan that the program leaves is a stranger, and is reaped."""
    os.mkfifo(tmp_path / "hold")
    order = f"from tests.root.test_reaper import *; alone({start.__name__}, {str(tmp_path / 'hold')!r})"
    done = subprocess.run(
        [sys.executable, "-c", order], capture_output=True, timeout=DEADLINE_S, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def alone(start: Start, hold: str) -> None:
    """The body of the test, in a process without other children."""
    become_subreaper()
    asyncio.run(_hears(start, hold))


async def _hears(start: Start, hold: str) -> None:
    loop = asyncio.get_running_loop()
    reaper = Reaper(loop)
    reaper.install()
    # What it leaves behind holds its output, so whoever waits for that asks for the status later than the reaper.
    answer = loop.run_in_executor(None, start, reaper, ["/bin/sh", "-c", f"cat {hold} & echo said; exit 3"])
    await _until(lambda: _has_zombie() or reaper.strangers_reaped > 0)
    signal.raise_signal(signal.SIGCHLD)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not reaper.strangers_reaped, "root's own program was taken for a stranger"
    Path(hold).write_bytes(b"")
    done = await answer
    assert (done.returncode, done.stdout) == (3, b"said\n")
    await _until(lambda: reaper.strangers_reaped == 1)
    assert not _has_children()


def _has_zombie() -> bool:
    return _has_children() and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


async def _until(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not probe():
            await asyncio.sleep(0.005)
