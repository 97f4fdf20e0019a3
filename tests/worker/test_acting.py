"""Calls of one answer: nothing begins whose intent is not noted, and each has one result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ottod.core.turn import RunTool, ToolResolved, TurnEvent
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.events import ToolCompleted
from ottod.protocol.model import ToolCall, ToolResult
from ottod.worker.acting import Acting
from ottod.worker.tool_call import Outcome


class Stage:
    """What a call meets on its way, as far as it matters here; `happened` says in which order it met it."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.told: list[TurnEvent] = []
        self.events: list[Any] = []
        self.guarded: list[bool] = []
        """What the rules say, look by look; then nothing stands before the call."""
        unpaused = asyncio.Event()
        unpaused.set()
        fakes: dict[str, Any] = dict.fromkeys(("tools", "approvals", "journal", "link"), self)
        self.acting = Acting(
            session="s-1", **fakes, unpaused=unpaused, tell=self.told.append, on_broken=lambda error: None
        )

    # The journal and the line to root.
    def note(self, entry: j.JournalEntry) -> None:
        self.happened.append(type(entry).__name__)

    async def put(self, entries: Any) -> None:
        for entry in entries:
            self.note(entry)
        await asyncio.sleep(0)

    def emit(self, event: Any) -> None:
        self.events.append(event)

    def redacted(self, outcome: Outcome) -> Outcome:
        return outcome

    # The rules.
    def is_guarded(self, call: ToolCall) -> bool:
        return self.guarded.pop(0) if self.guarded else False

    async def leave(self, call: ToolCall, **place: Any) -> Failure | None:
        self.happened.append("leave")
        return None

    # The tools.
    def is_runnable(self, call: ToolCall) -> bool:
        return True

    def is_idempotent(self, call: ToolCall) -> bool:
        return False

    async def run(self, call: ToolCall, **place: Any) -> Outcome:
        self.happened.append("run")
        result = ToolResult(call=call.call, tool=call.tool, text="done")
        return Outcome(result=result, event=ToolCompleted(call=call.call, tool=call.tool))

    async def play(self, *actions: RunTool) -> list[ToolResult]:
        """The calls of one answer, to their results."""
        await self.acting.note_intents(actions)
        for action in actions:
            self.acting.start(action)
        await asyncio.gather(*self.acting.take_tasks())
        return [event.result for event in self.told if isinstance(event, ToolResolved)]


def action(name: str = "c-1", **fields: Any) -> RunTool:
    return RunTool(turn=1, step=1, call=ToolCall(call=name, tool="shell"), **fields)


def play(*actions: RunTool, guarded: tuple[bool, ...] = ()) -> tuple[Stage, list[ToolResult]]:
    async def scene() -> tuple[Stage, list[ToolResult]]:
        stage = Stage()
        stage.guarded = list(guarded)
        return stage, await stage.play(*actions)

    return asyncio.run(scene())


def test_a_call_that_is_not_to_begin_fails_and_nothing_else() -> None:
    """It has a result, which is noted and told, and neither an intent nor an effect; nobody is asked about it."""
    stage, (result,) = play(action(failure=Failure(code="cut", message="it was cut", mend="again")), guarded=(True,))
    assert stage.happened == ["ToolResolved"]
    assert result.is_error and result.text == "it was cut\nagain"
    assert [event.failure.code for event in stage.events] == ["cut"]


@pytest.mark.parametrize(
    ("guarded", "happened"),
    [
        ((False, False), ["ToolIntended", "run", "ToolResolved"]),
        ((True, True), ["leave", "ToolIntended", "run", "ToolResolved"]),
        ((True, False), ["ToolIntended", "run", "ToolResolved"]),
        ((False, True), ["ToolIntended", "leave", "run", "ToolResolved"]),
    ],
)
def test_whatever_the_rules_say_by_then_a_call_begins_with_one_intent(
    guarded: tuple[bool, ...], happened: list[str]
) -> None:
    """A path can come to lead elsewhere between two looks: what was guarded is free then, or the reverse."""
    stage, results = play(action(), guarded=guarded)
    assert stage.happened == happened and [result.text for result in results] == ["done"]


def test_the_same_name_in_another_step_is_another_call() -> None:
    """Models may name their calls anew in each answer; what was noted for one is nothing to the next."""

    async def scene() -> Stage:
        stage = Stage()
        await stage.play(action())
        stage.guarded = [True, False]
        await stage.play(RunTool(turn=1, step=2, call=ToolCall(call="c-1", tool="shell")))
        return stage

    assert asyncio.run(scene()).happened == ["ToolIntended", "run", "ToolResolved"] * 2


def test_a_call_that_had_begun_has_its_intent_already() -> None:
    stage, _ = play(action(is_repeat=True), guarded=(True,))
    assert "ToolIntended" not in stage.happened and "run" in stage.happened
