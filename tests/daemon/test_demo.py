"""The demonstration, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_the_demo_repairs_the_project_and_leaves_nothing(tmp_path: Path) -> None:
    """Two bugs found and fixed with real tools, the second client saw the same, and no file stays behind."""
    done = subprocess.run(
        [sys.executable, "-m", "ottoctl", "demo", "--no-keep"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "+    return (amount_cents * percent + 50) // 100" in done.stdout
    assert "received the same" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_a_demo_that_is_ended_takes_its_daemon_with_it(tmp_path: Path) -> None:
    """A closed terminal ends the demonstration: no daemon goes on for ever, and no file stays behind."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "ottoctl", "demo", "--no-keep"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "NO_COLOR": "1"},
        # Also where the tests themselves were started with `nohup`.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert demo.stderr is not None
    with demo.stderr as said:
        found = next(match for line in said if (match := re.search(r"a daemon of its own .*pid (\d+)", line)))
        demo.send_signal(signal.SIGHUP)
        rest = said.read()
    left = Path(f"/proc/{found[1]}").exists()
    if left:  # Then this test has failed, and cleans up.
        os.kill(int(found[1]), signal.SIGTERM)
    assert (demo.wait(280), left) == (128 + signal.SIGHUP, False), rest
    assert list(tmp_path.iterdir()) == []
