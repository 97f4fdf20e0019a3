"""Programs with a daemon of their own end in order when they are told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.daemon.harness import wait_for

ROOT = Path(__file__).resolve().parents[2]
TIDY = """
import pathlib, sys, time
from tests.daemon.program import run_program

def main() -> int:
    try:
        print("up", flush=True)
        time.sleep(60)
    finally:
        pathlib.Path(sys.argv[1]).touch()
    return 0

run_program(main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_status_says_what_ended_it(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """It unwinds first; a second signal does not keep it from that."""
    trace = tmp_path / "unwound"
    with subprocess.Popen([sys.executable, "-c", TIDY, trace], cwd=ROOT, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stdout.readline() == b"up\n"
        program.send_signal(number)
        program.send_signal(number)
        assert program.wait(60) == status
    assert trace.exists()


def test_its_daemon_ends_with_it(tmp_path: Path) -> None:
    """`make crash-sweep`, told to end in the middle: no process and no directory of its daemon is left."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as program:
        wait_for("its daemon has sessions", lambda: list(tmp_path.glob("otto-*/state/sessions/*")))
        below = psutil.Process(program.pid).children(recursive=True)
        program.terminate()
        _, said = program.communicate(timeout=120)
    assert program.returncode == 143, said.decode()
    assert below and not [each for each in below if each.is_running()]
    assert list(tmp_path.glob("otto-*")) == []
