"""The phases of a turn: what the machine takes and orders, and its phases as it really walks through them."""

from __future__ import annotations

import inspect
import types
from typing import Any, get_args

import msgspec

from ottod.core import turn
from ottod.core.turn import (
    CancelRequested,
    InputReceived,
    ModelFailed,
    ModelResponded,
    OutOfTurn,
    PauseRequested,
    Steer,
    SteerReceived,
    ToolResolved,
    TurnEvent,
    TurnMachine,
    TurnsForgotten,
    UnpauseRequested,
)
from ottod.errors import Failure
from ottod.protocol.model import ModelResponse, StopReason, Text, ToolCall, ToolResult
from ottod.protocol.usage import Usage
from pages.common import NOTICE, cell


def _response(stop: StopReason, *blocks: Text | ToolCall) -> ModelResponded:
    return ModelResponded(response=ModelResponse(blocks=blocks, stop=stop, usage=Usage()))


INPUT = InputReceived(text="do it")
CALLS = _response("tool_calls", *(ToolCall(call=name, tool="shell") for name in "ab"))
ANSWER = _response("end", Text(text="done"))
FIRST, LAST = (ToolResolved(result=ToolResult(call=name, tool="shell", text="")) for name in "ab")
CANCEL = CancelRequested(reason="enough")
STEER = SteerReceived(steer=Steer(number=1, text="and this"))
PAUSE, UNPAUSE, FORGET = PauseRequested(), UnpauseRequested(), TurnsForgotten(turns=1)
FAILED = ModelFailed(failure=Failure(code="overloaded", message=""))

SITUATIONS: tuple[tuple[str, tuple[TurnEvent, ...]], ...] = (
    ("idle", ()),
    ("idle, after a turn", (INPUT, ANSWER)),
    ("model", (INPUT,)),
    ("model, steered", (INPUT, STEER)),
    ("model, paused", (INPUT, PAUSE)),
    ("tools, two calls out", (INPUT, CALLS)),
    ("tools, one call out", (INPUT, CALLS, FIRST)),
    ("tools, cancelled, one call out", (INPUT, CALLS, FIRST, CANCEL)),
    ("tools, paused, one call out", (INPUT, CALLS, FIRST, PAUSE)),
    ("held", (INPUT, CALLS, FIRST, PAUSE, LAST)),
)
"""How to get there. The machine has four phases; what follows in `tools` depends on what is still out."""

STEPS: tuple[tuple[str, TurnEvent], ...] = (
    ("InputReceived", INPUT),
    ("ModelResponded, an answer", ANSWER),
    ("ModelResponded, tool calls", CALLS),
    ("ModelFailed", FAILED),
    ("ToolResolved", FIRST),
    ("ToolResolved", LAST),
    ("SteerReceived", STEER),
    ("CancelRequested", CANCEL),
    ("PauseRequested", PAUSE),
    ("UnpauseRequested", UNPAUSE),
    ("TurnsForgotten", FORGET),
)


def turns_page() -> str:
    """The machine's theory, its phases, its events and its actions."""
    rows, edges = _walk()
    diagram = "".join(f"    {source} --> {target}: {what}\n" for source, what, target in edges)
    return f"""{NOTICE}
# Turns

{inspect.getdoc(turn)}

```mermaid
stateDiagram-v2
    [*] --> idle
{diagram}```

| phase | event | phase after it | orders |
|---|---|---|---|
{"".join(rows)}
A steer, a cancellation, a pause and its end can come in every phase; rows in which nothing follows at once are left
out. Every other pair is a defect of the caller: the machine raises `OutOfTurn` and changes nothing.

## Events

{_table(turn.TurnEvent)}
## Actions

{_table(turn.TurnAction)}"""


def _walk() -> tuple[list[str], list[tuple[str, str, str]]]:
    """Gives each event to a machine in each situation, and notes what it does."""
    rows: list[str] = []
    edges: list[tuple[str, str, str]] = []
    for situation, way in SITUATIONS:
        for name, event in STEPS:
            machine = _machine(way)
            before = machine.phase
            try:
                orders = machine.step(event)
            except OutOfTurn:
                continue
            if machine.phase == before and not orders and name != "ToolResolved":
                continue  # It is remembered, and has its effect later.
            names = ", ".join(dict.fromkeys(f"`{type(order).__name__}`" for order in orders)) or "none"
            row = f"| {situation} | {name} | `{machine.phase}` | {names} |\n"
            edge = (before, name, machine.phase)
            rows += [] if row in rows else [row]
            edges += [] if edge in edges else [edge]
    return rows, edges


def _machine(way: tuple[TurnEvent, ...]) -> TurnMachine:
    machine = TurnMachine(max_steps=100, max_parallel=8)
    for event in way:
        machine.step(event)
    return machine


def _table(union: Any) -> str:
    assert isinstance(union, types.UnionType)
    rows = ""
    for kind in get_args(union):
        fields = ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(kind)) or "none"
        rows += f"| `{kind.__name__}` | {fields} | {cell(inspect.getdoc(kind) or '')} |\n"
    return f"| | fields | |\n|---|---|---|\n{rows}"
