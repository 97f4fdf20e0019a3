"""A model that fails in every scripted way: a typed cause each time, and a sibling that never notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ottoctl.sync import SyncSession
from ottod.protocol.events import ModelRetried, SessionExited, ToolFailed, TurnFailed
from ottod.protocol.results import SessionInfo
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

SETTINGS = {"providers": {"scripted": {"max_retries": 1, "idle_timeout_s": 0.3, "breaker": {"enabled": False}}}}
"""Without a breaker: all of these models are one script, and so many failures would open it."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """A daemon that is quick to give up on its model."""
    with running_daemon(SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def sibling(daemon: RealDaemon) -> Iterator[SyncSession]:
    """A session that streams all the while; at the end it is whole and was one incarnation."""
    with daemon.client() as otto:
        model = daemon.script("sibling", {"stream": {"events": 100_000, "rate_hz": 50}})
        session = otto.start(spec=daemon.agent(model), task="x", cwd=daemon.workdir)
        wait_for("it streams", lambda: session.info().last_seq > 5)
        yield session
        assert session.info().state == "running"
        assert session.stop(grace_s=5).remaining_pids == ()
        assert [e.seq for e in session.events(0)] == list(range(1, session.info().last_seq + 1))


def run(
    daemon: RealDaemon, *turns: dict[str, object], tools: tuple[str, ...] = ()
) -> tuple[SessionInfo, list[object]]:
    """The session after its end, and its events; exactly one of them is an exit, the last."""
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(daemon.script("fault", *turns), *tools), task="x", cwd=daemon.workdir)
        info = session.wait(timeout_s=30).info
        events = [e.event for e in session.events(0)]
    assert [isinstance(e, SessionExited) for e in events] == [False] * (len(events) - 1) + [True]
    exited = events[-1]
    assert isinstance(exited, SessionExited) and exited.remaining_pids == () and exited.cause == info.cause
    return info, events


FAULTS = {
    "error 400": ({"error": {"status": 400, "message": "m"}}, "failed", "bad_request"),
    "error 401": ({"error": {"status": 401}}, "auth", "auth"),
    "error 413": ({"error": {"status": 413}}, "failed", "context_too_long"),
    "error 429": ({"error": {"status": 429, "retry_after_s": 0.01}}, "failed", "rate_limited"),
    "error 500": ({"error": {"status": 500}}, "failed", "overloaded"),
    "no connection": ({"error": {"status": 0}}, "failed", "connection"),
    "stall": ({"stall": 60}, "failed", "timeout"),
    "cut": ({"text": "a longer text than a chunk has", "cut": 1}, "failed", "cut"),
    "malformed": ({"text": "x", "malformed": True}, "failed", "malformed"),
}
RETRIED = {"rate_limited", "overloaded", "connection", "timeout", "cut", "malformed"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_model(daemon: RealDaemon, sibling: SyncSession, fault: str) -> None:
    """The cause carries the failure's code; what may pass is tried once more, what cannot is not."""
    turn, kind, code = FAULTS[fault]
    info, events = run(daemon, turn)
    assert info.cause is not None and (info.cause.kind, info.cause.code) == (kind, code)
    assert info.cause.message
    (failed,) = [e for e in events if isinstance(e, TurnFailed)]
    assert failed.failure.code == code
    retries = [e for e in events if isinstance(e, ModelRetried)]
    assert len(retries) == (1 if code in RETRIED else 0) and all(r.failure.code == code for r in retries)


def test_a_fault_that_passes(daemon: RealDaemon, sibling: SyncSession) -> None:
    """A second attempt that works completes the turn; the first is visible as a retry."""
    info, events = run(daemon, {"error": {"status": 529}, "times": 1}, {"text": "made it"})
    assert info.cause is not None and info.cause.kind == "completed" and info.result == "made it"
    assert sum(isinstance(e, ModelRetried) for e in events) == 1


@pytest.mark.parametrize("crash", ["SIGKILL", "SIGSEGV", "SIGABRT", "exit 3"])
def test_a_crash(daemon: RealDaemon, sibling: SyncSession, crash: str) -> None:
    """The process dies for real, in the middle of a stream: crashed, with the signal or the status."""
    info, _ = run(daemon, {"text": "this is not said to its end", "crash": crash, "after_chunks": 1})
    assert info.cause is not None
    assert str(info.cause) == f"crashed({crash.removeprefix('exit ')})"


def test_malformed_tool_calls_are_answered(daemon: RealDaemon, sibling: SyncSession) -> None:
    """Arguments that end in the middle are a failed tool call, which the model hears of; the turn goes on."""
    call = {"name": "fs_read", "arguments": {"path": "x"}}
    info, events = run(daemon, {"tools": [call], "malformed": True}, {"text": "I see"}, tools=("fs_read",))
    assert info.cause is not None and info.cause.kind == "completed" and info.result == "I see"
    assert sum(isinstance(e, ToolFailed) for e in events) == 1


def test_a_blocked_loop_is_hung() -> None:
    """A worker whose loop stands still misses its heartbeat, is called hung, and is killed; another lives on."""
    settings = {"sessions": {"heartbeat_s": 0.2, "hung_after_s": 0.6}}
    with running_daemon(settings) as daemon, daemon.client() as otto:
        model = daemon.script("calm", {"stream": {"events": 100_000, "rate_hz": 20}})
        calm = otto.start(spec=daemon.agent(model), task="x", cwd=daemon.workdir)
        # Frozen, not busy: whether a busy one hangs depends on the processor that it gets.
        frozen = otto.start(spec=daemon.agent(model), task="x", cwd=daemon.workdir)
        wait_for("both stream", lambda: calm.info().last_seq > 5 and frozen.info().last_seq > 5)
        info, _ = run(daemon, {"text": "x", "spin": 300})
        assert info.cause is not None and info.cause.kind == "hung"
        assert calm.info().state == "running"
        for session in (calm, frozen):
            assert session.stop(grace_s=5).remaining_pids == ()
