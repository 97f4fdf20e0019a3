"""Workers of a real daemon die, and their sessions go on: nothing paid for is paid again, nothing said is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ottoctl.sync import SyncSession
from ottod.core.resume import UNKNOWN, restore
from ottod.core.turn import is_valid_conversation
from ottod.isolation.processes import ProcessId, identify, is_alive, send_signal
from ottod.protocol import journal as j
from ottod.protocol.events import (
    ContentDelta,
    Event,
    IncarnationExited,
    ItemStarted,
    SessionExited,
    SessionStarted,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    TurnCompleted,
    TurnStarted,
    Unknown,
    tag_of,
)
from ottod.protocol.specs import AgentSpec, Backoff, Group, Restart
from ottod.storage.journal import read_journal
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

SOON = Backoff(base_s=0.0, max_s=0.0, jitter=0.0)


def lasting(daemon: RealDaemon, model: str, *tools: str, policy: str = "transient") -> AgentSpec:
    """An agent that comes back after a crash, as often as it takes."""
    return daemon.agent(
        model,
        *tools,
        restart=Restart(policy=policy, backoff=SOON),  # type: ignore[arg-type]
        group=Group(max_restarts=100, period_s=60.0),
    )


def kill_worker(session: SyncSession) -> ProcessId:
    """SIGKILL of the present worker."""
    info = session.info()
    worker = identify(info.pid)
    assert worker is not None and info.pid > 0
    os.kill(worker.pid, signal.SIGKILL)
    wait_for("the worker is gone", lambda: not is_alive(worker))
    return worker


def events_of(session: SyncSession) -> list[Event | Unknown]:
    """All events of a session that has ended, with a seq without a hole."""
    received = list(session.events(0))
    assert [e.seq for e in received] == list(range(1, len(received) + 1))
    assert sum(isinstance(e.event, SessionExited) for e in received) == 1
    return [e.event for e in received]


def journal_of(session: SyncSession) -> list[j.JournalEntry]:
    return read_journal(Path(session.info().journal))


def test_a_killed_answer_is_made_again(daemon: RealDaemon) -> None:
    """Killed in the middle of a stream: one turn, one result, and the repeated answer is announced as such."""
    model = daemon.script("slow", {"text": "0123456789" * 30, "chunk": 3, "delay_ms": 30})
    with daemon.client() as otto:
        session = otto.start(spec=lasting(daemon, model), task="go", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 15)
        kill_worker(session)
        result = session.wait()
        assert result.ok and result.result == "0123456789" * 30
        events = events_of(session)
        info = session.info()
    tags = [tag_of(e) for e in events]
    assert info.incarnation == 2 and info.restarts == 1
    assert tags.count("turn.started") == 1 and tags.count("turn.completed") == 1 and tags.count("item.started") == 1
    (exited,) = [e for e in events if isinstance(e, IncarnationExited)]
    assert str(exited.cause) == "crashed(SIGKILL)"
    again = next(i for i, e in enumerate(events) if isinstance(e, ItemStarted))
    assert "".join(e.text for e in events[again:] if isinstance(e, ContentDelta)) == "0123456789" * 30
    assert result.usage.calls == 1


def test_a_killed_tool_is_not_run_twice(daemon: RealDaemon) -> None:
    """Killed while a command runs: it is not repeated, the model hears that nobody knows, and goes on."""
    model = daemon.script(
        "once",
        {"tools": [{"name": "shell", "arguments": {"command": "echo ran >> ran; sleep 300"}}]},
        {"text": "I heard: ${last_tool_result}"},
    )
    with daemon.client() as otto:
        session = otto.start(spec=lasting(daemon, model, "shell"), task="go", cwd=daemon.workdir)
        wait_for("it ran", lambda: (daemon.workdir / "ran").exists())
        kill_worker(session)
        result = session.wait()
        events = events_of(session)
    assert result.ok and result.result == f"I heard: {UNKNOWN}"
    assert (daemon.workdir / "ran").read_text() == "ran\n"
    (failed,) = [e for e in events if isinstance(e, ToolFailed)]
    assert failed.failure.code == "unknown"
    assert not [e for e in events if isinstance(e, ToolCompleted)]


def test_a_harmless_tool_begins_again(daemon: RealDaemon) -> None:
    """A tool that may be repeated is repeated, and its result is the model's."""
    model = daemon.script(
        "test",
        {"tools": [{"name": "grep", "arguments": {"pattern": "x"}}, {"name": "fs_list", "arguments": {}}]},
        {"text": "done", "delay_ms": 1500, "chunk": 2},
    )
    for n in range(200):
        (daemon.workdir / f"f{n}").write_text("x\n" * 2000)
    with daemon.client() as otto:
        session = otto.start(spec=lasting(daemon, model, "grep", "fs_list"), task="go", cwd=daemon.workdir)
        wait_for("a tool has begun", lambda: session.info().turn == 1 and session.info().last_seq > 6)
        kill_worker(session)
        assert session.wait().ok
        entries = journal_of(session)
    resolved = [e.call for e in entries if isinstance(e, j.ToolResolved)]
    assert sorted(resolved) == ["call_1_1", "call_1_2"]
    assert not [e for e in entries if isinstance(e, j.ToolResolved) and e.result.text == UNKNOWN]


