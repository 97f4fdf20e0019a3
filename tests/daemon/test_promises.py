"""What a session's user counts on and sees only when it fails: ends, cancellations and who goes first."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.isolation.processes import descendants, identify, is_alive, send_signal
from ottod.protocol.events import IncarnationExited, SessionExited, ToolStarted, TurnCancelled
from ottod.protocol.results import StopResult
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

HELLO = {"text": "hello"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """One for all of them: none does anything to it."""
    with running_daemon() as started:
        yield started


def shell(command: str) -> dict[str, object]:
    return {"tools": [{"name": "shell", "arguments": {"command": command}}]}


def test_a_session_ends_when_its_working_directory_is_gone(daemon: RealDaemon) -> None:
    """It cannot come back, whatever its policy says: it ends with that cause, once, instead of a loop of crashes."""
    gone = daemon.workdir / "gone"
    gone.mkdir()
    with daemon.client() as otto:
        spec = daemon.agent(
            daemon.script("hello", HELLO), restart=Restart(policy="permanent", backoff=Backoff(base_s=0))
        )
        session = otto.start(spec=spec, task="go", cwd=gone, mode="conversation")
        wait_for("it is idle", lambda: session.info().state == "idle")
        worker = identify(session.info().pid)
        shutil.rmtree(gone)
        assert worker is not None and send_signal(worker, signal.SIGKILL)
        result = session.wait()
        assert result.cause.kind == "workdir_gone" and str(gone) in result.cause.message
        events = [e.event for e in session.events(follow=False)]
        (exited,) = [e for e in events if isinstance(e, SessionExited)]
        assert len([e for e in events if isinstance(e, IncarnationExited)]) == 1
        info = session.info()
        assert (info.state, info.incarnation, exited.incarnations) == ("ended", 2, 2)


def test_when_memory_runs_out_sessions_go_first(daemon: RealDaemon) -> None:
    """To the kernel a worker and all that its tools start are worth less than root, the zygote and all else."""

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    with daemon.client() as otto:
        spec = daemon.agent(
            daemon.script("waits", shell("touch up; while [ ! -e never ]; do sleep 0.05; done")), "shell"
        )
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
        wait_for("its tool runs", (daemon.workdir / "up").exists)
        pid = session.info().pid
        tools = descendants(pid)
        assert tools and score(pid) == 500
        assert {score(each.pid) for each in tools if is_alive(each)} == {500}
        assert score(daemon.pid) == score(daemon.zygote.pid) == int(Path("/proc/self/oom_score_adj").read_text())
        session.kill()


def test_a_stop_that_takes_long_holds_up_nobody(daemon: RealDaemon) -> None:
    """While one session does not obey, the daemon answers, starts others, hears their end and stops them."""
    stopped: list[StopResult] = []
    model = daemon.script("hello", HELLO)

    with daemon.client() as otto, daemon.client() as patient:
        deaf = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir, mode="conversation")
        wait_for("it is idle", lambda: deaf.info().state == "idle")
        worker = identify(deaf.info().pid)
        assert worker is not None and send_signal(worker, signal.SIGSTOP)
        stop = threading.Thread(target=lambda: stopped.append(patient.session(deaf.id).stop(grace_s=20)))
        stop.start()
        try:
            wait_for("it is being stopped", lambda: deaf.info().state == "stopping")
            assert otto.status().zygote_pid
            assert otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir).wait().ok
            other = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir, mode="conversation")
            wait_for("the other is idle", lambda: other.info().state == "idle")
            assert other.stop().cause.kind == "cancelled"
            assert deaf.info().state == "stopping" and not stopped
        finally:
            send_signal(worker, signal.SIGCONT)
            stop.join()
    assert [each.cause.kind for each in stopped] == ["cancelled"]


@pytest.mark.parametrize("way", ["stop", "interrupt"])
def test_a_cancellation_at_a_later_step_holds(daemon: RealDaemon, way: str) -> None:
    """Who is told that the turn is over can count on it: after the answer no tool begins, nothing has an effect."""
    place = daemon.workdir / way
    place.mkdir()
    model = daemon.script(
        way,
        shell("echo one >> effects"),
        shell("echo two >> effects"),
        shell("touch third; while [ ! -e never ]; do sleep 0.05; done; echo three >> effects"),
        shell("echo four >> effects"),
        {"text": "done"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=place)
        wait_for("its third step runs", (place / "third").exists)
        if way == "stop":
            assert session.stop().remaining_pids == ()
        else:
            session.interrupt()
        seq = session.info().last_seq
        (place / "never").touch()
        if way == "interrupt":
            wait_for("it is idle", lambda: session.info().state == "idle")
            session.stop()
        events = list(session.events(follow=False))
    begun = [e.seq for e in events if isinstance(e.event, ToolStarted)]
    assert len(begun) == 3 and max(begun) <= seq
    assert len([e for e in events if isinstance(e.event, TurnCancelled)]) == 1
    assert (place / "effects").read_text().splitlines() == ["one", "two"]
