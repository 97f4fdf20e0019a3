from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ottod.isolation import processes
from ottod.isolation.processes import ProcessId

DEADLINE_S = 60.0


def wait_until(condition: object, deadline_s: float = DEADLINE_S) -> None:
    """Polls until the callable answers true."""
    assert callable(condition)
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_at, "the condition was not met in time"
        time.sleep(0.005)


@pytest.fixture
def session() -> Iterator[str]:
    """A session id of its own; whatever a failing test leaves of it is ended."""
    name = f"s-{os.urandom(5).hex()}"
    yield name
    assert processes.kill_survivors(name, deadline_s=DEADLINE_S) == []


def start(session: str, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", script],
        env={"OTTO_SESSION": session, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def reap(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    process.wait(DEADLINE_S)


def test_identity_is_pid_and_start_time(session: str) -> None:
    """A process is itself for as long as it lives, and a zombie is not alive."""
    process = start(session, "exec sleep 60")
    known = processes.identify(process.pid)
    assert known is not None and known.start_ticks > 0
    assert processes.is_alive(known)
    assert not processes.is_alive(ProcessId(known.pid, known.start_ticks + 1))
    process.kill()
    wait_until(lambda: not processes.is_alive(known))
    assert processes.identify(process.pid) == known  # It is a zombie until somebody asks for its status.
    reap(process)
    assert processes.identify(process.pid) is None


def test_a_stranger_with_the_pid_is_not_signalled(session: str) -> None:
    """A signal for a process that had the pid before does not reach the one that has it now."""
    process = start(session, "exec sleep 60")
    known = processes.identify(process.pid)
    assert known is not None
    assert processes.send_signal(ProcessId(known.pid, known.start_ticks - 1), signal.SIGKILL) is False
    assert processes.is_alive(known)
    assert processes.send_signal(known, signal.SIGKILL) is True
    reap(process)
    assert processes.send_signal(known, signal.SIGKILL) is False


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_groups_and_init_are_never_signalled(pid: int) -> None:
    """What kill(2) would take for a group, for everything, or for init is not signalled at all."""
    assert processes.send_signal(ProcessId(pid, 1), signal.SIGCONT) is False


def test_survivors_are_found_by_marker_and_by_parent(session: str) -> None:
    """Orphans in sessions of their own count, and so do children that dropped the marker; strangers do not."""
    other = start(session + "x", "exec sleep 60")
    process = start(session, "(setsid sleep 60 &) ; env -u OTTO_SESSION sleep 60 & echo ready; wait")
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    wait_until(lambda: len(processes.survivors(session)) == 3)
    found = {each.pid for each in processes.survivors(session)}
    assert process.pid in found and other.pid not in found
    assert processes.kill_survivors(session, deadline_s=DEADLINE_S) == []
    assert processes.survivors(session) == []
    assert other.poll() is None
    other.kill()
    reap(other)
    reap(process)


def test_a_known_process_without_the_marker_counts(session: str) -> None:
    """A worker, forked and never exec'ed, is named by identity; one that took over its pid is not."""
    worker = start("elsewhere", "sleep 60 & wait")
    known = processes.identify(worker.pid)
    assert known is not None
    wait_until(lambda: len(processes.descendants(worker.pid)) == 1)
    assert processes.survivors(session, known=[ProcessId(known.pid, known.start_ticks - 1)]) == []
    assert len(processes.survivors(session, known=[known])) == 2
    assert processes.kill_survivors(session, known=[known], deadline_s=DEADLINE_S) == []
    reap(worker)


def test_a_tree_that_keeps_forking_is_ended(session: str) -> None:
    """Processes that fork faster than anybody can list them, and ignore SIGTERM, are gone in the end."""
    breed = "trap '' TERM HUP INT; while :; do (trap '' TERM; sleep 0.01; sleep 60) & sleep 0.005; done"
    process = start(session, f"({breed}) & ({breed}) & wait")
    known = processes.identify(process.pid)
    assert known is not None
    wait_until(lambda: len(processes.descendants(process.pid)) > 20)
    assert processes.kill_tree(known, deadline_s=DEADLINE_S) == []
    reap(process)
    assert processes.kill_survivors(session, deadline_s=DEADLINE_S) == []


def test_own_line_is_never_a_victim(session: str) -> None:
    """A process that asks for the survivors of the session it is itself in finds only others."""
    script = (
        "import os, sys; sys.path.append(sys.argv[1]); import processes;"
        "left = processes.kill_survivors(os.environ['OTTO_SESSION'], deadline_s=5); print('alive', left)"
    )
    directory = os.path.dirname(processes.__file__)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, directory],
        env={"OTTO_SESSION": session},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == b"alive []\n", done.stderr


def test_subreaper_and_parent_death_signal(session: str) -> None:
    """An orphan becomes the subreaper's child; a child with a death signal dies with its parent."""
    script = (
        "import os, sys, time; sys.path.append(sys.argv[1]); import processes\n"
        "processes.become_subreaper()\n"
        "r, w = os.pipe()\n"
        "middle = os.fork()\n"
        "if middle == 0:\n"
        "    parent = os.getpid()\n"
        "    if os.fork() == 0:\n"
        "        processes.set_parent_death_signal(9)\n"
        "        os.write(w, b'x')\n"
        "        time.sleep(60)\n"
        "    os.read(r, 1)\n"
        "    os._exit(0)\n"
        "os.waitpid(middle, 0)\n"
        "pid, status = os.wait()\n"
        "print(os.WTERMSIG(status))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, os.path.dirname(processes.__file__)],
        env={"OTTO_SESSION": session},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == b"9\n", done.stderr