def test_a_conversation_survives_while_it_rests_and_while_it_works(daemon: RealDaemon) -> None:
    """Killed idle, then killed with a message waiting: the state is told truly and no message is lost."""
    model = daemon.script(
        "talk",
        {"text": "one"},
        {"tools": [{"name": "shell", "arguments": {"command": "sleep 300"}}]},
        {"text": "two"},
        {"text": "three: ${input}"},
    )
    spec = lasting(daemon, model, "shell")
    with daemon.client() as otto:
        session = otto.start(spec=spec, task="first", cwd=daemon.workdir, mode="conversation")
        session.wait(idle=True)
        kill_worker(session)
        wait_for("it is back", lambda: session.info().incarnation == 2 and session.info().state == "idle")
        session.send("second")
        wait_for("the tool runs", lambda: session.info().current_tool == "shell")
        session.send("third")
        kill_worker(session)
        wait_for("three turns", lambda: session.info().turn == 3 and session.info().state == "idle")
        assert session.stop(grace_s=10).remaining_pids == ()
        events = events_of(session)
        said = [e.text for e in journal_of(session) if isinstance(e, j.UserSaid)]
    assert said == ["first", "second", "third"]
    assert [e.turn for e in events if isinstance(e, TurnStarted)] == [1, 2, 3]
    assert sum(isinstance(e, TurnCompleted) for e in events) == 3
    assert "three: third" in "".join(e.text for e in events if isinstance(e, ContentDelta))


