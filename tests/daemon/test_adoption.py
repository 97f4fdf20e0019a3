"""Root dies, leaves or becomes another program; its sessions go on and are taken over by the next one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing

import psutil
import pytest

from ottoctl.sync import SyncSession
from ottod.errors import UnreachableError
from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import ContentDelta, SessionExited, SessionStarted, ToolCompleted
from ottod.protocol.requests import StopDaemon, UpgradeDaemon
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

PR_SET_CHILD_SUBREAPER = 36
STREAM = {"stream": {"events": 100_000, "rate_hz": 100, "text_bytes": 40}}


def stream_of(daemon: RealDaemon, session: str) -> list[int]:
    """The seqs of a session as a new reader sees them, checked for holes and repetitions."""
    with daemon.client() as otto:
        events = list(otto.session(session).events(follow=False))
    seqs = [e.seq for e in events]
    assert seqs == list(range(1, len(seqs) + 1)), "a hole or a repetition"
    return seqs


def texts_of(daemon: RealDaemon, session: str) -> list[int]:
    """The numbers that a scripted stream counts in its deltas."""
    with daemon.client() as otto:
        found = [
            e.event.text for e in otto.session(session).events(follow=False) if isinstance(e.event, ContentDelta)
        ]
    return [int(text.split()[2]) for text in found if len(text.split()) > 2]


def test_sessions_outlive_a_killed_root(daemon: RealDaemon) -> None:
    """kill -9 of root with sessions streaming: the same processes go on, no event is lost or doubled."""
    with daemon.client() as otto:
        sessions = [
            otto.start(spec=daemon.agent(daemon.script(f"s{i}", STREAM)), task="go", cwd=daemon.workdir)
            for i in range(5)
        ]
        wait_for("all stream", lambda: all(s.info().last_seq > 30 for s in sessions))
        before = {s.id: s.info().pid for s in sessions}
    daemon.kill()
    daemon.start()
    with daemon.client() as otto:
        marks = {s: otto.session(s).info().last_seq for s in before}

        def all_moved() -> bool:
            return all(otto.session(s).info().last_seq > marks[s] + 50 for s in before)

        wait_for("all go on", all_moved)
        infos = {s: otto.session(s).info() for s in before}
        assert {s: i.pid for s, i in infos.items()} == before
        assert all(i.state == "running" and i.incarnation == 1 and i.restarts == 0 for i in infos.values())
        for session in before:
            stopped = otto.session(session).stop(grace_s=5)
            assert stopped.cause.kind == "cancelled" and not stopped.remaining_pids
    for session in before:
        assert len(stream_of(daemon, session)) > 70


def test_nothing_is_counted_twice_over_many_roots(daemon: RealDaemon) -> None:
    """Three roots in a row are killed under one session; its stream counts every number exactly once."""
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(daemon.script("s", STREAM)), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 30)
    for _ in range(3):
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            mark = otto.session(session.id).info().last_seq
            wait_for("it goes on", lambda m=mark: otto.session(session.id).info().last_seq > m + 30)  # type: ignore[misc]
    stream_of(daemon, session.id)
    numbers = texts_of(daemon, session.id)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_tool_that_runs_meanwhile_is_not_disturbed(daemon: RealDaemon) -> None:
    """A tool call spans the death of root; its result is heard by the next one, and the session completes."""
    model = daemon.script(
        "tool",
        {
            "tools": [
                {"name": "shell", "arguments": {"command": "while [ ! -e go ]; do sleep 0.05; done; echo through"}}
            ]
        },
        {"text": "It said ${last_tool_result}"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=daemon.workdir)
        wait_for("the tool runs", lambda: session.info().current_tool == "shell")
    daemon.kill()
    (daemon.workdir / "go").touch()
    daemon.start()
    with daemon.client() as otto:
        result = otto.session(session.id).wait()
        events = [e.event for e in otto.session(session.id).events(follow=False)]
    assert result.ok and "through" in result.result
    assert len([e for e in events if isinstance(e, ToolCompleted)]) == 1
    assert len([e for e in events if isinstance(e, SessionExited)]) == 1


def test_a_session_that_ends_while_root_is_away_says_so_to_the_next(daemon: RealDaemon) -> None:
    """The last word is kept until a root hears it."""
    model = daemon.script("short", {"stream": {"events": 60, "rate_hz": 100, "text_bytes": 10}})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 10)
    daemon.kill()
    time.sleep(1.0)  # Longer than the stream takes; on a slow machine the test merely shows less.
    daemon.start()
    with daemon.client() as otto:
        assert otto.session(session.id).wait().ok
    stream_of(daemon, session.id)


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans come to this process meanwhile, as they do to a user's service manager, and not to process 1."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = {child.pid for child in psutil.Process().children()}
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        for child in psutil.Process().children():
            if child.pid not in before:
                os.waitpid(child.pid, 0)


@pytest.mark.parametrize("parent", [contextlib.nullcontext, subreaper])
def test_a_worker_without_a_root_goes_by_itself(parent: Callable[[], AbstractContextManager[None]]) -> None:
    """After the orphan grace a worker ends, tools and all, whoever is its parent then; the next root ends its session
    as daemon_stop."""
    with parent(), running_daemon({"sessions": {"orphan_grace_s": 0.5}}) as daemon:
        slow = daemon.script("slow", {"tools": [{"name": "shell", "arguments": {"command": "sleep 300"}}]})
        with daemon.client() as otto:
            session = otto.start(spec=daemon.agent(slow, "shell"), task="go", cwd=daemon.workdir)
            wait_for("the tool runs", lambda: session.info().current_tool == "shell")
        daemon.kill()
        wait_for("all are gone", lambda: not [p for p in daemon.seen if is_alive(p)])
        daemon.start()
        with daemon.client() as otto:
            info = otto.session(session.id).info()
            assert info.state == "ended" and info.cause is not None and info.cause.kind == "daemon_stop"
        stream_of(daemon, session.id)


@pytest.mark.parametrize("policy", ["permanent", "transient"])
def test_a_session_that_may_restart_is_begun_again_and_nothing_is_booked(policy: str) -> None:
    """Its worker died with root: the next root gives it another incarnation and counts no restart."""
    with running_daemon() as daemon:
        restart = Restart(policy=policy, backoff=Backoff(base_s=0))  # type: ignore[arg-type]
        with daemon.client() as otto:
            spec = daemon.agent(daemon.script("s", STREAM), restart=restart)
            session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
            wait_for("it streams", lambda: session.info().last_seq > 10)
            worker = identify(session.info().pid)
        daemon.kill()
        assert worker is not None
        send_signal(worker, signal.SIGKILL)
        wait_for("it is gone", lambda: not is_alive(worker))
        daemon.start()
        with daemon.client() as otto:
            wait_for("it runs again", lambda: otto.session(session.id).info().state == "running")
            info = otto.session(session.id).info()
            assert info.incarnation == 2 and info.restarts == 0 and info.pid != worker.pid
            otto.session(session.id).stop(grace_s=0)
        stream_of(daemon, session.id)


def test_a_stop_that_was_under_way_is_carried_on(daemon: RealDaemon) -> None:
    """Root dies between a stop and the end: the next one finishes the stop, whatever the restart policy says."""
    stubborn = "import signal,time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
    model = daemon.script(
        "deaf", {"tools": [{"name": "shell", "arguments": {"command": f'python3 -c "{stubborn}"'}}]}
    )
    with daemon.client() as otto:
        spec = daemon.agent(model, "shell", restart=Restart(policy="permanent"))
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
        wait_for("the tool runs", lambda: session.info().current_tool == "shell")
        pid = session.info().pid
        os.kill(pid, signal.SIGSTOP)  # A worker that hears nothing: the stop must take its whole ladder.
        stopping = begin_stop(daemon, session)
        wait_for("the stop is on record", lambda: state_on_record(daemon, session.id) == "stopping")
    daemon.kill()
    stopping.kill()
    stopping.wait()
    daemon.start()
    with daemon.client() as otto:
        result = otto.session(session.id).wait()
        assert result.cause.kind == "cancelled"
        assert otto.session(session.id).info().remaining_pids == ()


def state_on_record(daemon: RealDaemon, session: str) -> str:
    """What another root would find."""
    with closing(sqlite3.connect(f"file:{daemon.base}/state/otto.db?mode=ro", uri=True)) as database:
        return str(database.execute("SELECT state FROM sessions WHERE session = ?", (session,)).fetchone()[0])


def begin_stop(daemon: RealDaemon, session: SyncSession) -> subprocess.Popen[bytes]:
    """Asks for a stop from another process and does not wait for the answer."""
    return subprocess.Popen(
        [sys.executable, "-m", "ottoctl", "stop", session.id, "--grace", "3"],
        env=daemon.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_root_can_leave_its_sessions(daemon: RealDaemon) -> None:
    """`keep_sessions`: root exits with status 0, the workers stay, the next root has them all."""
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(daemon.script("s", STREAM)), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 10)
        pid = session.info().pid
        daemon.processes()
        otto.connection.call(StopDaemon(keep_sessions=True))
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0
    daemon.start()
    with daemon.client() as otto:
        wait_for("it goes on", lambda: otto.session(session.id).info().last_seq > 50)
        assert otto.session(session.id).info().pid == pid
    stream_of(daemon, session.id)


def test_an_upgrade_replaces_root_under_running_sessions(daemon: RealDaemon) -> None:
    """The same pid answers as another instance; workers, their seqs and a client's view go on."""
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(daemon.script("s", STREAM)), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 10)
        before, worker = otto.status(), session.info().pid
        daemon.processes()
        otto.connection.call(UpgradeDaemon())

    def upgraded() -> bool:
        try:
            with daemon.client() as otto:
                return otto.status().instance != before.instance
        except UnreachableError:
            return False

    wait_for("another instance answers", upgraded)
    with daemon.client() as otto:
        after = otto.status()
        assert after.pid == before.pid and after.zygote_pid != before.zygote_pid
        mark = otto.session(session.id).info().last_seq
        wait_for("it goes on", lambda: otto.session(session.id).info().last_seq > mark + 30)
        assert otto.session(session.id).info().pid == worker
        # It is a child still: its end is known by signal.
        os.kill(worker, signal.SIGKILL)
        result = otto.session(session.id).wait()
        assert result.cause.kind == "crashed" and result.cause.signal == "SIGKILL"
    stream_of(daemon, session.id)
    assert len([1 for _ in started(daemon, session.id)]) == 1


