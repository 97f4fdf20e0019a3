"""Chat Completions: requests, and its stream put together.

Many servers speak this protocol and few speak all of it, so the reader takes what it gets: calls without an id or
an index, arguments as an object, no usage, no `[DONE]`, reasoning under two names. A response counts as whole once
a finish reason or `[DONE]` has come.
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from ottod.errors import UNDECODABLE
from ottod.protocol.model import (
    AssistantMessage,
    Block,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegun,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage
from ottod.providers.effort import effort
from ottod.providers.failures import Peer, cut, malformed, status_failure
from ottod.providers.http_stream import DRAIN_S
from ottod.providers.openai_usage import TokenDetails, openai_usage
from ottod.providers.tool_arguments import arguments_text

USAGE_S = 5.0
"""How long the usage and `[DONE]` may take after the finish reason; then the response counts without them."""

MAX_TOOL_CALLS = 256
"""More calls than this in one response are a server gone wrong."""

STOP_REASONS: dict[str, StopReason] = {
    "stop": "end",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "max_tokens",
    "content_filter": "refusal",
}


def chat_request(request: ModelRequest, *, provider: str, is_openai: bool) -> dict[str, Any]:
    """The arguments of `chat.completions.create`, without `stream`. Compatible servers know only `max_tokens`."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    for message in request.messages:
        messages += _messages(message, provider)
    body: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "max_completion_tokens" if is_openai else "max_tokens": request.max_output_tokens,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.thinking_tokens:
        body["reasoning_effort"] = effort(request.thinking_tokens)
    return body


def _messages(message: UserMessage | AssistantMessage | ToolResults, provider: str) -> list[dict[str, Any]]:
    match message:
        case UserMessage():
            return [{"role": "user", "content": message.text}]
        case ToolResults():
            return [
                {"role": "tool", "tool_call_id": result.call, "content": result.text} for result in message.results
            ]
        case AssistantMessage():
            said = _assistant(message, provider)
            return [said] if len(said) > 1 else []
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage, provider: str) -> dict[str, Any]:
    """Reasoning goes back with the calls it led to, under the name it came with.

    In later turns as well: a server leaves out what its model no longer wants, and what has been sent once and is
    then missing would make all that follows new to its cache.
    """
    said: dict[str, Any] = {"role": "assistant"}
    text = "".join(block.text for block in message.blocks if isinstance(block, Text))
    calls = [block for block in message.blocks if isinstance(block, ToolCall)]
    if text or calls:
        said["content"] = text or None
    if calls:
        said["tool_calls"] = [
            {
                "id": call.call,
                "type": "function",
                "function": {"name": call.tool, "arguments": arguments_text(call.arguments)},
            }
            for call in calls
        ]
    for block in message.blocks if calls else ():
        if isinstance(block, Thinking) and block.opaque in _REASONING_FIELDS and block.provider == provider:
            said[block.opaque] = said.get(block.opaque, "") + block.text
    return said


_REASONING_FIELDS = ("reasoning_content", "reasoning")


# ---------------------------------------------------------------- wire chunks, as far as they matter here


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _WireUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None


