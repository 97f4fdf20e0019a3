"""One session through the whole of Otto, and what happens when a part of it dies."""

from __future__ import annotations

import os
import signal

from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import (
    ContentDelta,
    SessionExited,
    ToolCompleted,
    ToolFailed,
    TurnCompleted,
    tag_of,
)
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

LONG = {"stream": {"events": 100_000, "rate_hz": 50, "text_bytes": 40}}


def test_a_session_runs_to_its_end(daemon: RealDaemon) -> None:
    """Text, a real tool, its result, the answer; seq without a hole; one exit with the result."""
    (daemon.workdir / "notes.txt").write_text("the number is 42\n")
    model = daemon.script(
        "read",
        {"text": "Let me look.", "tools": [{"name": "fs_read", "arguments": {"path": "notes.txt"}}]},
        {"text": "It says: ${last_tool_result}"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "fs_read"), task="What number?", cwd=daemon.workdir)
        events = list(session.events())
        result = session.wait()
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.offset for e in events] == sorted(e.offset for e in events)
    tags = [tag_of(e.event) for e in events]
    assert tags[0] == "session.created" and tags[-1] == "session.exited"
    for wanted in ("session.started", "turn.started", "content.delta", "tool.started", "usage.updated"):
        assert wanted in tags
    (tool,) = [e.event for e in events if isinstance(e.event, ToolCompleted)]
    assert "42" in tool.output
    assert any(isinstance(e.event, TurnCompleted) and e.event.steps == 2 for e in events)
    said = "".join(e.event.text for e in events if isinstance(e.event, ContentDelta) and e.event.stream == "text")
    assert "the number is 42" in said
    assert result.ok and "42" in result.result and result.exit_status == 0


