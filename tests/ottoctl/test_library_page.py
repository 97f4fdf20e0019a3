"""The examples of the library's page run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from ottod.protocol.cause import Cause
from ottod.protocol.requests import StartSession
from tests.fakes.fake_daemon import FakeDaemon

PAGE = Path(__file__).parents[2] / "docs/how-to/use-the-python-library.md"


def test_the_examples_run(tmp_path: Path) -> None:
    """Every example that is a whole program runs against a daemon and prints the events."""
    programs = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "import" in code]
    assert len(programs) == 2
    with FakeDaemon(tmp_path) as fake:

        def started(body: StartSession) -> object:
            result = fake._default(body)
            fake.end_session(result.session, Cause(kind="completed"), result="it is green")
            return result

        fake.answers[StartSession] = started
        env = {**os.environ, "OTTO_ENDPOINT": fake.endpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
        for program in programs:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", program],
                env=env,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert "SessionExited" in done.stdout
