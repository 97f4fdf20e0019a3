"""A canonical conversation as the body of a Messages API call.

Prompt caching: everything up to a breakpoint is cached (tools, system, messages, in this order). One breakpoint goes
after the system prompt, which never changes in a session; one after the newest message, which the next call repeats;
and one where the call before had its newest: the cache looks back only so many blocks from a breakpoint for what it
has, and one step of many calls can be longer than that.
"""

from __future__ import annotations

import re
from typing import Any, assert_never

from ottod.protocol.model import (
    AssistantMessage,
    Message,
    ModelRequest,
    Text,
    Thinking,
    ToolCall,
    ToolResults,
    UserMessage,
)
from ottod.providers.effort import effort
from ottod.providers.tool_arguments import arguments_object

MIN_THINKING_TOKENS = 1024
"""The least budget that the API accepts where it takes budgets."""

NO_TEXT = "(no text)"
"""The API refuses blank text blocks, but the conversation may hold one."""

_BREAKPOINT = {"type": "ephemeral"}
_THOUGHTS = ("thinking", "redacted_thinking")

_TAKES_BUDGETS = re.compile(r"claude-(3|instant|2)|claude-[a-z]+-4(-[0-5])?(-\d{8}|-latest|@.*)?$")
"""Models up to 4.5 take a thinking budget; later ones refuse it and think adaptively, by effort."""


def messages_request(request: ModelRequest, *, provider: str) -> dict[str, Any]:
    """The arguments of `messages.create`, without `stream`. Thinking of other providers is left out."""
    messages = _messages(request.messages, provider)
    for message in [m for m in messages if m["role"] == "user"][-2:]:
        message["content"][-1]["cache_control"] = _BREAKPOINT
    if messages:
        messages[-1]["content"][-1]["cache_control"] = _BREAKPOINT
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_output_tokens,
        "messages": messages,
        **_thinking(request, messages),
    }
    if request.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in request.tools
        ]
    if request.system.strip():
        body["system"] = [{"type": "text", "text": request.system, "cache_control": _BREAKPOINT}]
    elif request.tools:
        body["tools"][-1]["cache_control"] = _BREAKPOINT
    if request.temperature is not None and "thinking" not in body:
        # The SDK no longer knows the field, since current models refuse it; older ones take 0 to 1.
        body["extra_body"] = {"temperature": min(request.temperature, 1.0)}
    return body


def _thinking(request: ModelRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not request.thinking_tokens:
        return {}
    if not _TAKES_BUDGETS.search(request.model):
        # Without `summarized`, current models think in silence and a watcher sees nothing.
        return {
            "thinking": {"type": "adaptive", "display": "summarized"},
            "output_config": {"effort": effort(request.thinking_tokens)},
        }
    budget = min(max(request.thinking_tokens, MIN_THINKING_TOKENS), request.max_output_tokens - 1)
    if budget < MIN_THINKING_TOKENS or not _may_think(messages):
        return {}
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _may_think(messages: list[dict[str, Any]]) -> bool:
    """With a budget, an answer whose calls have just got their results must begin with thinking. One that another
    model gave, or that had a secret in its thoughts, has none: then this step goes without."""
    if len(messages) < 2 or messages[-1]["content"][0]["type"] != "tool_result":
        return True
    kind: str = messages[-2]["content"][0]["type"]
    return kind in _THOUGHTS


def _messages(conversation: tuple[Message, ...], provider: str) -> list[dict[str, Any]]:
    """Alternating roles: neighbours of one role become one message."""
    messages: list[dict[str, Any]] = []
    for message in conversation:
        role, content = _content(message, provider)
        if not content:
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += content
        else:
            messages.append({"role": role, "content": content})
    return messages


def _content(message: Message, provider: str) -> tuple[str, list[dict[str, Any]]]:
    match message:
        case UserMessage():
            return "user", [{"type": "text", "text": message.text if message.text.strip() else NO_TEXT}]
        case AssistantMessage():
            blocks = [_block(block, provider) for block in message.blocks]
            said = [block for block in blocks if block is not None]
            # The API takes no message that ends in thinking, which an answer that was cut can do.
            while said and said[-1]["type"] in _THOUGHTS:
                said.pop()
            return "assistant", said
        case ToolResults():
            return "user", [
                {
                    "type": "tool_result",
                    "tool_use_id": result.call,
                    "content": result.text if result.text.strip() else NO_TEXT,
                    **({"is_error": True} if result.is_error else {}),
                }
                for result in message.results
            ]
        case _:
            assert_never(message)


def _block(block: Text | Thinking | ToolCall, provider: str) -> dict[str, Any] | None:
    match block:
        case Text():
            return {"type": "text", "text": block.text} if block.text.strip() else None
        case Thinking() if block.provider != provider:
            return None
        case Thinking() if block.opaque:
            return {"type": "redacted_thinking", "data": block.opaque}
        case Thinking():
            if not block.signature:
                return None
            return {"type": "thinking", "thinking": block.text, "signature": block.signature}
        case ToolCall():
            return {
                "type": "tool_use",
                "id": block.call,
                "name": block.tool,
                "input": arguments_object(block.arguments),
            }
        case _:
            assert_never(block)
