"""handoff: the successor's answer is the call's, all of it where it was kept, and none is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from ottod.errors import ToolError
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import ChildEnd, ToolOutput
from ottod.tools.handoff import HANDOFF
from tests.fakes.session_place import SessionPlace, run
from tests.tools.test_spawn_agent import FakeSessions

LONG = "ä" * 50_000


class Successors(FakeSessions):
    """As the children of `spawn_agent`, but they have the conversation."""

    async def hand_over(self, **what: Any) -> tuple[str, str]:
        self.spawned.append(what)
        return "s-child", what["agent"]


async def hand_over(place: SessionPlace, sessions: FakeSessions, *, timeout_s: float = 30.0) -> ToolOutput:
    context = replace(place.context(timeout_s=timeout_s), sessions=sessions)
    return await HANDOFF.run(decode_arguments(HANDOFF, '{"agent": "expert", "reason": "it knows"}'), context)


def ended(whole: str = "", *, is_completed: bool = True) -> Successors:
    cause = "completed" if is_completed else "failed"
    return Successors(ChildEnd(cause=cause, is_completed=is_completed, result=LONG[:100], whole=whole))


def test_an_answer_that_was_kept_whole_is_given_whole(place: SessionPlace) -> None:
    """One that is not there any more is cut, and no reason to have the work done again."""

    async def work() -> tuple[ToolOutput, ToolOutput, ToolOutput]:
        artifacts = place.context().artifacts
        assert artifacts is not None
        kept = await artifacts.write(LONG.encode(), name="whole-answer")
        names = kept.artifact, "", "art-gone"
        whole, short, gone = [await hand_over(place, ended(name)) for name in names]
        return whole, short, gone

    whole, short, gone = run(work())
    assert whole.text == LONG and short.text == gone.text == LONG[:100]
    assert all(output.ends_turn and not output.is_error for output in (whole, short, gone))


def test_a_successor_that_failed_is_named(place: SessionPlace) -> None:
    output = run(hand_over(place, ended(is_completed=False)))
    assert output.is_error and output.text.startswith("expert (s-child): failed\n\n")


def test_a_handoff_that_is_out_of_time_or_cancelled_stops_the_successor(place: SessionPlace) -> None:
    slow = Successors(None)
    with pytest.raises(ToolError) as caught:
        run(hand_over(place, slow, timeout_s=0.05))
    assert caught.value.code == "timeout" and slow.stopped == ["s-child"]

    async def cancelled(sessions: Successors) -> None:
        task = asyncio.ensure_future(hand_over(place, sessions))
        await sessions.is_waited_for.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    other = Successors(None)
    run(cancelled(other))
    assert other.stopped == ["s-child"]
