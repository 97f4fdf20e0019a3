"""One daemon in a runtime directory, whatever happened to the ones before it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from ottoctl.sync import SyncOtto
from ottod.errors import UnreachableError
from ottod.isolation.processes import identify
from tests.daemon.harness import RealDaemon, wait_for


def another(daemon: RealDaemon) -> subprocess.CompletedProcess[str]:
    """A second daemon, started in the foreground in the same directories, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ottod", "run"],
        env=daemon.env,
        cwd=daemon.base,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answers(daemon: RealDaemon) -> bool:
    with SyncOtto.connect(daemon.endpoint, timeout_s=10) as otto:
        return otto.status().pid == daemon.pid


def run_one(daemon: RealDaemon) -> None:
    """The daemon is whole: a session runs to its end."""
    model = daemon.script("fine", {"text": "fine"})
    with daemon.client() as otto:
        assert otto.run(spec=daemon.agent(model), task="x", cwd=daemon.workdir).ok


def test_a_second_daemon_is_refused(daemon: RealDaemon) -> None:
    """It says who holds the place and what to do, exits, and touches nothing of the first one's."""
    sockets = {p: p.stat().st_ino for p in (daemon.base / "run").glob("*.sock")}
    assert len(sockets) == 2
    done = another(daemon)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("20")]
    assert len(lines) == 2 and f"pid {daemon.pid}" in lines[0] and lines[1].startswith("  mend: ")
    assert {p: p.stat().st_ino for p in (daemon.base / "run").glob("*.sock")} == sockets
    run_one(daemon)


def test_runtime_and_state_directories_are_private(daemon: RealDaemon) -> None:
    """0700, and nothing in them that others may use, sockets and lock included."""
    for directory in ("run", "state", "state/sessions"):
        assert stat.S_IMODE((daemon.base / directory).stat().st_mode) == 0o700
    run_one(daemon)
    for top in ("run", "state"):
        for place, directories, files in os.walk(daemon.base / top):
            for name in (*directories, *files):
                try:
                    mode = os.lstat(os.path.join(place, name)).st_mode
                except FileNotFoundError:
                    continue  # What the session left is being tidied up.
                assert stat.S_IMODE(mode) & 0o077 == 0, (place, name)


def test_a_lock_file_is_only_a_file() -> None:
    """What an earlier daemon left in it, the pid of somebody who lives now included, keeps nobody out."""
    daemon = RealDaemon()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        (daemon.base / "run").mkdir(mode=0o700)
        for content in (f"{bystander.pid}\n", "no pid at all"):
            (daemon.base / "run" / "ottod.lock").write_text(content)
            for name in ("control.sock", "worker.sock"):
                # Files where sockets should be, that nobody listens at, as a kill -9 leaves them.
                (daemon.base / "run" / name).touch()
            daemon.start()
            assert answers(daemon) and bystander.poll() is None
            assert (daemon.base / "run" / "ottod.lock").read_text().strip() == str(daemon.pid)
            assert daemon.stop() == 0
    finally:
        daemon.close()
        bystander.communicate()


def test_after_kill_9_the_next_start_works(daemon: RealDaemon) -> None:
    """Twice in a row; the sockets that were left are taken over, and clients find the new one."""
    for _ in range(2):
        daemon.kill()
        assert list((daemon.base / "run").glob("*.sock"))
        with pytest.raises(UnreachableError):
            daemon.client(timeout_s=5)
        daemon.start()
        assert answers(daemon)
    run_one(daemon)


def test_a_daemon_that_is_slow_to_die_keeps_its_place(daemon: RealDaemon) -> None:
    """Stopped by SIGSTOP it still holds the lock: no successor starts, and nothing of it is deleted meanwhile."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        os.kill(daemon.pid, signal.SIGTERM)
        done = another(daemon)
        assert done.returncode == 1 and f"pid {daemon.pid}" in done.stderr
        assert len(list((daemon.base / "run").glob("*.sock"))) == 2
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert daemon.process is not None and daemon.process.wait(60) == 0
    daemon.start()
    run_one(daemon)


def test_a_lock_file_that_was_cleaned_away(daemon: RealDaemon) -> None:
    """Somebody deletes the lock under a living daemon: the stores' own locks still keep a second one out."""
    (daemon.base / "run" / "ottod.lock").unlink()
    done = another(daemon)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("20")]
    assert len(lines) == 2 and str(daemon.base) in lines[0] and lines[1].startswith("  mend: ")
    assert len(list((daemon.base / "run").glob("*.sock"))) == 2
    assert answers(daemon)
    run_one(daemon)


def test_two_that_start_at_once_make_one() -> None:
    """Of five daemons started at the same time exactly one stays; the others name it."""
    daemon = RealDaemon()
    rivals: list[subprocess.Popen[str]] = []
    try:
        for _ in range(5):
            rivals.append(
                subprocess.Popen(
                    [sys.executable, "-m", "ottod", "run"],
                    env=daemon.env,
                    cwd=daemon.base,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        wait_for("four have given up", lambda: sum(r.poll() is not None for r in rivals) == 4)
        (winner,) = [r for r in rivals if r.poll() is None]
        for loser in rivals:
            if loser is not winner:
                assert loser.returncode == 1 and loser.stderr is not None and "already runs" in loser.stderr.read()
        wait_for("the winner listens", lambda: _pid(daemon) == winner.pid)
        winner.send_signal(signal.SIGTERM)
        assert winner.wait(60) == 0
    finally:
        for rival in rivals:
            if rival.poll() is None:
                rival.kill()
            rival.wait()
            assert rival.stderr is not None
            rival.stderr.close()
        daemon.close()


def _pid(daemon: RealDaemon) -> int:
    try:
        with SyncOtto.connect(daemon.endpoint, timeout_s=10) as otto:
            return otto.status().pid
    except UnreachableError:
        return 0


def test_the_lock_is_not_inherited(daemon: RealDaemon) -> None:
    """Whatever root starts does not hold the lock: a process that outlives it keeps no successor out."""
    slow = daemon.script("slow", {"tools": [{"name": "shell", "arguments": {"command": "sleep 300"}}]}, {"text": "x"})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(slow, "shell"), task="x", cwd=daemon.workdir)
        wait_for("the tool runs", lambda: session.info().current_tool == "shell")
        lock = str(daemon.base / "run" / "ottod.lock")
        for process in daemon.processes():
            if identify(process.pid) == process:
                assert lock not in _open_files(process.pid)
        session.kill()


def _open_files(pid: int) -> list[str]:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []  # It has ended meanwhile.
    found = []
    for fd in fds:
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    return found
