"""Full and read-only disks: a small tmpfs under a real daemon. Needs the right to mount."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ottod.errors import OttoError
from ottod.protocol.events import SessionExited
from tests.daemon.harness import RealDaemon, wait_for

MIB = 1024 * 1024
TINY_RING = {"ring": {"size_bytes": MIB, "segment_bytes": 128 * 1024}}
FOLLOWING = {"stream": {"events": 100_000, "rate_hz": 50}}


@contextmanager
def small_disk(path: Path, size_bytes: int, options: str = "") -> Iterator[None]:
    """A tmpfs of that size at `path`; skips the test where mounting is not allowed."""
    path.mkdir(mode=0o700, exist_ok=True)
    settings = f"size={size_bytes},mode=0700,uid={os.getuid()},gid={os.getgid()}{options}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", settings, "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: a daemon that a failing test left behind must not keep the mount for ever.
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def daemon_on(disk: str, size_bytes: int, options: str = "") -> Iterator[RealDaemon]:
    """A daemon, not yet started, one of whose directories is a small disk."""
    if not os.access("/sbin/mount", os.X_OK) and not os.access("/bin/mount", os.X_OK):
        pytest.skip("there is no mount program")
    daemon = RealDaemon(TINY_RING)
    try:
        (daemon.base / "state").mkdir(mode=0o700)
        with small_disk(daemon.base / disk, size_bytes, options):
            try:
                yield daemon
            finally:
                if daemon.process is not None and daemon.process.poll() is None:
                    daemon.stop()
    finally:
        daemon.close()


def fill(directory: Path) -> Path:
    """Takes all the space there is. Gives the file that holds it."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    return path


def start_in_background(daemon: RealDaemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", "daemon", "start"],
        env={**daemon.env, "PYTHONPATH": os.getcwd()},
        cwd=daemon.workdir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_no_defect(daemon: RealDaemon) -> None:
    assert "Traceback" not in daemon.log and "internal error" not in daemon.log, daemon.log[-4000:]


def test_no_room_for_the_ring() -> None:
    """The daemon does not start, says what lacks and what would help, and leaves no socket."""
    with daemon_on("state", MIB // 2) as daemon:
        done = start_in_background(daemon)
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        error, mend = done.stderr.splitlines()
        assert "no space" in error.lower() and mend.startswith("  mend: ")
        assert not list((daemon.base / "run").glob("*.sock"))


def test_read_only_state_directory() -> None:
    """The daemon does not start where it cannot write, even as root."""
    with daemon_on("state", MIB, ",ro") as daemon:
        done = start_in_background(daemon)
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        error, mend = done.stderr.splitlines()
        assert str(daemon.base / "state") in error and mend.startswith("  mend: ")


def test_a_disk_that_fills_up_under_a_daemon() -> None:
    """Starts are refused with the reason, running sessions that need no disk go on, and all is well with space."""
    with daemon_on("state", 8 * MIB) as daemon:
        daemon.start()
        stream = daemon.script("stream", FOLLOWING)
        fine = daemon.script("fine", {"text": "fine"})
        with daemon.client() as otto:
            running = otto.start(spec=daemon.agent(stream), task="x", cwd=daemon.workdir)
            wait_for("it streams", lambda: running.info().last_seq > 20)
            before = {i.session for i in otto.list(all=True)}
            filler = fill(daemon.base / "state")
            for _ in range(3):
                try:
                    result = otto.run(spec=daemon.agent(fine), task="x" * 100_000, cwd=daemon.workdir)
                except OttoError as error:
                    assert error.code == "storage" and error.message
                else:
                    assert not result.ok and result.cause is not None and result.cause.code == "storage"
            seen = running.info().last_seq
            wait_for("the other goes on", lambda: running.info().last_seq > seen)
            filler.unlink()
            assert otto.run(spec=daemon.agent(fine), task="x", cwd=daemon.workdir).ok
            assert running.stop(grace_s=5).remaining_pids == ()
            told = list(running.events(0))
            assert [e.seq for e in told] == list(range(told[0].seq, told[-1].seq + 1))
            assert isinstance(told[-1].event, SessionExited)
        assert daemon.stop() == 0
        daemon.start()
        with daemon.client() as otto:
            after = {i.session: i for i in otto.list(all=True)}
            assert before <= set(after) and after[running.id].cause.kind == "cancelled"
        check_no_defect(daemon)


def test_a_full_disk_under_the_journals_only() -> None:
    """A session that cannot keep its journal fails with the reason; others, root and its database do not notice."""
    with daemon_on("state/sessions", MIB) as daemon:
        daemon.start()
        stream = daemon.script("stream", FOLLOWING)
        talk = daemon.script("talk", {"text": "one"}, {"text": "two"}, {"text": "three"})
        with daemon.client() as otto:
            running = otto.start(spec=daemon.agent(stream), task="x", cwd=daemon.workdir)
            victim = otto.start(spec=daemon.agent(talk), task="x", cwd=daemon.workdir, mode="conversation")
            victim.wait(idle=True)
            wait_for("it streams", lambda: running.info().last_seq > 20)
            filler = fill(daemon.base / "state" / "sessions")
            with pytest.raises(OttoError):
                victim.send("y" * 200_000)  # What cannot be kept is not accepted.
            result = victim.wait(timeout_s=30)
            assert result.cause is not None and result.cause.kind == "failed" and result.cause.code == "storage"
            assert "space" in result.cause.message.lower()
            assert isinstance(list(victim.events(0))[-1].event, SessionExited)
            seen = running.info().last_seq
            wait_for("the other goes on", lambda: running.info().last_seq > seen)
            filler.unlink()
            again = otto.start(spec=daemon.agent(talk), task="x", cwd=daemon.workdir)
            assert again.wait().ok
            assert running.stop(grace_s=5).remaining_pids == ()
        check_no_defect(daemon)
