"""MCP servers, Python tools and background processes in a real daemon: how they are given, and how they die."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottoctl.sync import SyncSession
from ottod.errors import OttoError
from ottod.isolation.processes import ProcessId, is_alive, survivors
from ottod.protocol.events import LogWarning, ProviderNotice, ToolCompleted, ToolFailed
from ottod.protocol.specs import AgentSpec, Backoff, McpServer, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

pytest.importorskip("mcp", reason="needs the extra otto-daemon[mcp]")

ROGUE = Path(__file__).parents[1] / "fakes/mcp_rogue.py"
TOOL = """
from ottod.tools.sdk import tool


@tool
def twice(text: str) -> str:
    '''Say it twice.'''
    return text * 2
"""
PRIORITY = {"sessions": {"worker_priority": "normal"}}
AGAIN = Restart(policy="permanent", backoff=Backoff(base_s=0.05, max_s=0.1))


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """A daemon whose workers, and the servers below them, get their turn also beside other tests."""
    with running_daemon(PRIORITY, env={"TOKEN": "t0k"}) as running:
        assert running.zygote  # Its start is not what these tests wait for.
        yield running


def rogue(daemon: RealDaemon, name: str = "rogue", *mode: str, **more: Any) -> McpServer:
    """A server in the working directory."""
    shutil.copy(ROGUE, daemon.workdir / "rogue.py")
    return McpServer(name=name, command=(sys.executable, "-I", "rogue.py", *mode), **more)


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"name": tool, "arguments": arguments}


def results(session: SyncSession) -> list[str]:
    """What the session's calls gave so far."""
    found = [e.event for e in session.events(follow=False)]
    said = [e.output or getattr(getattr(e, "failure", None), "message", "") for e in found if _is_result(e)]
    return [_unmarked(text) for text in said]


def _unmarked(text: str) -> str:
    """What stands between the marks of untrusted content."""
    return text.split("\n", 1)[1].rsplit("\n", 1)[0] if text.startswith("[untrusted content, mark ") else text


def _is_result(event: object) -> bool:
    return isinstance(event, ToolCompleted | ToolFailed)


def _sent(session: SyncSession, text: str) -> bool:
    """Whether a worker took the message; root may not have adopted it yet."""
    try:
        session.send(text)
    except OttoError:
        return False
    return True


def busy(daemon: RealDaemon, *last: dict[str, Any], **fields: Any) -> AgentSpec:
    """An agent with a server and a process that both run while it waits for messages."""
    model = daemon.script(
        "busy",
        {"tools": [call("process_start", name="web", command="setsid sleep 600 & echo up; wait")]},
        {"tools": [call("rogue__child")]},
        {"text": "ready"},
        *last,
    )
    tools = ("process_start", "process_list", "process_stop", "shell", "rogue__child", "rogue__echo")
    return daemon.agent(model, *tools, mcp_servers=(rogue(daemon),), **fields)


def start_busy(daemon: RealDaemon, spec: AgentSpec) -> tuple[str, list[ProcessId]]:
    """The session once all of it runs, and its processes but for the worker."""
    with daemon.client() as otto:
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir, mode="conversation")
        wait_for("both calls are done", lambda: len(results(session)) == 2)
        worker = session.info().pid

    def below() -> list[ProcessId] | None:
        """Two sandboxes, two keepers, a server, its child, a process and its child, once the last is there."""
        found = [each for each in survivors(session.id) if each.pid != worker]
        return found if len(found) >= 8 else None

    return session.id, wait_for("all of it runs", below)


def test_tools_of_every_kind_are_called(daemon: RealDaemon) -> None:
    """A server's, the user's and the built-in ones answer side by side; one server that is dead is a warning."""
    tools = daemon.base / "config/tools"
    tools.mkdir(parents=True)
    (tools / "mine.py").write_text(TOOL)
    model = daemon.script(
        "all",
        {
            "tools": [
                call("rogue__echo", text="one"),
                call("user__twice", text="two"),
                call("shell", command="echo 3"),
            ]
        },
        {"tools": [call("rogue__env", text=name) for name in ("TOKEN", "WORD", "NOTHING")]},
        {"tools": [call("shell", command="echo none$TOKEN$WORD")]},
        {"text": "done"},
    )
    servers = (rogue(daemon, env=("TOKEN", "WORD", "NOTHING")), rogue(daemon, "dead", "die"))
    spec = daemon.agent(model, "shell", "rogue__e*", "user__twice", mcp_servers=servers)
    with daemon.client() as otto:
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir, env={"WORD": "hi", "PATH": "/usr/bin:/bin"})
        assert session.wait(timeout_s=90).ok
        assert sorted(results(session)) == ["(unset)", "3", "hi", "none", "one", "t0k", "twotwo"]
        events = [e.event for e in session.events(follow=False)]
        (warning,) = [e.message for e in events if isinstance(e, LogWarning) and "unavailable" in e.message]
        assert "dead" in warning and "no configuration found" in warning
        assert ("mcp:rogue", "serving") in [(e.provider, e.kind) for e in events if isinstance(e, ProviderNotice)]
    wait_for("nothing is left", lambda: not survivors(session.id))


