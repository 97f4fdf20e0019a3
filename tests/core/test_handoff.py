"""A handoff in the pure machines: the turn ends with the call's result, and the successor's conversation is whole."""

from __future__ import annotations

import pytest

from ottod.core.answer import is_complaint
from ottod.core.conduct import Conduct
from ottod.core.resume import in_words, restore, successor
from ottod.core.turn import CallModel, EndTurn, InputReceived, ModelResponded, ToolResolved, TurnMachine, TurnResumed
from ottod.core.turn import is_valid_conversation as is_valid
from ottod.errors import RefusedError
from ottod.protocol import journal as j
from ottod.protocol.model import ModelResponse, Text, ToolCall, ToolResult, UserMessage
from ottod.protocol.specs import AgentSpec
from ottod.protocol.usage import Usage

HANDOFF = ToolCall(call="h", tool="handoff", arguments='{"agent": "b"}')
OTHER = ToolCall(call="o", tool="shell")


def response(*calls: ToolCall) -> ModelResponse:
    return ModelResponse(blocks=(Text(text="let me see"), *calls), stop="tool_calls", usage=Usage())


def result(*, is_error: bool = False, text: str = "the answer") -> ToolResult:
    return ToolResult(call="h", tool="handoff", text=text, is_error=is_error, ends_turn=True)


def past(*calls: ToolCall) -> list[j.JournalEntry]:
    return [
        j.SessionOpened(session="s-0000000000", incarnation=1, agent="a", model="m", cwd="/", task="why?"),
        j.UserSaid(text="why?", turn=1),
        j.ModelCalled(turn=1, step=1, model="m"),
        j.ModelResponded(turn=1, step=1, response=response(*calls)),
        *(
            j.ToolIntended(
                turn=1, step=1, call=c.call, tool=c.tool, arguments="{}", idempotent=True, idempotency_key="k"
            )
            for c in calls
        ),
    ]


@pytest.mark.parametrize("is_error", [False, True])
def test_a_result_can_end_the_turn(is_error: bool) -> None:
    """The model is not asked again; a failure is the turn's, and its first line says why."""
    machine = TurnMachine(max_steps=5, max_parallel=5)
    machine.step(InputReceived(text="why?"))
    machine.step(ModelResponded(response=response(HANDOFF)))
    (ended,) = machine.step(ToolResolved(result=result(is_error=is_error, text="b ended: failed\n\nhalf")))
    assert isinstance(ended, EndTurn) and ended.text == "b ended: failed\n\nhalf"
    assert ended.outcome == ("failed" if is_error else "completed") and is_valid(machine.messages)
    if is_error:
        assert ended.failure is not None
        assert (ended.failure.code, ended.failure.message) == ("successor_failed", "b ended: failed")
    (call,) = machine.step(InputReceived(text="and?"))
    assert isinstance(call, CallModel) and is_valid(call.messages)


def test_the_next_incarnation_ends_the_turn_in_the_same_way() -> None:
    """Lost between the result and the end of the turn: the journal says all there is to know."""
    entries = [*past(HANDOFF), j.ToolResolved(turn=1, step=1, call="h", result=result())]
    found = restore(entries)
    assert found.open is not None and isinstance(found.open.event, TurnResumed)
    machine = TurnMachine(max_steps=5, max_parallel=5, messages=found.messages, turn=found.turn - 1)
    (ended,) = machine.step(found.open.event)
    assert isinstance(ended, EndTurn) and (ended.outcome, ended.text) == ("completed", "the answer")
    assert restore([*entries, j.TurnEnded(turn=1, outcome="completed")]).text == "the answer"


def test_a_successor_has_the_conversation_and_nothing_else() -> None:
    """No cost, no child, no open turn; the call has a result that says what it is now."""
    children = (j.ChildStarted(child="s-child00000", agent="x", task="t", key="k"),)
    snapshot = successor([*past(HANDOFF), *children], origin="s-0000000000", call="h", told="it is yours")
    found = restore([snapshot])
    assert is_valid(found.messages) and found.open is None and not found.has_begun and not found.children
    assert found.turn == 1 and found.text == "" and found.usages == ()
    assert "it is yours" in repr(found.messages[-1])
    plain = restore([in_words(snapshot)]).messages
    assert isinstance(plain[-1], UserMessage) and plain[-1].text == "[result of handoff]\nit is yours"
    assert '[called handoff: {"agent": "b"}]' in repr(plain[-2]) and is_valid(plain)


@pytest.mark.parametrize("calls", [(HANDOFF, OTHER), (OTHER,), ()])
def test_only_a_call_that_stands_alone_hands_over(calls: tuple[ToolCall, ...]) -> None:
    with pytest.raises(RefusedError, match="stands alone"):
        successor(past(*calls), origin="s-0000000000", call="h", told="x")


SCHEMA = {"type": "object", "required": ["n"]}


def asked(retries: int = 1) -> TurnMachine:
    """A turn whose answer must have a form, and that has been handed over."""
    conduct = Conduct(AgentSpec(name="a", output_schema=SCHEMA, output_retries=retries))
    machine = TurnMachine(max_steps=5, max_parallel=5, conduct=conduct)
    machine.step(InputReceived(text="why?"))
    machine.step(ModelResponded(response=response(HANDOFF)))
    return machine


def said(text: str) -> ModelResponse:
    return ModelResponse(blocks=(Text(text=text),), stop="end_turn", usage=Usage())


def test_what_is_asked_of_an_answer_is_asked_of_a_successors() -> None:
    """In that form it is the turn's last word; in another one the first one's model gives it anew, as its own."""
    (ended,) = asked().step(ToolResolved(result=result(text='so: \n{"n": 1}')))
    assert isinstance(ended, EndTurn) and ended.outcome == "completed"
    machine = asked()
    *_, call = machine.step(ToolResolved(result=result(text="in my own words")))
    assert isinstance(call, CallModel) and is_valid(call.messages)
    assert is_complaint(call.messages[-1]) and "in my own words" in repr(call.messages[-2])
    (ended,) = machine.step(ModelResponded(response=said('{"n": 2}')))
    assert isinstance(ended, EndTurn) and (ended.outcome, ended.text) == ("completed", '{"n": 2}')


def test_a_successors_answer_counts_as_one_of_the_tries() -> None:
    """Without another one the turn fails, with what was said."""
    (ended,) = asked(retries=0).step(ToolResolved(result=result(text="in my own words")))
    assert isinstance(ended, EndTurn) and ended.failure is not None
    assert (ended.failure.code, ended.text) == ("bad_output", "in my own words")
    machine = asked()
    machine.step(ToolResolved(result=result(text="in my own words")))
    *_, ended = machine.step(ModelResponded(response=said("as I said")))
    assert isinstance(ended, EndTurn) and ended.failure is not None and ended.failure.code == "bad_output"


def test_the_next_incarnation_asks_for_the_form_as_well() -> None:
    """Lost behind the successor's answer."""
    entries = [*past(HANDOFF), j.ToolResolved(turn=1, step=1, call="h", result=result(text="in my own words"))]
    found = restore(entries)
    assert found.open is not None and isinstance(found.open.event, TurnResumed)
    conduct = Conduct(AgentSpec(name="a", output_schema=SCHEMA))
    machine = TurnMachine(max_steps=5, max_parallel=5, messages=found.messages, turn=found.turn - 1, conduct=conduct)
    *_, call = machine.step(found.open.event)
    assert isinstance(call, CallModel) and is_complaint(call.messages[-1]) and is_valid(call.messages)