@pytest.mark.parametrize("delay_events", [1, 3, 6, 9, 13, 18])
def test_killed_wherever_it_is(daemon: RealDaemon, delay_events: int) -> None:
    """Killed a few events after each start, several times: every response is asked for once and used."""
    (daemon.workdir / "f").write_text("x\n")
    steps = [
        {
            "text": f"step {n}",
            "tools": [
                {"name": "fs_read", "arguments": {"path": "f"}},
                {"name": "shell", "arguments": {"command": f"echo {n} >> ran"}},
            ],
        }
        for n in range(4)
    ]
    model = daemon.script("steps", *steps, {"text": "the end"}, chunk=2, delay_ms=3)
    with daemon.client() as otto:
        session = otto.start(spec=lasting(daemon, model, "fs_read", "shell"), task="go", cwd=daemon.workdir)
        for life in range(1, 5):

            def is_there(life: int = life) -> bool:
                info = session.info()
                return info.state == "ended" or (
                    info.incarnation == life and info.pid > 0 and info.state == "running"
                )

            wait_for(f"life {life}", is_there)
            seen = session.info().last_seq + delay_events
            wait_for(
                "some events", lambda seen=seen: session.info().last_seq >= seen or session.info().state == "ended"
            )
            info = session.info()
            worker = identify(info.pid) if info.state != "ended" else None
            if worker is None or not send_signal(worker, signal.SIGKILL):
                break
            wait_for("the worker is gone", lambda worker=worker: not is_alive(worker))
        result = session.wait()
        events = events_of(session)
        entries = journal_of(session)
    assert result.ok and result.result == "the end"
    responded = [(e.turn, e.step) for e in entries if isinstance(e, j.ModelResponded)]
    assert responded == [(1, n) for n in range(1, 6)]
    resolved = [(e.step, e.call) for e in entries if isinstance(e, j.ToolResolved)]
    assert len(resolved) == len(set(resolved)) == 8
    unknown = [e.step for e in entries if isinstance(e, j.ToolResolved) and e.result.text == UNKNOWN]
    ran = (daemon.workdir / "ran").read_text().split() if (daemon.workdir / "ran").exists() else []
    assert len(ran) == len(set(ran)), "a command was run twice"
    assert set(range(4)) - {int(n) for n in ran} <= {step - 1 for step in unknown}
    assert is_valid_conversation(restore(entries).messages)
    started = [e.incarnation for e in events if isinstance(e, SessionStarted)]
    assert started == sorted(set(started))
    assert result.usage.calls == 5


def test_a_permanent_session_begins_its_task_anew(daemon: RealDaemon) -> None:
    """After `completed` it is started again, in the same conversation, until it is stopped."""
    model = daemon.script("again", {"text": "turn ${step}", "delay_ms": 100, "chunk": 1}, loop=True)
    with daemon.client() as otto:
        spec = lasting(daemon, model, policy="permanent")
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
        wait_for("the third turn", lambda: session.info().turn >= 3)
        assert session.stop(grace_s=10).cause.kind == "cancelled"
        entries = journal_of(session)
    assert [e.text for e in entries if isinstance(e, j.UserSaid)][:3] == ["go", "go", "go"]
    assert is_valid_conversation(restore(entries).messages)


def helper_agent(daemon: RealDaemon, name: str, *, policy: str = "temporary") -> None:
    """A named agent that works until there is a file `go`, and answers 42."""
    agents = daemon.workdir / ".otto" / "agents"
    agents.mkdir(parents=True, exist_ok=True)
    command = f"echo {name} >> ran; until [ -e go ]; do sleep 0.1; done"
    model = daemon.script(name, {"tools": [{"name": "shell", "arguments": {"command": command}}]}, {"text": "42"})
    (agents / f"{name}.yml").write_text(
        f"name: {name}\ndescription: helps\nmodel: {model}\ntools: [shell]\n"
        f"restart: {{policy: {policy}, backoff: {{base_s: 0, max_s: 0}}}}\n"
    )


def spawn(*names: str) -> dict[str, object]:
    """The calls that start these agents, side by side."""
    return {
        "tools": [{"name": "spawn_agent", "arguments": {"agent": name, "task": "the question"}} for name in names]
    }


def test_a_child_outlives_the_crash_of_its_parent(daemon: RealDaemon) -> None:
    """The parent is killed while it waits: the next incarnation waits for the same child, and hears its answer."""
    helper_agent(daemon, "helper")
    model = daemon.script("parent", spawn("helper"), {"text": "it says ${last_tool_result}"})
    with daemon.client() as otto:
        session = otto.start(spec=lasting(daemon, model, "spawn_agent"), task="go", cwd=daemon.workdir)
        wait_for("it waits", lambda: session.info().state == "waiting_children")
        kill_worker(session)
        wait_for(
            "it waits again", lambda: session.info().incarnation == 2 and session.info().state == "waiting_children"
        )
        (daemon.workdir / "go").touch()
        result = session.wait()
        events = events_of(session)
        children = [info for info in otto.list(all=True) if info.parent == session.id]
    assert result.ok and "42" in result.result
    assert len(children) == 1 and children[0].cause is not None and children[0].cause.kind == "completed"
    tags = [tag_of(e) for e in events]
    assert tags.count("child.started") == 1 and tags.count("child.exited") == 1
    assert sum(isinstance(e, ToolStarted) for e in events) == 2