def test_tool_calls_run_side_by_side_and_cannot_fail_the_turn(daemon: RealDaemon) -> None:
    """A good, a failing, an unknown and a malformed call in one response: four results, one completed turn."""
    model = daemon.script(
        "four",
        {
            "tools": [
                {"name": "shell", "arguments": {"command": "echo fine"}},
                {"name": "fs_read", "arguments": {"path": "absent"}},
                {"name": "teleport", "arguments": {}},
                {"name": "shell", "arguments": "{not json"},
            ]
        },
        {"text": "done"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell", "fs_read"), task="go", cwd=daemon.workdir)
        events = [e.event for e in session.events()]
    completed = [e for e in events if isinstance(e, ToolCompleted)]
    failed = [e for e in events if isinstance(e, ToolFailed)]
    assert len(completed) == 1 and "fine" in completed[0].output
    assert len(failed) == 3
    exited = events[-1]
    assert isinstance(exited, SessionExited) and exited.cause.kind == "completed"


def test_kill_of_a_worker_stays_where_it_happened(daemon: RealDaemon) -> None:
    """Exactly one exit with cause crashed(SIGKILL); the sibling goes on, no process of it is left, root is fine."""
    slow = daemon.script("slow", {"tools": [{"name": "shell", "arguments": {"command": "sleep 300"}}]}, {"text": "x"})
    stream = daemon.script("stream", LONG)
    with daemon.client() as otto:
        victim = otto.start(spec=daemon.agent(slow, "shell"), task="go", cwd=daemon.workdir)
        sibling = otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir)
        wait_for("the tool runs", lambda: victim.info().current_tool == "shell")
        wait_for("the sibling streams", lambda: sibling.info().state == "running")
        worker = identify(victim.info().pid)
        assert worker is not None
        before = set(daemon.processes())
        os.kill(worker.pid, signal.SIGKILL)
        result = victim.wait()
        assert str(result.cause) == "crashed(SIGKILL)" and result.exit_status == 8
        exits = [e for e in victim.events() if isinstance(e.event, SessionExited)]
        assert len(exits) == 1 and exits[0].event.remaining_pids == ()
        with_marker = [p for p in before if is_alive(p) and _has_session(p.pid, victim.id)]
        assert with_marker == [] and not is_alive(worker)
        seen = sibling.info().last_seq
        wait_for("the sibling goes on", lambda: sibling.info().last_seq > seen)
        assert otto.status().counters["zygote_deaths"] == 0
        assert sibling.stop(grace_s=5).remaining_pids == ()


def _has_session(pid: int, session: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return f"OTTO_SESSION={session}".encode() in environ.read()
    except OSError:
        return False


def test_kill_of_the_zygote_is_not_noticed(daemon: RealDaemon) -> None:
    """Running sessions go on, and the next one starts from a new generation."""
    stream = daemon.script("stream", LONG)
    with daemon.client() as otto:
        running = otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: running.info().state == "running")
        os.kill(daemon.zygote.pid, signal.SIGKILL)
        quick = daemon.script("quick", {"text": "hello"})
        assert otto.run(spec=daemon.agent(quick), task="go", cwd=daemon.workdir).ok
        status = otto.status()
        assert status.zygote_generation == 2 and status.counters["zygote_deaths"] == 1
        seen = running.info().last_seq
        wait_for("the first goes on", lambda: running.info().last_seq > seen)
        running.stop(grace_s=5)


def test_a_frozen_zygote_is_replaced() -> None:
    """One that is stopped answers nothing and does not die: it is killed, and whoever waits gets the next one's."""
    with running_daemon({"pool": {"warm": 0}}) as daemon, daemon.client(timeout_s=90) as otto:
        quick = daemon.script("quick", {"text": "hello"})
        assert otto.run(spec=daemon.agent(quick), task="go", cwd=daemon.workdir).ok
        os.kill(daemon.zygote.pid, signal.SIGSTOP)
        session = otto.start(spec=daemon.agent(quick), task="go", cwd=daemon.workdir)
        assert session.journal() == [], "nobody has written any yet"
        result = session.wait()
        assert result.ok, (result.info.cause, daemon.log)
        status = otto.status()
        assert status.zygote_generation == 2 and status.counters["zygote_deaths"] == 1


def test_stop_is_true(daemon: RealDaemon) -> None:
    """A stop ends the tool that runs, answers with proof, and nothing is said after the exit."""
    model = daemon.script(
        "stubborn",
        {"tools": [{"name": "shell", "arguments": {"command": "trap '' TERM; setsid sleep 301 & sleep 302"}}]},
        {"text": "never"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=daemon.workdir)
        wait_for("both sleeps run", lambda: len(_sleepers(daemon)) == 2)
        sleepers = _sleepers(daemon)
        proof = session.stop(grace_s=10)
        assert proof.cause.kind == "cancelled" and proof.remaining_pids == ()
        assert not [p for p in sleepers if is_alive(p)]
        tags = [tag_of(e.event) for e in session.events()]
        assert tags.count("session.exited") == 1 and tags[-1] == "session.exited"
        assert "turn.cancelled" in tags
        again = session.stop()
        assert again.already_ended and again.cause.kind == "cancelled"


def _sleepers(daemon: RealDaemon) -> list:  # type: ignore[type-arg]
    found = []
    for process in daemon.processes():
        try:
            with open(f"/proc/{process.pid}/cmdline", "rb") as cmdline:
                if cmdline.read() in (b"sleep\x00301\x00", b"sleep\x00302\x00"):
                    found.append(process)
        except OSError:
            pass
    return found


def test_a_conversation_goes_on(daemon: RealDaemon) -> None:
    """A session in conversation mode waits between turns, hears what is sent, and remembers."""
    model = daemon.script("talk", {"text": "one"}, {"text": "two: ${input}"})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model), task="first", cwd=daemon.workdir, mode="conversation")
        session.wait(idle=True)
        session.send("second")
        wait_for("the second turn", lambda: session.info().turn == 2 and session.info().state == "idle")
        proof = session.stop(grace_s=5)
        assert proof.cause.kind == "cancelled"
        said = "".join(e.event.text for e in session.events() if isinstance(e.event, ContentDelta))
        assert said == "onetwo: second"


def test_shutdown_ends_sessions_by_name(daemon: RealDaemon) -> None:
    """SIGTERM to root: sessions end with cause daemon_stop, which the next daemon still knows."""
    stream = daemon.script("stream", LONG)
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().state == "running")
    assert daemon.stop() == 0
    daemon.start()
    with daemon.client() as otto:
        info = otto.session(session.id).info()
        assert info.state == "ended" and info.cause is not None and info.cause.kind == "daemon_stop"
        events = list(otto.session(session.id).events(follow=False))
        assert isinstance(events[-1].event, SessionExited)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))


def test_a_session_that_dies_while_root_is_dead_is_put_right_at_the_next_start(daemon: RealDaemon) -> None:
    """Worker and root die together: the next root ends the session in order and reuses no seq."""
    stream = daemon.script("stream", LONG)
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(stream), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 20)
        worker = identify(session.info().pid)
    daemon.kill()
    assert worker is not None and send_signal(worker, signal.SIGKILL)
    wait_for("the worker is gone", lambda: not is_alive(worker))
    daemon.start()
    with daemon.client() as otto:
        events = list(otto.session(session.id).events(follow=False))
        assert [e.seq for e in events] == list(range(1, len(events) + 1)) and len(events) > 20
        last = events[-1].event
        assert isinstance(last, SessionExited) and last.cause.kind == "daemon_stop" and last.remaining_pids == ()
    wait_for("the old workers are gone", lambda: not [p for p in daemon.seen if is_alive(p) and p.pid != daemon.pid])
