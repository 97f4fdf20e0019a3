"""Traces of real sessions, sent over OTLP/HTTP to a collector that decodes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import pytest

pytest.importorskip("opentelemetry.sdk")

from ottod.core.trace_ids import span_id, trace_id
from ottod.protocol.events import ChildStarted
from ottod.telemetry import conventions as names
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.fakes.otlp import Collector, Span

SECRET = "trace-8Vq2Lw0Rk7Tn5Yb3Hd1"


def settings(collector: Collector, **more: object) -> dict[str, object]:
    traces = {"enabled": True, "endpoint": collector.endpoint, "headers": {"x-auth": "auth"}, **more}
    return {
        "telemetry": {"traces": traces},
        "secrets": {"auth": {"env": "TRACE_AUTH"}},
        "logging": {"format": "json"},
    }


def family(daemon: RealDaemon) -> str:
    """A parent that starts a child by a tool, beside a tool that fails."""
    agents = daemon.workdir / ".otto" / "agents"
    agents.mkdir(parents=True)
    child = daemon.script("child", {"tools": [{"name": "shell", "arguments": {"command": "echo hi"}}]}, {"text": "x"})
    (agents / "child.yml").write_text(f"name: child\nmodel: {child}\ntools: [shell]\n")
    return daemon.script(
        "parent",
        {
            "text": f"I know {SECRET}.",
            "tools": [
                {"name": "spawn_agent", "arguments": {"agent": "child", "task": "say hi"}},
                {"name": "fs_read", "arguments": {"path": f"no-{SECRET}"}},
            ],
        },
        {"text": "done"},
    )


def test_spans_nest_across_sessions() -> None:
    """One trace: turns, model calls and tool calls, the child's turn below the call that started it; no secret."""
    with Collector() as collector, running_daemon(settings(collector), env={"TRACE_AUTH": SECRET}) as daemon:
        model = family(daemon)
        with daemon.client() as otto:
            spec = daemon.agent(model, "spawn_agent", "fs_read")
            session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
            assert session.wait().ok
            (child,) = [e.event.child for e in session.events(0) if isinstance(e.event, ChildStarted)]
        wait_for("all spans", lambda: len(collector.spans) == 9)
        spans = collector.spans
        by_id = {span.span: span for span in spans}
        assert {span.trace for span in spans} == {f"{trace_id(session.id):032x}"}

        def named(name: str, of: str) -> list[Span]:
            return [s for s in spans if s.name == name and s.attributes[names.CONVERSATION_ID] == of]

        (top,) = named("invoke_agent tester", session.id)
        assert top.parent == "" and top.span == f"{span_id(session.id, 1, 1):016x}" and not top.error
        chats = named("chat script", session.id)
        assert len(chats) == 2 and {c.parent for c in chats} == {top.span}
        assert all(c.kind == 3 and c.attributes[names.INPUT_TOKENS] > 0 for c in chats)
        (spawn,) = named("execute_tool spawn_agent", session.id)
        assert spawn.parent == top.span
        (read,) = named("execute_tool fs_read", session.id)
        assert read.attributes[names.ERROR_TYPE] == "not_found" and "[redacted:auth]" in read.error
        (below,) = named("invoke_agent child", child)
        assert by_id[below.parent] == spawn and spawn.start_ns <= below.start_ns <= below.end_ns <= spawn.end_ns
        (shell,) = named("execute_tool shell", child)
        assert shell.parent == below.span and len(named("chat script", child)) == 2
        assert all(SECRET.encode() not in body for body in collector.bodies)
        assert all(headers["x-auth"] == SECRET for headers in collector.headers)


def test_a_second_incarnation_links_to_the_first() -> None:
    """Killed in the middle of a turn: it goes on in the same trace, with a link to the span that never ended."""
    with Collector() as collector, running_daemon(settings(collector), env={"TRACE_AUTH": SECRET}) as daemon:
        model = daemon.script("slow", {"text": "a", "stall": 60, "marker": "m"}, {"text": "done"})
        with daemon.client() as otto:
            spec = daemon.agent(model)
            spec = msgspec.structs.replace(spec, restart=msgspec.structs.replace(spec.restart, policy="transient"))
            session = otto.start(spec=spec, task="go", cwd=daemon.workdir)
            wait_for("it stalls", lambda: (daemon.workdir / "m").exists())
            os.kill(session.info().pid, signal.SIGKILL)
            assert session.wait().ok
        turns = wait_for("a turn", lambda: [s for s in collector.spans if s.name == "invoke_agent tester"])
        (turn,) = turns
        assert turn.links == (f"{span_id(session.id, 1, 1):016x}",) and turn.attributes[names.OTTO_INCARNATION] == 2


def test_a_collector_that_does_not_answer_holds_up_nobody() -> None:
    """Neither the turn nor, beyond its bound, the end of the session."""
    with Collector(stalls=True) as collector:
        told = settings(collector, timeout_s=1)
        with running_daemon(told, env={"TRACE_AUTH": SECRET}) as daemon, daemon.client() as otto:
            model = daemon.script("quick", {"text": "done"})
            assert otto.run(spec=daemon.agent(model), task="go", cwd=daemon.workdir).ok
            wait_for("the collector was asked", lambda: collector.bodies)


def test_off_means_not_imported() -> None:
    """What a worker has loaded when no traces are wanted has nothing of the SDK and its exporter in it."""
    code = (
        "import sys; from ottod.worker import main; main.prepare(('anthropic', 'openai'));"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
