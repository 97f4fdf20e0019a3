"""What only the Responses API has: reasoning items, incomplete responses, failures in the stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ottod.errors import ProviderError
from ottod.protocol.model import AssistantMessage, Text, Thinking, ThinkingDelta, ToolCall, UserMessage
from ottod.protocol.usage import Usage
from ottod.providers.failures import Peer
from ottod.providers.openai_responses import ResponsesMessage, responses_request
from tests.fakes.wire_rig import request

PEER = Peer(name="openai", base_url="http://127.0.0.1", key_variable="OPENAI_API_KEY")


def feed(*events: dict[str, Any]) -> tuple[ResponsesMessage, list[Any]]:
    message = ResponsesMessage(PEER, request())
    return message, [out for event in events for out in message.take(json.dumps(event).encode())]


def completed(**fields: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"id": "r", "model": "m", "output": [], **fields}}


def done(index: int, **item: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def test_reasoning_items_go_back_whole_and_only_with_their_encrypted_content() -> None:
    """Nothing is stored at the provider, so an item without content would be an unknown id there."""
    summary = [{"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}]
    item = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "gAAA="}
    message, out = feed(
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "id": "rs_1"}},
        {"type": "response.reasoning_summary_part.added", "output_index": 0},
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "one"},
        {"type": "response.reasoning_summary_part.added", "output_index": 0},
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "two"},
        done(0, **item, status=None),
        done(1, type="reasoning", id="rs_2", summary=[]),
        done(2, type="message", content=[{"type": "output_text", "text": "hi", "annotations": []}]),
        completed(),
    )
    blocks = message.response().blocks
    # What a watcher saw is what the block says, paragraphs included.
    assert "".join(e.text for e in out if isinstance(e, ThinkingDelta)) == "one\n\ntwo"
    assert isinstance(blocks[0], Thinking)
    assert blocks[0].text == "one\n\ntwo"
    made = responses_request(
        request(UserMessage(text="x"), AssistantMessage(blocks=blocks), UserMessage(text="y")), provider="openai"
    )
    assert made["input"][1:3] == [item, {"type": "message", "role": "assistant", "content": "hi"}]
    assert made["store"] is False


def test_encrypted_reasoning_is_asked_for_only_with_reasoning() -> None:
    """Models that do not reason refuse the wish."""
    assert "include" not in responses_request(request(), provider="openai")
    made = responses_request(request(thinking_tokens=10_000), provider="openai")
    assert made["include"] == ["reasoning.encrypted_content"]
    assert made["reasoning"] == {"effort": "high", "summary": "auto"}


def test_items_that_only_the_last_event_holds_are_not_lost() -> None:
    """A compatible server may leave out the item events, the ids, or the usage."""
    output = [
        {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search"}},
    ]
    message, _ = feed(completed(output=output))
    response = message.response()
    assert response.blocks == (Text(text="hi"), ToolCall(call="call_1_1", tool="f", arguments="{}"))
    assert response.stop == "tool_calls"
    assert response.usage == Usage(calls=1), "nobody counted"


def test_the_announced_id_is_the_id_of_the_call() -> None:
    """Whatever a server calls the item later."""
    added = {"type": "function_call", "id": "fc_1", "call_id": "call_x", "name": "f", "arguments": ""}
    message, out = feed(
        {"type": "response.output_item.added", "output_index": 0, "item": added},
        done(0, type="function_call", id="fc_1", name="f", arguments='{"a":1}'),
        completed(),
    )
    assert out[0].call == "call_x"
    assert message.response().blocks == (ToolCall(call="call_x", tool="f", arguments='{"a":1}'),)


@pytest.mark.parametrize(("reason", "stop"), [("max_output_tokens", "max_tokens"), ("content_filter", "refusal")])
def test_incomplete_responses_say_why(reason: str, stop: str) -> None:
    """A limit and a filter are different ends."""
    event = completed(incomplete_details={"reason": reason}) | {"type": "response.incomplete"}
    assert feed(event)[0].response().stop == stop


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "response.failed", "response": {"error": {"code": "server_error", "message": "x"}}}, "overloaded"),
        ({"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}}, "rate_limited"),
        ({"type": "error", "code": "context_length_exceeded", "message": "long"}, "context_too_long"),
        ({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, "bad_request"),
        ({"error": {"message": "gone", "code": None}}, "overloaded"),
    ],
)
def test_failures_in_the_stream_are_translated(event: dict[str, Any], code: str) -> None:
    """In the shapes that the API and its gateways use."""
    with pytest.raises(ProviderError) as caught:
        feed(event)
    assert caught.value.code == code


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"type": 5}', b'{"type":"x","item":7}', b"\xff"])
def test_events_that_do_not_parse_are_malformed(data: bytes) -> None:
    """The provider's failure, never a crash of ours."""
    with pytest.raises(ProviderError) as caught:
        ResponsesMessage(PEER, request()).take(data)
    assert caught.value.code == "malformed"


def test_reasoning_that_nothing_followed_is_left_out() -> None:
    """An answer that was cut while the model reasoned: the API refuses the item without what it led to."""
    thought = Thinking(text="hm", opaque='{"type": "reasoning", "id": "rs_1"}', provider="openai")
    messages = (UserMessage(text="x"), AssistantMessage(blocks=(thought, Text(text=""))), UserMessage(text="y"))
    made = responses_request(request(*messages), provider="openai")
    assert [item["type"] for item in made["input"]] == ["message", "message"]
    led = AssistantMessage(blocks=(thought, thought, ToolCall(call="c", tool="t")))
    made = responses_request(request(UserMessage(text="x"), led), provider="openai")
    assert [item["type"] for item in made["input"]] == ["message", "reasoning", "reasoning", "function_call"]