def test_a_stop_leaves_nothing_of_them(daemon: RealDaemon) -> None:
    """Stopped: the proof covers the server, the process and what they started in sessions of their own."""
    session, found = start_busy(daemon, busy(daemon))
    with daemon.client() as otto:
        stopped = otto.session(session).stop(grace_s=20)
    assert stopped.cause.kind == "cancelled" and not stopped.remaining_pids
    assert not [each for each in found if is_alive(each)] and not survivors(session)


def test_a_killed_worker_leaves_nothing_of_them(daemon: RealDaemon) -> None:
    """kill -9 of the worker: the next incarnation has a server of its own, lists the process as lost."""
    spec = busy(
        daemon,
        {"tools": [call("process_list"), call("rogue__echo", text="again")]},
        {"text": "went on"},
        restart=AGAIN,
    )
    session, found = start_busy(daemon, spec)
    with daemon.client() as otto:
        before = otto.session(session).info()
        os.kill(before.pid, signal.SIGKILL)
        wait_for("another incarnation", lambda: otto.session(session).info().incarnation == 2)
        wait_for("the old processes are gone", lambda: not [each for each in found if is_alive(each)])
        otto.session(session).send("go on")
        wait_for("it went on", lambda: len(results(otto.session(session))) == 4)
        said = results(otto.session(session))[2:]
        assert any(text.startswith("web is lost") for text in said) and "again" in said
        assert not otto.session(session).stop(grace_s=20).remaining_pids
    assert not survivors(session)


def test_they_outlive_root_and_not_their_session(daemon: RealDaemon) -> None:
    """kill -9 of root and another root: the same processes go on, are used, and end with the session."""
    spec = busy(daemon, {"tools": [call("process_list"), call("rogue__echo", text="still here")]}, {"text": "fine"})
    session, found = start_busy(daemon, spec)
    daemon.kill()
    daemon.start()
    with daemon.client() as otto:
        assert all(is_alive(each) for each in found)
        wait_for("the worker is back", lambda: _sent(otto.session(session), "go on"))
        wait_for("it went on", lambda: len(results(otto.session(session))) == 4)
        said = results(otto.session(session))[2:]
        assert any(text.startswith("web is running") for text in said) and "still here" in said
        assert not otto.session(session).stop(grace_s=20).remaining_pids
    assert not [each for each in found if is_alive(each)] and not survivors(session)


def test_a_stop_does_not_wait_for_a_server_that_starts(daemon: RealDaemon) -> None:
    """A session whose server gives no answer is stopped at once, with nothing left."""
    spec = daemon.agent(daemon.script("s", {"text": "hi"}), mcp_servers=(rogue(daemon, "mute", "mute"),))
    with daemon.client() as otto:
        session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
        wait_for("the server runs", lambda: len(survivors(session.id)) > 2)
        stopped = session.stop(grace_s=15)
    assert stopped.cause.kind == "cancelled" and not stopped.remaining_pids


def test_a_projects_tools_need_the_daemons_leave() -> None:
    """A tool in the project's directory is unknown, unless the daemon's file allows it; then it runs in a sandbox."""
    for allowed in (False, True):
        with running_daemon({**PRIORITY, "project_may": {"tools": allowed}}) as daemon:
            tools = daemon.workdir / ".otto/tools"
            tools.mkdir(parents=True)
            (tools / "theirs.py").write_text(TOOL)
            model = daemon.script("p", {"tools": [call("project__twice", text="ab")]}, {"text": "done"})
            with daemon.client() as otto:
                spec = daemon.agent(model, "project__twice")
                if not allowed:
                    with pytest.raises(OttoError, match="unknown tool 'project__twice'") as caught:
                        otto.start(spec=spec, task="go", cwd=daemon.workdir)
                    assert "project_may.tools" in caught.value.mend
                    continue
                session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
                assert session.wait(timeout_s=60).ok and results(session) == ["abab"]
                # An edit counts for the next session only.
                (tools / "theirs.py").write_text(TOOL.replace("* 2", "* 3"))
                session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
                assert session.wait(timeout_s=60).ok and results(session) == ["ababab"]
