"""A running session is paused, steered and interrupted through a real daemon, by the library and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ottoctl.sync import SyncSession
from ottod.core.resume import restore
from ottod.core.turn import is_valid_conversation
from ottod.errors import OttoError
from ottod.isolation.processes import identify, is_alive
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, wait_for

LASTING = Restart(policy="transient", backoff=Backoff(base_s=0.0, max_s=0.0, jitter=0.0))


def ottoctl(daemon: RealDaemon, *arguments: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "ottoctl", "--endpoint", daemon.endpoint, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def waiting_call(marker: str) -> dict[str, object]:
    command = f"touch {marker}.runs; while [ ! -e {marker} ]; do sleep 0.05; done; echo {marker}"
    return {"name": "shell", "arguments": {"command": command}}


def runs(daemon: RealDaemon, marker: str) -> None:
    wait_for(f"{marker} runs", lambda: (daemon.workdir / f"{marker}.runs").exists())


def in_state(session: SyncSession, state: str) -> None:
    wait_for(f"it is {state}", lambda: session.info().state == state)


def test_a_pause_outlives_worker_and_root(daemon: RealDaemon) -> None:
    """Paused by the command line, worker and root killed: paused still, and it goes on where it was."""
    model = daemon.script("p", {"tools": [waiting_call("a")]}, {"text": "done: ${input}"})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell", restart=LASTING), task="go", cwd=daemon.workdir)
        runs(daemon, "a")
        assert ottoctl(daemon, "pause", session.id, "--reason", "lunch").strip() == session.id
        assert session.info().state == "paused"
        worker = identify(session.info().pid)
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        wait_for("the worker is gone", lambda: not is_alive(worker))
        wait_for("it is back", lambda: session.info().incarnation == 2 and session.info().state == "paused")
        session.send("hurry", steer=True)
    daemon.kill()
    daemon.start()
    with daemon.client() as otto:
        session = otto.session(session.id)
        assert session.info().state == "paused"
        ottoctl(daemon, "unpause", session.id)
        result = session.wait()
        assert result.ok and result.result == "done: hurry"
        assert is_valid_conversation(restore(session.journal()).messages)


def test_an_interrupted_session_waits_for_what_it_is_told(daemon: RealDaemon) -> None:
    """A one-shot session whose turn is interrupted does not end; told what to do instead, it does that and ends."""
    model = daemon.script("i", {"tools": [waiting_call("never")]}, {"text": "instead: ${input}"})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=daemon.workdir)
        runs(daemon, "never")
        session.interrupt(reason="no")
        in_state(session, "idle")
        with pytest.raises(OttoError) as caught:
            session.interrupt()
        assert caught.value.code == "no_turn"
        session.send("this")
        assert session.wait().result == "instead: this"
        assert "was interrupted" in ottoctl(daemon, "export", session.id)
