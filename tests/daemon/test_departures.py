"""How root goes when it cannot do as it was told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ottod.errors import RefusedError
from ottod.protocol.requests import StopDaemon
from tests.daemon.harness import SMALL, RealDaemon, wait_for

PROGRAM = """
import os, sys
from ottod.__main__ import main
from ottod.errors import StorageError
from ottod.storage.ring import Ring
sync = Ring.sync
def sync_ring(ring):
    if os.path.exists(sys.argv[1]):
        raise StorageError("the disk is broken")
    return sync(ring)
Ring.sync = sync_ring
sys.exit(main(["run"]))
"""
"""A daemon whose disk fails as soon as a file exists."""


def start(daemon: RealDaemon, broken: Path) -> subprocess.Popen[bytes]:
    with daemon.log_path.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(broken)],
            env=daemon.env,
            cwd=daemon.base,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    wait_for("it is ready", lambda: "ready: version" in daemon.log)
    return daemon.process


def test_a_service_is_not_left_without_a_daemon(tmp_path: Path) -> None:
    """It refuses to stop and keep sessions that systemd would end; one that leaves for a disk error says so."""
    ring = {**SMALL["ring"], "sync": "always"}
    daemon = RealDaemon({"ring": ring}, env={"OTTO_SESSIONS_UNIT": "otto-sessions.service"})
    try:
        process = start(daemon, tmp_path / "broken")
        with daemon.client() as otto:
            with pytest.raises(RefusedError, match="systemd ends the sessions"):
                otto.connection.call(StopDaemon(keep_sessions=True))
            model = daemon.script("stream", {"stream": {"events": 100_000, "rate_hz": 20, "text_bytes": 10}})
            session = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
            wait_for("it streams", lambda: session.info().last_seq > 5)
            daemon.processes()
            (tmp_path / "broken").touch()
        assert process.wait(60) == 1
        assert (
            "leaving, because ring.sync is `always`" in daemon.log
            and "1 session left to the next daemon" in daemon.log
        )
    finally:
        daemon.close()
