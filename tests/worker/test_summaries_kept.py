"""Each summary of a conversation becomes an artifact of its own, also where one step needs two."""

from __future__ import annotations

import asyncio
from typing import Any

from ottod.core.context import ContextMeter
from ottod.core.turn import InputReceived, ModelResponded, ToolResolved, TurnMachine
from ottod.protocol.model import ModelRequest, ModelResponse, Text, ToolCall, ToolResult
from ottod.protocol.specs import AgentSpec
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import Permit
from ottod.worker.compaction import Compactor
from ottod.worker.model_call import Answer


class Room:
    """What a compactor needs of a worker. Root answers a write whose key it knows with what it has by that."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.summaries = iter(("the first half", "all but the end"))

    def note(self, entry: object) -> None: ...

    async def put(self, entries: object) -> None: ...

    def emit(self, event: object) -> None: ...

    def count(self, answer: Answer) -> None: ...

    def request(self, messages: Any) -> ModelRequest:
        return ModelRequest(model="m", messages=messages)

    async def call(self, request: ModelRequest, **more: object) -> Answer:
        said = ModelResponse(blocks=(Text(text=next(self.summaries)),), stop="end", usage=Usage(calls=1))
        return Answer(response=said, permit=Permit(permit="p", max_output_tokens=1), target=None, latency_ms=0)  # type: ignore[arg-type]

    async def write(self, data: bytes, *, name: str, kind: str, key: str) -> bytes:
        return self.kept.setdefault(key, data)


def machine_after(steps: int) -> TurnMachine:
    machine = TurnMachine(max_steps=50, max_parallel=1)
    machine.step(InputReceived(text="the task"))
    for number in range(steps):
        call = ToolCall(call=f"c{number}", tool="t")
        machine.step(ModelResponded(response=ModelResponse(blocks=(call,), stop="tool_calls", usage=Usage())))
        machine.step(ToolResolved(result=ToolResult(call=call.call, tool="t", text="x" * 4000)))
    return machine


def test_a_second_summary_in_one_step_is_kept_beside_the_first() -> None:
    """One because the conversation had grown, one because the provider still found it too long."""

    async def run() -> None:
        room: Any = Room()
        machine = machine_after(8)
        compactor = Compactor(
            spec=AgentSpec(name="a"),
            window_tokens=24_000,
            meter=ContextMeter(fixed_bytes=0),
            machine=machine,
            journal=room,
            link=room,
            models=room,
            artifacts=room,
            session="s-1",
        )
        for _ in range(2):
            assert await compactor.shorten(turn=1, step=machine.step_number, is_urgent=True)
        await compactor.aclose()
        assert sorted(room.kept.values()) == [b"all but the end", b"the first half"]

    asyncio.run(run())
