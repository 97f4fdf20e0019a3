"""A streamed message of the Anthropic Messages API, put together.

The stream is `message_start`, then for each content block `content_block_start`, deltas and `content_block_stop`,
then `message_delta` with the stop reason and the usage, then `message_stop`; `ping` anywhere; `error` at any time
instead of the rest.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ottod.errors import UNDECODABLE
from ottod.protocol.model import (
    Block,
    ModelEvent,
    ModelResponse,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegun,
)
from ottod.protocol.usage import Usage
from ottod.providers.failures import Peer, cut, malformed, status_failure
from ottod.providers.http_stream import DRAIN_S

STOP_REASONS: dict[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "pause_turn": "end",
    "tool_use": "tool_calls",
    "max_tokens": "max_tokens",
    "model_context_window_exceeded": "max_tokens",
    "refusal": "refusal",
}


# ---------------------------------------------------------------- wire events, as far as they matter here


class _WireUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: dict[str, Any] | None = None


class _Started(msgspec.Struct):
    id: str = ""
    model: str = ""
    usage: _WireUsage | None = None


class _MessageStart(msgspec.Struct, tag="message_start"):
    message: _Started


class _Content(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class _BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: _Content


class _Delta(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""


class _BlockDelta(msgspec.Struct, tag="content_block_delta"):
    index: int
    delta: _Delta


class _BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class _Stop(msgspec.Struct):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct, tag="message_delta"):
    delta: _Stop
    usage: _WireUsage | None = None


class _MessageStop(msgspec.Struct, tag="message_stop"):
    pass


class _ErrorBody(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Error(msgspec.Struct, tag="error"):
    error: _ErrorBody


class _Kind(msgspec.Struct):
    type: str = ""


_WireEvent = _MessageStart | _BlockStart | _BlockDelta | _BlockStop | _MessageDelta | _MessageStop | _Error
_decoder = msgspec.json.Decoder(_WireEvent)
_kind_decoder = msgspec.json.Decoder(_Kind)
_KINDS = {"message_start", "content_block_start", "content_block_delta", "content_block_stop"} | {
    "message_delta",
    "message_stop",
    "error",
}


class AnthropicMessage:
    """A message being put together. Blocks are keyed by the index that the API gives them."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._blocks: dict[int, _Content] = {}
        self._pieces: dict[int, list[str]] = {}
        self._head = _Started()
        self._usage: dict[str, int] = {}
        self._stop = ""
        self.drain_s: float | None = None

    def take(self, data: bytes) -> list[ModelEvent]:
        """One wire event; what it means to a watcher. Raises ProviderError."""
        try:
            event = _decoder.decode(data)
        except UNDECODABLE as error:
            if self._is_unknown(data):
                return []
            raise malformed(self._peer, str(error)) from error
        match event:
            case _MessageStart(message=message):
                self._head = message
                self._count(message.usage)
            case _BlockStart(index=index, content_block=block):
                self._blocks[index] = block
                self._pieces[index] = [block.text or block.thinking]
                return _begun(block)
            case _BlockDelta(index=index, delta=delta):
                return self._grow(index, delta)
            case _MessageDelta(delta=stop, usage=usage):
                self._stop = stop.stop_reason or self._stop
                self._count(usage)
            case _MessageStop():
                self.drain_s = DRAIN_S
            case _Error(error=body):
                raise status_failure(self._peer, 0, kind=body.type, message=body.message, has_begun=True)
            case _BlockStop():
                pass
        return []

    def response(self) -> ModelResponse:
        """The whole message. Raises ProviderError if it is not whole."""
        if self.drain_s is None:
            raise cut(self._peer, "it ended before message_stop")
        blocks = tuple(b for i in sorted(self._blocks) if (b := self._block(i)) is not None)
        default: StopReason = "tool_calls" if any(isinstance(b, ToolCall) for b in blocks) else "end"
        return ModelResponse(
            blocks=blocks,
            stop=STOP_REASONS.get(self._stop, default),
            usage=Usage(calls=1, **self._usage),
            model=self._head.model,
            response=self._head.id,
        )

    def _is_unknown(self, data: bytes) -> bool:
        """A new kind of event is skipped, as the API's versioning policy asks."""
        try:
            return _kind_decoder.decode(data).type not in _KINDS | {""}
        except UNDECODABLE:
            return False

    def _grow(self, index: int, delta: _Delta) -> list[ModelEvent]:
        if index not in self._blocks:
            raise malformed(self._peer, f"a delta for block {index}, which was not started")
        match delta.type:
            case "text_delta":
                self._pieces[index].append(delta.text)
                return [TextDelta(text=delta.text)] if delta.text else []
            case "thinking_delta":
                self._pieces[index].append(delta.thinking)
                return [ThinkingDelta(text=delta.thinking)] if delta.thinking else []
            case "signature_delta":
                self._blocks[index].signature += delta.signature
            case "input_json_delta":
                self._pieces[index].append(delta.partial_json)
        return []

    def _block(self, index: int) -> Block | None:
        block, text = self._blocks[index], "".join(self._pieces[index])
        match block.type:
            case "text":
                return Text(text=text) if text else None
            case "thinking":
                return Thinking(text=text, signature=block.signature, provider=self._peer.name)
            case "redacted_thinking":
                return Thinking(opaque=block.data, provider=self._peer.name)
            case "tool_use":
                arguments = text or msgspec.json.encode(block.input).decode()
                return ToolCall(call=block.id, tool=block.name, arguments=arguments)
            case _:
                return None

    def _count(self, usage: _WireUsage | None) -> None:
        """Counts are cumulative: a later one replaces an earlier one."""
        if usage is None:
            return
        details = usage.output_tokens_details or {}
        for name, value in (
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
            ("cache_read_tokens", usage.cache_read_input_tokens),
            ("cache_write_tokens", usage.cache_creation_input_tokens),
            ("reasoning_tokens", details.get("thinking_tokens")),
        ):
            if isinstance(value, int):
                self._usage[name] = value


def _begun(block: _Content) -> list[ModelEvent]:
    match block.type:
        case "tool_use":
            return [ToolCallBegun(call=block.id, tool=block.name)]
        case "text" if block.text:
            return [TextDelta(text=block.text)]
        case "thinking" if block.thinking:
            return [ThinkingDelta(text=block.thinking)]
        case _:
            return []