def test_a_group_that_restarts_together_goes_on_together(daemon: RealDaemon) -> None:
    """one_for_all: the sibling of a crashed child is suspended, not cancelled, and both end what they had begun."""
    for name in ("left", "right"):
        helper_agent(daemon, name, policy="transient")
    model = daemon.script("parent", spawn("left", "right"), {"text": "they say ${last_tool_result}"})
    group = Group(strategy="one_for_all", max_restarts=10, period_s=60.0)
    with daemon.client() as otto:
        spec = daemon.agent(model, "spawn_agent", group=group)
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
        ran = daemon.workdir / "ran"
        wait_for("both work", lambda: ran.exists() and len(ran.read_text().split()) == 2)
        children = {i.agent: otto.session(i.session) for i in otto.list() if i.parent == session.id}
        kill_worker(children["left"])
        wait_for("both are back", lambda: all(c.info().incarnation == 2 for c in children.values()))
        result = session.wait()
        entries = {name: journal_of(child) for name, child in children.items()}
    answers = [line for line in result.result.splitlines() if line == "42"]
    assert result.ok and len(answers) == 2, result.result
    assert sorted(ran.read_text().split()) == ["left", "right"], "a command was run twice"
    assert [e.name for e in entries["right"] if isinstance(e, j.Checkpoint)] == ["suspended"]
    assert not [e for e in entries["left"] if isinstance(e, j.Checkpoint)]


def test_a_tree_stops_from_below(daemon: RealDaemon) -> None:
    """A stop of the parent cancels its turn, ends the newest child first, and leaves nothing."""
    for name in ("left", "right"):
        helper_agent(daemon, name)
    model = daemon.script("parent", spawn("left", "right"), {"text": "never"})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model, "spawn_agent"), task="go", cwd=daemon.workdir)
        ran = daemon.workdir / "ran"
        wait_for("both work", lambda: ran.exists() and len(ran.read_text().split()) == 2)
        wait_for("it waits", lambda: session.info().state == "waiting_children")
        children = [i.session for i in otto.list() if i.parent == session.id]
        proof = session.stop(grace_s=20)
        assert proof.cause.kind == "cancelled" and proof.remaining_pids == ()
        assert set(proof.stopped) == {*children, session.id} and proof.stopped[-1] == session.id
        tags = [tag_of(e) for e in events_of(session)]
    assert tags.count("child.exited") == 2 and tags.count("turn.cancelled") == 1


def test_an_orphan_leaves_off_and_the_next_daemon_goes_on() -> None:
    """Root is killed and stays away: the worker notes a checkpoint and goes; a later root lets the session go on."""
    with running_daemon({"sessions": {"orphan_grace_s": 0.5}}) as daemon:
        model = daemon.script(
            "orphan",
            {"tools": [{"name": "shell", "arguments": {"command": "echo ran >> ran; sleep 300"}}]},
            {"text": "went on"},
        )
        with daemon.client() as otto:
            session = otto.start(spec=lasting(daemon, model, "shell"), task="go", cwd=daemon.workdir)
            wait_for("it ran", lambda: (daemon.workdir / "ran").exists())
            worker = identify(session.info().pid)
            journal = Path(session.info().journal)
        assert worker is not None
        daemon.kill()
        wait_for("the worker is gone", lambda: not is_alive(worker))
        assert isinstance(read_journal(journal)[-1], j.Checkpoint)
        daemon.start()
        with daemon.client() as otto:
            result = otto.session(session.id).wait()
            assert result.ok and result.result == "went on"
            events_of(otto.session(session.id))
        assert (daemon.workdir / "ran").read_text() == "ran\n"
