"""A real daemon and what its service manager hears of it, from boot to the end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.harness import DEADLINE_S, RealDaemon, running_daemon, wait_for

WATCHDOG_S = 0.6


class Manager:
    """A manager's socket that remembers everything."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """All lines so far, newest last."""
        while True:
            try:
                self.heard += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def count(self, line: str) -> int:
        return self.listen().count(line)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.socket.close()


@pytest.fixture
def daemon(manager: Manager) -> Iterator[RealDaemon]:
    environment = {"NOTIFY_SOCKET": manager.socket.getsockname(), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    with running_daemon(env=environment) as started:
        yield started


@pytest.mark.real
def test_ready_alive_and_stopping(daemon: RealDaemon, manager: Manager) -> None:
    """Ready comes when clients can connect, then signs of life with the sessions' number, and at the end stopping."""
    wait_for("READY=1", lambda: manager.count("READY=1"))
    before = manager.heard[: manager.heard.index("READY=1")]
    assert all(line == "WATCHDOG=1" or line.startswith("STATUS=") for line in before), "more than a sign of life"
    with daemon.client() as otto:
        model = daemon.script("streamer", {"stream": {"events": 100_000, "rate_hz": 50}})
        otto.start(spec=daemon.agent(model), task="x", cwd=daemon.workdir)
        wait_for("the session in the status line", lambda: manager.count("STATUS=sessions: 1 running"))
    wait_for("signs of life", lambda: manager.count("WATCHDOG=1") >= 3)
    assert daemon.stop() == 0
    assert manager.listen().count("STOPPING=1") == 1 and manager.count("READY=1") == 1


@pytest.mark.real
def test_a_root_that_does_not_turn_is_silent(daemon: RealDaemon, manager: Manager) -> None:
    """A root that stands still gives no sign of life for longer than the watchdog waits, and is heard again after."""
    wait_for("signs of life", lambda: manager.count("WATCHDOG=1") >= 2)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        wait_for("it stands still", lambda: Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2][1] == "T")
        before = manager.count("WATCHDOG=1")
        until = time.monotonic() + 3 * WATCHDOG_S
        while time.monotonic() < until:
            assert manager.count("WATCHDOG=1") == before
            time.sleep(0.05)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    wait_for("it is heard again", lambda: manager.count("WATCHDOG=1") > before)


@pytest.mark.real
def test_a_root_that_is_aborted_says_where_it_was(daemon: RealDaemon) -> None:
    """What a watchdog does to a root that hangs: SIGABRT, also to one that stands still, leaves a traceback."""
    daemon.processes()
    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(daemon.pid, signal.SIGABRT)
    os.kill(daemon.pid, signal.SIGCONT)
    assert daemon.process is not None
    assert daemon.process.wait(DEADLINE_S) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.log and "run_daemon" in daemon.log


@pytest.mark.real
def test_a_reload_is_announced(daemon: RealDaemon, manager: Manager) -> None:
    """SIGHUP reads the configuration again: reloading, and then ready once more, also if it is wrong."""
    wait_for("READY=1", lambda: manager.count("READY=1"))
    for times, content in ((1, "{}"), (2, "nonsense: 1")):
        Path(daemon.env["OTTO_CONFIG"]).write_text(content)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_for("RELOADING=1", lambda times=times: manager.count("RELOADING=1") == times)
        wait_for("READY=1", lambda times=times: manager.count("READY=1") == times + 1)
    with daemon.client() as otto:
        assert otto.status().pid == daemon.pid
