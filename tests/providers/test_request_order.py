"""What was sent once is sent again byte by byte: a provider's cache knows a request by how it begins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.protocol.model import (
    AssistantMessage,
    Block,
    Message,
    ModelRequest,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    ToolSchema,
    UserMessage,
)
from ottod.providers.anthropic_request import messages_request
from ottod.providers.openai_chat import chat_request
from ottod.providers.openai_responses import responses_request

TOOLS = tuple(
    ToolSchema(name=name, description=f"does {name}", parameters={"type": "object", "properties": {}})
    for name in ("shell", "fs_read")
)
TEXTS = st.text(max_size=6)
OPAQUE = {"chat": "reasoning", "responses": '{"type": "reasoning", "id": "r"}', "anthropic": "abc="}


def thoughts(api: str) -> st.SearchStrategy[Thinking]:
    """Reasoning as this API leaves it, and as others do."""
    return st.builds(
        Thinking,
        text=TEXTS,
        signature=st.sampled_from(["", "sig"]),
        opaque=st.sampled_from(["", OPAQUE[api]]),
        provider=st.sampled_from(["here", "elsewhere"]),
    )


@st.composite
def stories(draw: st.DrawFn, api: str) -> tuple[tuple[Message, ...], list[int]]:
    """A conversation, and how long it was at each model call."""
    messages: list[Message] = []
    calls: list[int] = []
    for turn in range(draw(st.integers(1, 3))):
        messages.append(UserMessage(text=draw(TEXTS)))
        for step in range(draw(st.integers(0, 3))):
            calls.append(len(messages))
            names = [f"c{turn}-{step}-{i}" for i in range(draw(st.integers(1, 3)))]
            blocks: list[Block] = [*draw(st.lists(thoughts(api), max_size=2)), Text(text=draw(TEXTS))]
            blocks += [
                ToolCall(call=n, tool="shell", arguments=draw(st.sampled_from(["{}", "{", '{"a":1}']))) for n in names
            ]
            messages.append(AssistantMessage(blocks=tuple(blocks)))
            messages.append(
                ToolResults(results=tuple(ToolResult(call=n, tool="shell", text=draw(TEXTS)) for n in names))
            )
            if draw(st.booleans()):
                messages.append(UserMessage(text=draw(TEXTS)))
        calls.append(len(messages))
        messages.append(AssistantMessage(blocks=(*draw(st.lists(thoughts(api), max_size=1)), Text(text=draw(TEXTS)))))
    return tuple(messages), calls


def anthropic_pieces(request: ModelRequest) -> list[Any]:
    """Roles and blocks in order. A mark says where the cache is to keep something, and is no part of that."""
    body = messages_request(request, provider="here")
    blocks = [[m["role"], block] for m in body["messages"] for block in m["content"]]
    return [body["tools"], body["system"], *[[role, unmarked(block)] for role, block in blocks]]


def unmarked(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != "cache_control"}


def chat_pieces(request: ModelRequest) -> list[Any]:
    body = chat_request(request, provider="here", is_openai=False)
    return [body["tools"], *body["messages"]]


def responses_pieces(request: ModelRequest) -> list[Any]:
    body = responses_request(request, provider="here")
    return [body["tools"], body["instructions"], *body["input"]]


PIECES = {"anthropic": anthropic_pieces, "chat": chat_pieces, "responses": responses_pieces}


@pytest.mark.parametrize("api", PIECES)
@given(data=st.data())
def test_each_request_begins_with_the_one_before(api: str, data: st.DataObject) -> None:
    """System prompt, tools and all older messages are the same bytes in every call of a conversation."""
    messages, calls = data.draw(stories(api))
    before: list[str] = []
    for length in calls:
        request = ModelRequest(model="m", messages=messages[:length], system="You fix bugs.", tools=TOOLS)
        now = [json.dumps(piece) for piece in PIECES[api](request)]
        assert now[: len(before)] == before
        before = now


@given(story=stories("anthropic"))
def test_the_newest_input_and_the_one_before_are_marked(story: tuple[tuple[Message, ...], list[int]]) -> None:
    """The cache is asked to keep what this call adds, and looks for what the call before has left."""
    messages, calls = story
    kept: set[int] = set()
    for length in calls:
        request = ModelRequest(model="m", messages=messages[:length], system="You fix bugs.", tools=TOOLS)
        body = messages_request(request, provider="here")
        blocks = [block for m in body["messages"] for block in m["content"]]
        marked = {i for i, block in enumerate(blocks) if "cache_control" in block}
        assert len(blocks) - 1 in marked and len(marked) <= 2
        joined = len(kept) and max(kept) not in marked
        # Two inputs in a row are one message: what the call before marked is then near enough to be found.
        assert not joined or len(blocks) - 1 - max(kept) <= 20
        kept = marked