@pytest.mark.parametrize("how", ["leaves", "upgrades", "is killed"])
def test_readers_outlive_a_root(daemon: RealDaemon, how: str) -> None:
    """Whoever follows events or waits for an end goes on with the next root, and misses nothing."""
    with daemon.client() as otto, ThreadPoolExecutor(2) as pool:
        session = otto.start(spec=daemon.agent(daemon.script("s", STREAM)), task="go", cwd=daemon.workdir)
        with daemon.client() as reader, daemon.client() as waiter:
            following = pool.submit(lambda: list(reader.session(session.id).events()))
            waiting = pool.submit(waiter.session(session.id).wait)
            wait_for("it streams", lambda: session.info().last_seq > 30)
            before = otto.status().instance
            daemon.processes()
            if how == "upgrades":
                otto.connection.call(UpgradeDaemon())
            elif how == "leaves":
                otto.connection.call(StopDaemon(keep_sessions=True))
                assert daemon.process is not None and daemon.process.wait(30) == 0
                daemon.start()
            else:
                daemon.kill()
                daemon.start()
            # One that has just come or is just going is waited for by those who ask it something.
            wait_for("another instance answers", lambda: otto.status().instance != before)
            mark = session.info().last_seq
            wait_for("it goes on", lambda: session.info().last_seq > mark + 30)
            session.stop(grace_s=5)
            assert waiting.result(timeout=30).cause.kind == "cancelled"
            events = following.result(timeout=30)
    assert isinstance(events[-1].event, SessionExited)
    assert [e.seq for e in events] == list(range(1, len(events) + 1)), "a hole or a repetition"


def started(daemon: RealDaemon, session: str) -> list[SessionStarted]:
    with daemon.client() as otto:
        return [e.event for e in otto.session(session).events(follow=False) if isinstance(e.event, SessionStarted)]
