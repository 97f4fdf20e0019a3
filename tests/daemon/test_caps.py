"""Sessions that exceed their caps, under a real daemon: each ends alone, and its cause says why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from ottoctl.sync import SyncSession
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import Limits, Permissions
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

MIB = 1 << 20
CAP_BYTES = 192 * MIB
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or shutil.which("python3") or "python3"

# Three processes of 80 MiB: none is over the cap, their tree is.
HOG = (
    f"{PYTHON} -c 'import os, time\n"
    "os.fork() and os.fork()\n"
    "x = bytearray(80 << 20)\n"
    "for i in range(0, len(x), 4096): x[i] = 1\n"
    "time.sleep(600)'"
)
# It ends at 128 processes: a cap that does not hold must not take the machine with it.
BOMB = f"{PYTHON} -c 'import os, time\nfor _ in range(7):\n  os.fork(); time.sleep(0.3)\ntime.sleep(600)'"


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    with running_daemon() as started:
        yield started


@pytest.fixture(scope="module")
def sibling(daemon: RealDaemon) -> Iterator[SyncSession]:
    """A session that streams all the while; at the end it is whole and was one incarnation."""
    with daemon.client() as otto:
        model = daemon.script("sibling", {"stream": {"events": 100_000, "rate_hz": 50}})
        session = otto.start(spec=daemon.agent(model), task="x", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 5)
        yield session
        assert session.info().state == "running" and session.info().incarnation == 1
        assert session.stop(grace_s=5).remaining_pids == ()


def run(daemon: RealDaemon, command: str, limits: Limits) -> SessionInfo:
    """A session whose only turn runs the command; what became of it."""
    turn = {"tools": [{"name": "shell", "arguments": {"command": command}}]}
    spec = daemon.agent(
        daemon.script("caps", turn, {"text": "done"}),
        "shell",
        limits=limits,
        permissions=Permissions(preset="autonomous"),
    )
    with daemon.client() as otto:
        return otto.start(spec=spec, task="x", cwd=daemon.workdir).wait(timeout_s=60).info


def test_a_tree_over_its_memory_ends_with_cause_memory(daemon: RealDaemon, sibling: SyncSession) -> None:
    """The cause names the cap, a peak above it or at it, and the tool; no process of the session is left."""
    info = run(daemon, HOG, Limits(memory_bytes=CAP_BYTES))
    assert info.cause is not None and info.cause.kind == "memory", info
    assert info.cause.cap_bytes == CAP_BYTES and info.cause.peak_bytes > 0.9 * CAP_BYTES
    assert "shell" in info.cause.last_tool
    assert info.remaining_pids == ()
    assert sibling.info().state == "running"


def test_a_fork_bomb_ends_alone(daemon: RealDaemon, sibling: SyncSession) -> None:
    """Whether forks are refused or the session is ended: the bomb is over, and nothing of it is left."""
    info = run(daemon, f"timeout 20 {BOMB}", Limits(pids=40))
    assert info.cause is not None and info.remaining_pids == ()
    # The kernel refuses the fork, and the tool fails; a watchdog sees it too late for that, and ends the session.
    assert info.cause.kind == "completed" or (info.cause.kind == "crashed" and "tasks at once" in info.cause.message)
    assert sibling.info().state == "running"


def test_a_session_below_its_caps_lives(daemon: RealDaemon) -> None:
    """Memory that the workers share is charged to none: a cap below a worker's resident size does no harm."""
    info = run(daemon, "sleep 3", Limits(memory_bytes=64 * MIB, pids=64))
    assert info.cause is not None and info.cause.kind == "completed", info.cause
    assert 0 < info.memory_peak_bytes < 64 * MIB or info.memory_peak_bytes == 0
