"""What only the Messages API has: breakpoints, thinking modes, opaque thinking, unknown events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ottod.errors import ProviderError
from ottod.protocol.model import (
    AssistantMessage,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegun,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.providers.anthropic_request import messages_request
from ottod.providers.anthropic_stream import AnthropicMessage
from ottod.providers.failures import Peer
from tests.fakes.wire_rig import request

PEER = Peer(name="anthropic", base_url="http://127.0.0.1", key_variable="ANTHROPIC_API_KEY", key="sk-1")


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    return messages_request(request(*messages, **fields), provider="anthropic")


def feed(message: AnthropicMessage, *events: dict[str, Any]) -> list[Any]:
    return [out for event in events for out in message.take(json.dumps(event).encode())]


def test_breakpoints_follow_the_system_prompt_and_the_two_newest_inputs() -> None:
    """Three places are marked, whatever the conversation's length: the rest of history is there to be reused."""
    call = ToolCall(call="c", tool="fs_read", arguments='{"path": "a"}')
    result = ToolResults(results=(ToolResult(call="c", tool="fs_read", text="data"),))
    made = body(UserMessage(text="x"), AssistantMessage(blocks=(call,)), result)
    assert made["system"] == [{"type": "text", "text": "You fix bugs.", "cache_control": {"type": "ephemeral"}}]
    assert "cache_control" in made["messages"][-1]["content"][-1]
    assert "cache_control" in made["messages"][0]["content"][-1]
    assert json.dumps(made).count("cache_control") == 3
    longer = body(UserMessage(text="x"), *(AssistantMessage(blocks=(call,)), result) * 20)
    assert [i for i, m in enumerate(longer["messages"]) if "cache_control" in json.dumps(m)] == [38, 40]
    without_system = body(system="")
    assert "cache_control" in without_system["tools"][-1]
    assert "system" not in without_system


@pytest.mark.parametrize(
    ("model", "wants_budget"),
    [
        ("claude-3-7-sonnet-20250219", True),
        ("claude-opus-4-20250514", True),
        ("claude-opus-4-5", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-opus-4-6", False),
        ("claude-opus-4-8", False),
        ("claude-sonnet-5", False),
        ("claude-sonnet-5-5", False),
        ("claude-fable-5-2", False),
        ("some-future-model", False),
    ],
)
def test_each_model_gets_the_thinking_mode_it_takes(model: str, wants_budget: bool) -> None:
    """Budgets up to 4.5, effort from then on; either is an error to the other."""
    made = body(model=model, thinking_tokens=6000, max_output_tokens=8192, temperature=0.3)
    if wants_budget:
        assert made["thinking"] == {"type": "enabled", "budget_tokens": 6000}
    else:
        assert made["thinking"] == {"type": "adaptive", "display": "summarized"}
        assert made["output_config"] == {"effort": "medium"}
    assert "extra_body" not in made  # Thinking models refuse a temperature.


def test_a_budget_stays_below_the_output_limit_and_above_the_least() -> None:
    """The API refuses a budget of the whole output, and one below 1,024."""
    made = body(model="claude-opus-4-5", thinking_tokens=50_000, max_output_tokens=4096)
    assert made["thinking"]["budget_tokens"] == 4095
    assert (
        body(model="claude-opus-4-5", thinking_tokens=10, max_output_tokens=4096)["thinking"]["budget_tokens"] == 1024
    )
    assert "thinking" not in body(model="claude-opus-4-5", thinking_tokens=2000, max_output_tokens=800)


def test_thinking_goes_back_as_it_came_and_only_to_whom_it_came_from() -> None:
    """Signatures and redacted data are returned unchanged; blocks without proof or of others are left out."""
    blocks = (
        Thinking(text="mine", signature="sig", provider="anthropic"),
        Thinking(opaque="secret==", provider="anthropic"),
        Thinking(text="unsigned", provider="anthropic"),
        Thinking(text="theirs", signature="x", provider="openai"),
        Text(text="said"),
    )
    made = body(UserMessage(text="x"), AssistantMessage(blocks=blocks), UserMessage(text="y"))
    assert made["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "mine", "signature": "sig"},
        {"type": "redacted_thinking", "data": "secret=="},
        {"type": "text", "text": "said"},
    ]


def test_redacted_thinking_unknown_events_and_unknown_blocks() -> None:
    """What is opaque is kept, what is new is skipped, and what was meant for the watcher arrives."""
    message = AnthropicMessage(PEER)
    out = feed(
        message,
        {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 9}}},
        {"type": "brand_new", "index": "what", "delta": 5},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "redacted_thinking", "data": "zz"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "thinking", "thinking": "h"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "thinking_delta", "thinking": "m"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "signature_delta", "signature": "s1"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "novelty", "text": ""}},
        {"type": "content_block_start", "index": 3, "content_block": {"type": "text", "text": "a"}},
        {"type": "content_block_delta", "index": 3, "delta": {"type": "citations_delta", "citation": {}}},
        {"type": "content_block_start", "index": 4, "content_block": {"type": "tool_use", "id": "t", "name": "n"}},
        {"type": "content_block_stop", "index": 4},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    )
    assert out == [
        ThinkingDelta(text="h"),
        ThinkingDelta(text="m"),
        TextDelta(text="a"),
        ToolCallBegun(call="t", tool="n"),
    ]
    response = message.response()
    assert response.blocks == (
        Thinking(opaque="zz", provider="anthropic"),
        Thinking(text="hm", signature="s1", provider="anthropic"),
        Text(text="a"),
        ToolCall(call="t", tool="n", arguments="{}"),
    )
    assert (response.stop, response.usage.input_tokens, response.usage.output_tokens) == ("tool_calls", 9, 3)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "message_start"},
        {"type": "content_block_start", "index": "0", "content_block": {"type": "text"}},
        [],
        {"no": "type"},
    ],
)
def test_events_that_break_the_protocol_are_malformed(event: Any) -> None:
    """A known event of the wrong shape is the provider's failure, never a crash of ours."""
    with pytest.raises(ProviderError) as caught:
        feed(AnthropicMessage(PEER), event)
    assert (caught.value.code, caught.value.retryable) == ("malformed", True)


