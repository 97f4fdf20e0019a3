"""The canonical conversation: what a worker hands to a provider and what a provider streams back.

A conversation is a tuple of messages. It is valid when every tool call of an assistant message is answered by a
result in the next message; `core.turn` sees to that, and providers may rely on it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ottod.protocol.usage import Usage


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Plain text said by the model."""

    text: str


class Thinking(msgspec.Struct, frozen=True, kw_only=True, tag="thinking", omit_defaults=True):
    """Reasoning. `signature` and `opaque` are the provider's own proofs, returned to it unchanged."""

    text: str = ""
    signature: str = ""
    opaque: str = ""
    provider: str = ""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, tag="tool_call"):
    """The model asks for a tool. `arguments` is JSON text as the model wrote it; it may be malformed."""

    call: str
    tool: str
    arguments: str = "{}"


Block = Text | Thinking | ToolCall


class UserMessage(msgspec.Struct, frozen=True, kw_only=True, tag="user", omit_defaults=True):
    """Said by a user, a parent session or another agent.

    A summary of what was said before stands for so many assistant messages: `stands_for` is above 0.
    """

    text: str
    stands_for: int = 0


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True, tag="assistant"):
    """One model response."""

    blocks: tuple[Block, ...]


class ToolResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call's one result, whatever became of the call."""

    call: str
    tool: str
    text: str
    is_error: bool = False
    ends_turn: bool = False
    """The turn ends with it: its text is the turn's last word, or says why the turn has failed."""


class ToolResults(msgspec.Struct, frozen=True, kw_only=True, tag="tool_results"):
    """The results of all calls of the assistant message before, in call order."""

    results: tuple[ToolResult, ...]


Message = UserMessage | AssistantMessage | ToolResults


class ToolSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as the model sees it. `parameters` is a JSON schema of `type: object`, without references."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model call. `idle_timeout_s`: the longest silence between two stream events; `timeout_s`: the whole.

    `purpose`: an answer in the conversation, or a summary of it that nobody but the session reads.
    """

    model: str
    messages: tuple[Message, ...]
    system: str = ""
    tools: tuple[ToolSchema, ...] = ()
    max_output_tokens: int = 8192
    temperature: float | None = None
    thinking_tokens: int = 0
    timeout_s: float = 600.0
    idle_timeout_s: float = 90.0
    purpose: Literal["answer", "summary"] = "answer"


StopReason = Literal["end", "tool_calls", "max_tokens", "refusal"]


class ModelResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole response. `model` is the one that answered, `response` the provider's id for it."""

    blocks: tuple[Block, ...]
    stop: StopReason
    usage: Usage
    model: str = ""
    response: str = ""


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="text_delta"):
    """A piece of the answer."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="thinking_delta"):
    """A piece of reasoning."""

    text: str


class ToolCallBegun(msgspec.Struct, frozen=True, kw_only=True, tag="tool_call_begun"):
    """The model has begun to write a tool call."""

    call: str
    tool: str


class ResponseCompleted(msgspec.Struct, frozen=True, kw_only=True, tag="response_completed"):
    """The last event of every stream that does not raise."""

    response: ModelResponse


ModelEvent = TextDelta | ThinkingDelta | ToolCallBegun | ResponseCompleted
