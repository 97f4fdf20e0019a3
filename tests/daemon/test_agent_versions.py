"""Running sessions keep the definition that they were started with, and it can be seen which one that is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.daemon.harness import RealDaemon, running_daemon


def running(daemon: RealDaemon, *arguments: str) -> str:
    argv = [sys.executable, "-m", "ottoctl", "agent", "show", "helper", "--running", *arguments]
    done = subprocess.run(
        argv, env=daemon.env, cwd=daemon.workdir, capture_output=True, timeout=60, check=True, text=True
    )
    return done.stdout


@pytest.mark.real
def test_who_runs_what() -> None:
    """The session from before an edit runs another definition than the one from after it."""
    with running_daemon() as daemon, daemon.client() as otto:
        model = daemon.script("wait", {"text": "hello"})
        file = daemon.workdir / ".otto" / "agents" / "helper.yml"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"model": model, "description": "one"}))
        before = otto.start("helper", "go", cwd=daemon.workdir, mode="conversation")
        (record,) = json.loads(running(daemon, "-o", "json"))
        assert record["is_current"] and record["agent_digest"] == before.info().agent_digest
        file.write_text(json.dumps({"model": model, "description": "two"}))
        after = otto.start("helper", "go", cwd=daemon.workdir, mode="conversation")
        records: dict[str, dict[str, Any]] = {r["session"]: r for r in json.loads(running(daemon, "-o", "json"))}
        assert {name: r["is_current"] for name, r in records.items()} == {before.id: False, after.id: True}
        assert records[before.id]["agent_digest"] != records[after.id]["agent_digest"]
        text = running(daemon)
        assert text.count("another") == 1 and text.count(" now ") == 1
        for session in (before, after):
            session.stop()