@pytest.mark.parametrize(
    "thoughts",
    [
        (Thinking(text="mine", signature="sig", provider="anthropic"),),
        (Thinking(text="mine", signature="sig", provider="anthropic"), Text(text="  ")),
        (Thinking(opaque="secret==", provider="anthropic"), Thinking(text="cut", provider="anthropic")),
    ],
)
def test_an_answer_that_came_to_nothing_but_thinking_is_left_out(thoughts: tuple[Any, ...]) -> None:
    """It was cut, or said nothing: the API takes no message that ends in thinking, and the session goes on."""
    made = body(UserMessage(text="x"), AssistantMessage(blocks=thoughts), UserMessage(text="y"))
    assert [[block["text"] for block in m["content"]] for m in made["messages"]] == [["x", "y"]]
    said = body(UserMessage(text="x"), AssistantMessage(blocks=(Text(text="said"), *thoughts)), UserMessage(text="y"))
    assert said["messages"][1]["content"] == [{"type": "text", "text": "said"}]


def test_a_budget_for_thinking_needs_an_answer_that_began_with_it() -> None:
    """In the middle of a step of tools: one of another model, or with redacted thoughts, has none."""
    call, result = ToolCall(call="c", tool="t"), ToolResults(results=(ToolResult(call="c", tool="t", text="r"),))
    mine = Thinking(text="mine", signature="sig", provider="anthropic")
    fields = {"model": "claude-opus-4-5", "thinking_tokens": 2000, "max_output_tokens": 8000}
    for thought, wants in ((mine, True), (Thinking(text="no proof"), False)):
        made = body(UserMessage(text="x"), AssistantMessage(blocks=(thought, call)), result, **fields)
        assert ("thinking" in made) is wants
        later = body(
            UserMessage(text="x"),
            AssistantMessage(blocks=(thought, call)),
            result,
            AssistantMessage(blocks=(Text(text="done"),)),
            UserMessage(text="more"),
            **fields,
        )
        assert "thinking" in later
