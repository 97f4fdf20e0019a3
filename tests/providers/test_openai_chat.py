"""Chat Completions as servers really speak it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ottod.errors import ProviderError
from ottod.protocol.model import (
    AssistantMessage,
    ModelResponse,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage
from ottod.providers.failures import Peer
from ottod.providers.openai_chat import ChatMessage, chat_request
from tests.fakes.wire_rig import request

PEER = Peer(name="local", base_url="http://127.0.0.1", key_variable="")


def read(*deltas: dict[str, Any], finish: str | None = "tool_calls", **last: Any) -> ModelResponse:
    """The response of a server that sends these deltas and this finish reason."""
    message = ChatMessage(PEER, request())
    for delta in deltas:
        message.take(json.dumps({"choices": [{"delta": delta}]}).encode())
    if finish:
        message.take(json.dumps({"choices": [{"delta": {}, "finish_reason": finish}], **last}).encode())
    return message.response()


def call(arguments: Any = "", **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    return {"tool_calls": [{**fields, "function": {"arguments": arguments, **({"name": name} if name else {})}}]}


def calls(response: ModelResponse) -> list[tuple[str, str, str]]:
    return [(b.call, b.tool, b.arguments) for b in response.blocks if isinstance(b, ToolCall)]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        pytest.param(
            [call(index=0, id="a", name="f"), call('{"x"', index=0), call(":1}", index=0)],
            [("a", "f", '{"x":1}')],
            id="as documented",
        ),
        pytest.param(
            [
                call(index=0, id="a", name="f"),
                call(index=1, id="b", name="g"),
                call("1", index=0),
                call("2", index=1),
            ],
            [("a", "f", "1"), ("b", "g", "2")],
            id="interleaved",
        ),
        pytest.param(
            [call("{}", index=0, id="a", name="f"), call("{}", index=0, id="b", name="g")],
            [("a", "f", "{}"), ("b", "g", "{}")],
            id="every index is 0",
        ),
        pytest.param(
            [call("{}", id="a", name="f"), call("{}", id="b", name="g")],
            [("a", "f", "{}"), ("b", "g", "{}")],
            id="no index",
        ),
        pytest.param(
            [call('{"x":', name="f"), call("1}"), call("{}", name="g")],
            [("call_1_0", "f", '{"x":1}'), ("call_1_1", "g", "{}")],
            id="neither index nor id",
        ),
        pytest.param(
            [call({"x": 1}, index=0, id="", name="f")], [("call_1_0", "f", '{"x":1}')], id="arguments as an object"
        ),
        pytest.param(
            [call("1", index=0, id="a", name="f"), call("2", index=0, id="a", name="f")],
            [("a", "f", "12")],
            id="id and name repeated",
        ),
        pytest.param(
            [call("1", index=0, id="a", name="f"), call("2", index=1, id="a", name="f")],
            [("a", "f", "1"), ("call_1_1", "f", "2")],
            id="one id for two calls",
        ),
        pytest.param([call(None, index=0, id="a", name="f")], [("a", "f", "{}")], id="no arguments"),
    ],
)
def test_tool_calls_are_assembled_from_what_comes(
    deltas: list[dict[str, Any]], expected: list[tuple[str, str, str]]
) -> None:
    """Ids are unique, names and arguments whole, in order, with every quirk that servers have."""
    assert calls(read(*deltas)) == expected


def test_a_finish_reason_that_contradicts_the_content_yields_to_it() -> None:
    """Some finish calls with `stop`, some finish text with `tool_calls`."""
    assert read(call("{}", index=0, id="a", name="f"), finish="stop").stop == "tool_calls"
    assert read({"content": "hi"}, finish="tool_calls").stop == "end"
    assert read({"content": "hi"}, finish="whatever").stop == "end"
    assert read({"refusal": "no"}, finish="stop").stop == "refusal"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_known_by_two_names_and_goes_back_under_its_own(field: str) -> None:
    """It returns with the calls it led to, also once a user has spoken again: what was sent stays sent."""
    response = read({field: "hm"}, {field: "m"}, call("{}", index=0, id="a", name="f"))
    assert response.blocks[0] == Thinking(text="hmm", opaque=field, provider="local")
    result = ToolResults(results=(ToolResult(call="a", tool="f", text="r"),))
    turn = (UserMessage(text="x"), AssistantMessage(blocks=response.blocks), result)
    within = chat_request(request(*turn), provider="local", is_openai=False)
    after = chat_request(request(*turn, UserMessage(text="y")), provider="local", is_openai=False)
    other = chat_request(request(*turn), provider="elsewhere", is_openai=False)
    assert within["messages"][2][field] == "hmm"
    assert after["messages"][:-1] == within["messages"]
    assert field not in other["messages"][2]


def test_reasoning_sent_under_both_names_is_heard_once() -> None:
    """A server that doubles its fields does not double its thoughts."""
    response = read({"reasoning": "a", "reasoning_content": "a"}, {"content": "x"}, finish="stop")
    assert [b.text for b in response.blocks if isinstance(b, Thinking)] == ["a"]


def test_usage_that_is_missing_is_not_made_up() -> None:
    """What estimates it has to know that nobody counted."""
    assert read({"content": "x" * 40}, finish="stop").usage == Usage(calls=1)
    told = read({"content": "x"}, finish="stop", usage={"prompt_tokens": 7, "completion_tokens": None})
    assert (told.usage.input_tokens, told.usage.output_tokens) == (7, 0)


def test_a_response_needs_an_end() -> None:
    """Text without a finish reason or [DONE] is a stream that broke off; either of them is an end."""
    with pytest.raises(ProviderError) as caught:
        read({"content": "half"}, finish=None)
    assert caught.value.code == "cut"
    message = ChatMessage(PEER, request())
    message.take(b'{"choices": [{"delta": {"content": "whole"}}]}')
    message.take(b"[DONE]")
    assert message.response().blocks == (Text(text="whole"),)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "slow down", "code": 429}, "rate_limited"),
        ({"message": "slow down", "code": "rate_limit_exceeded"}, "rate_limited"),
        ({"message": "no money", "type": "insufficient_quota", "code": "insufficient_quota"}, "refused"),
        ({"message": "This model's maximum context length is 8192 tokens", "code": 400}, "context_too_long"),
        ("out of memory", "overloaded"),
    ],
)
def test_errors_in_the_stream_have_many_shapes(error: Any, code: str) -> None:
    """An object with a number, with a word, or plain text."""
    message = ChatMessage(PEER, request())
    with pytest.raises(ProviderError) as caught:
        message.take(json.dumps({"error": error}).encode())
    assert caught.value.code == code


def test_the_output_limit_has_the_name_that_the_server_knows() -> None:
    """OpenAI wants max_completion_tokens, everybody else knows max_tokens."""
    assert "max_completion_tokens" in chat_request(request(), provider="openai", is_openai=True)
    assert "max_tokens" in chat_request(request(), provider="local", is_openai=False)
