"""The demonstration, as a newcomer runs it."""

from __future__ import annotations

import os
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
