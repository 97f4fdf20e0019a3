"""What lies in the directory where Otto is started does not become a part of it: agents write there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottoctl.private import READY
from tests.daemon.harness import RealDaemon, wait_for
from tests.gateway.rig import status_of

PLANTED = ("secrets.py", "queue.py", "msgspec.py", "uvloop.py", "ottod/__init__.py", "ottoctl/__init__.py")
"""Modules of the standard library, of vendors and of Otto itself."""
PROGRAMS = ("bwrap", "chmod", "rm", "true", "uname")
"""What processes of Otto start that nothing confines."""


@pytest.fixture
def place() -> Iterator[RealDaemon]:
    """Of a daemon that does not run yet. Whatever is imported, or started, of what is planted leaves a mark."""
    daemon = RealDaemon({"gateway": {"enabled": True, "port": 0, "socket": True}})
    try:
        for name in PLANTED:
            path = daemon.workdir / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                f"open({str(mark(daemon))!r}, 'a').write(__file__ + '\\n')\nraise ImportError('planted')\n"
            )
        for name in PROGRAMS:
            program = daemon.workdir / ".venv/bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f'#!/bin/sh\necho "$0" >>{mark(daemon)}\nexit 1\n')
            program.chmod(0o755)
        daemon.env["PATH"] = f"{daemon.workdir}/.venv/bin:.venv/bin:{daemon.env['PATH']}"
        yield daemon
    finally:
        daemon.close()


def mark(place: RealDaemon) -> Path:
    return place.base / "mark"


def taken(place: RealDaemon) -> str:
    return mark(place).read_text() if mark(place).exists() else ""


def ctl(place: RealDaemon, *words: str) -> subprocess.CompletedProcess[str]:
    """The installed client, in the directory where all that is planted."""
    argv = [sys.executable, "-P", "-m", "ottoctl", *words]
    done = subprocess.run(
        argv, env=place.env, cwd=place.workdir, capture_output=True, text=True, timeout=180, check=False
    )
    assert taken(place) == "", (words, done.stderr)
    return done


def test_the_proofs_of_isolation(place: RealDaemon) -> None:
    """`ottoctl doctor` tries the layers with Otto's own program."""
    found = {each["check"]: each for each in json.loads(ctl(place, "doctor", "-o", "json").stdout)}
    assert "isolation" not in found and found["isolation process"]["level"] == "ok"


def test_a_daemon_in_the_background(place: RealDaemon) -> None:
    """`ottoctl daemon start`, as any command starts one that needs it."""
    try:
        done = ctl(place, "daemon", "start")
        assert done.returncode == 0, done.stderr
    finally:
        # Whatever was found, it must not be left behind.
        assert ctl(place, "daemon", "stop").returncode == 0


def test_a_daemon_in_the_foreground(place: RealDaemon) -> None:
    """`ottoctl daemon run` and all that root starts: fork server, gateway, explanations, its own successor."""
    argv = [sys.executable, "-P", "-m", "ottoctl", "daemon", "run"]
    with place.log_path.open("ab") as log:
        place.process = subprocess.Popen(
            argv, env=place.env, cwd=place.workdir, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
    daemon = place.process
    wait_for("ready, or ended", lambda: READY in place.log or daemon.poll() is not None)
    assert taken(place) == "" and daemon.poll() is None, place.log
    with place.client() as otto:
        wait_for("a gateway", lambda: status_of(place.base / "run/gateway.sock", "/healthz") == 200)
        call = {"name": "shell", "arguments": {"command": "echo done"}}
        spec = place.agent(place.script("one", {"tools": [call]}, {"text": "hi"}), "fs_read", "shell")
        assert otto.run(spec=spec, task="go", cwd=place.workdir).result == "hi"
        assert otto.explain("", "fs_read", {"path": "one"}, spec=spec, cwd=place.workdir).outcome == "runs"
    done = ctl(place, "daemon", "upgrade")
    assert done.returncode == 0, done.stderr
    with place.client() as otto:
        assert otto.run(spec=spec, task="again", cwd=place.workdir).result == "hi"
    assert place.stop() == 0 and taken(place) == ""
