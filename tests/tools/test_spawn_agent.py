"""spawn_agent: a child for every call, the same for a repeated one, and none left behind by a cancelled one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from ottod.errors import ToolError
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import ChildEnd, ToolOutput
from ottod.tools.spawn_agent import SPAWN_AGENT
from tests.fakes.session_place import SessionPlace, run


class FakeSessions:
    """Children that end when the test says so."""

    def __init__(self, end: ChildEnd | None) -> None:
        self.end = end
        self.spawned: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.is_waited_for = asyncio.Event()

    async def spawn(self, **what: Any) -> tuple[str, str]:
        self.spawned.append(what)
        return "s-child", what["name"] or what["agent"]

    async def recall(self, **what: Any) -> None:
        return None

    async def wait_ended(self, child: str) -> ChildEnd:
        self.is_waited_for.set()
        if self.end is None:
            await asyncio.Event().wait()
        assert self.end is not None
        return self.end

    async def stop(self, child: str, reason: str) -> None:
        self.stopped.append(child)


def call(
    place: SessionPlace, sessions: FakeSessions | None, arguments: str, *, timeout_s: float = 30.0
) -> Coroutine[Any, Any, ToolOutput]:
    context = replace(place.context(timeout_s=timeout_s), sessions=sessions)
    return SPAWN_AGENT.run(decode_arguments(SPAWN_AGENT, arguments), context)


def test_the_result_is_the_childs_last_answer(place: SessionPlace) -> None:
    """The key of the call is the child's, so that a repeated call gets the same child."""
    sessions = FakeSessions(ChildEnd(cause="completed", is_completed=True, result="42"))
    output = run(call(place, sessions, '{"agent": "a", "task": "t"}'))
    assert output.text == "session s-child of agent a: completed\n\n42" and not output.is_error
    assert output.data == {"child": "s-child", "name": "a", "cause": "completed"}
    wanted = {
        "agent": "a", "task": "t", "title": "", "model": "", "key": "k-1", "is_reported": False, "name": "",
        "mode": "oneshot", "hint": "",
    }  # fmt: skip
    assert sessions.spawned == [wanted] and sessions.stopped == []


def test_a_child_that_failed_is_a_failure(place: SessionPlace) -> None:
    """Whatever it said before, the model hears that it did not complete."""
    sessions = FakeSessions(ChildEnd(cause="crashed(SIGKILL)", is_completed=False, result=""))
    output = run(call(place, sessions, '{"agent": "a", "task": "t"}'))
    assert output.is_error and output.text == "session s-child of agent a: crashed(SIGKILL)"


def test_without_waiting_the_call_returns_at_once(place: SessionPlace) -> None:
    """The end will come as a message, and the child is told apart for that."""
    sessions = FakeSessions(None)
    output = run(call(place, sessions, '{"agent": "a", "task": "t", "wait": false}'))
    assert "will come as a message" in output.text and not output.is_error
    assert sessions.spawned[0]["is_reported"] and not sessions.is_waited_for.is_set()


def test_a_cancelled_call_stops_its_child(place: SessionPlace) -> None:
    """Nobody would ever ask for its result."""
    sessions = FakeSessions(None)

    async def work() -> None:
        task = asyncio.ensure_future(call(place, sessions, '{"agent": "a", "task": "t"}'))
        await sessions.is_waited_for.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert sessions.stopped == ["s-child"]


def test_a_call_that_is_out_of_time_stops_its_child(place: SessionPlace) -> None:
    """The wait has a bound, and the model hears of it."""
    sessions = FakeSessions(None)
    with pytest.raises(ToolError) as caught:
        run(call(place, sessions, '{"agent": "a", "task": "t"}', timeout_s=0.05))
    assert caught.value.code == "timeout" and sessions.stopped == ["s-child"]


def test_where_there_are_no_sessions_the_call_is_refused(place: SessionPlace) -> None:
    """A tool context without sessions is no reason to crash."""
    with pytest.raises(ToolError) as caught:
        run(call(place, None, '{"agent": "a", "task": "t"}'))
    assert caught.value.code == "no_sessions"