class _Chunk(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _WireUsage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class _Call:
    """A tool call being written."""

    def __init__(self, *, call: str, wire_id: str) -> None:
        self.call = call
        self.wire_id = wire_id
        self.tool = ""
        self.arguments: list[str] = []


class ChatMessage:
    """A response being put together."""

    def __init__(self, peer: Peer, request: ModelRequest) -> None:
        self._peer = peer
        self._request = request
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._reasoning_field = ""
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}
        self._finish = ""
        self._refused = False
        self._usage: _WireUsage | None = None
        self._model = self._id = ""
        self.drain_s: float | None = None

    def take(self, data: bytes) -> list[ModelEvent]:
        """One chunk; what it means to a watcher. Raises ProviderError."""
        if data.startswith(b"[DONE]"):
            self.drain_s = DRAIN_S
            return []
        try:
            chunk = _decoder.decode(data)
        except UNDECODABLE as error:
            raise malformed(self._peer, str(error)) from error
        if chunk.error:
            raise self._failure(chunk.error)
        self._model, self._id = chunk.model or self._model, chunk.id or self._id
        self._usage = chunk.usage or self._usage
        out: list[ModelEvent] = []
        for choice in (chunk.choices or ())[:1]:
            if choice.finish_reason:
                self._finish, self.drain_s = choice.finish_reason, USAGE_S
            if choice.delta is not None:
                self._grow(choice.delta, out)
        return out

    def response(self) -> ModelResponse:
        """The whole response. Raises ProviderError if it is not whole."""
        if self.drain_s is None:
            raise cut(self._peer, "it ended before a finish reason")
        blocks: list[Block] = []
        if self._reasoning:
            text = "".join(self._reasoning)
            blocks.append(Thinking(text=text, opaque=self._reasoning_field, provider=self._peer.name))
        if self._text:
            blocks.append(Text(text="".join(self._text)))
        for call in self._calls:
            arguments = "".join(call.arguments)
            blocks.append(
                ToolCall(call=call.call, tool=call.tool, arguments=arguments if arguments.strip() else "{}")
            )
        stop = STOP_REASONS.get(self._finish, "end")
        if stop in ("end", "tool_calls"):
            # Some servers finish a response that calls tools with `stop`, and the reverse.
            stop = "tool_calls" if self._calls else "refusal" if self._refused else "end"
        return ModelResponse(
            blocks=tuple(blocks),
            stop=stop,
            usage=self._counted(),
            model=self._model,
            response=self._id,
        )

    def _failure(self, error: Any) -> Exception:
        said = error if isinstance(error, dict) else {"message": str(error)}
        kind = next((str(said[k]) for k in ("code", "type") if isinstance(said.get(k), str)), "")
        status = said.get("code")
        status = status if isinstance(status, int) else 0
        return status_failure(self._peer, status, kind=kind, message=str(said.get("message") or ""), has_begun=True)

    def _grow(self, delta: _Delta, out: list[ModelEvent]) -> None:
        for field in _REASONING_FIELDS:
            text = getattr(delta, field)
            # A server that sends both names says the same under both.
            if text and self._reasoning_field in ("", field):
                self._reasoning_field = field
                self._reasoning.append(text)
                out.append(ThinkingDelta(text=text))
        for text in (delta.content, delta.refusal):
            if text:
                self._text.append(text)
                out.append(TextDelta(text=text))
        self._refused = self._refused or bool(delta.refusal)
        for call in delta.tool_calls or ():
            self._grow_call(call, out)

    def _grow_call(self, delta: _CallDelta, out: list[ModelEvent]) -> None:
        call = self._call_of(delta)
        function = delta.function or _Function()
        if function.name and not call.tool:
            call.tool = function.name
            out.append(ToolCallBegun(call=call.call, tool=call.tool))
        if isinstance(function.arguments, str):
            call.arguments.append(function.arguments)
        elif function.arguments is not None:
            call.arguments.append(msgspec.json.encode(function.arguments).decode())

    def _call_of(self, delta: _CallDelta) -> _Call:
        """The call that a delta belongs to. A new id begins a new call, even at an index already taken."""
        call = self._at.get(delta.index) if delta.index is not None else (self._calls[-1] if self._calls else None)
        other_id = call is not None and delta.id and call.wire_id and delta.id != call.wire_id
        unnamed = delta.index is None and not delta.id
        begins = call is None or other_id or (unnamed and bool(delta.function and delta.function.name))
        if not begins and call is not None:
            return call
        if len(self._calls) >= MAX_TOOL_CALLS:
            raise malformed(self._peer, f"more than {MAX_TOOL_CALLS} tool calls")
        call = _Call(call=self._fresh_id(delta.id or ""), wire_id=delta.id or "")
        self._calls.append(call)
        if delta.index is not None:
            self._at[delta.index] = call
        return call

    def _fresh_id(self, wire_id: str) -> str:
        """The server's id, or one of ours that is unique in the conversation."""
        taken = any(call.call == wire_id for call in self._calls)
        return wire_id if wire_id and not taken else f"call_{len(self._request.messages)}_{len(self._calls)}"

    def _counted(self) -> Usage:
        usage = self._usage
        if usage is None or usage.prompt_tokens is None:
            return Usage(calls=1)  # Nobody counted; that is for whoever knows an estimate from a count.
        return openai_usage(
            total_input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens or 0,
            cached=usage.prompt_tokens_details,
            output=usage.completion_tokens_details,
        )
