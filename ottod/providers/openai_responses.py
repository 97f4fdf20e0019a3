"""The Responses API: requests, and its stream put together.

Nothing is stored at OpenAI (`store: false`), so every call carries the whole conversation, and reasoning goes back
as the items that came, with their encrypted content. The stream names output items by index: `output_item.added`,
deltas, `output_item.done` with the whole item; `response.completed`, `.incomplete` or `.failed` ends it.
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


def responses_request(request: ModelRequest, *, provider: str) -> dict[str, Any]:
    """The arguments of `responses.create`, without `stream`."""
    body: dict[str, Any] = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message, provider)],
        "max_output_tokens": request.max_output_tokens,
        "store": False,
    }
    if request.system:
        body["instructions"] = request.system
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                # Strict mode would refuse schemas with optional fields.
                "strict": False,
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.thinking_tokens:
        body["reasoning"] = {"effort": effort(request.thinking_tokens), "summary": "auto"}
        # Asked for only here: models that do not reason refuse it.
        body["include"] = ["reasoning.encrypted_content"]
    return body


def _items(message: UserMessage | AssistantMessage | ToolResults, provider: str) -> list[dict[str, Any]]:
    match message:
        case UserMessage():
            return [{"type": "message", "role": "user", "content": message.text}]
        case AssistantMessage():
            items = [_item(block, provider) for block in message.blocks]
            said = [item for item in items if item is not None]
            # The API takes no reasoning that nothing follows, which an answer that was cut can end in.
            while said and said[-1]["type"] == "reasoning":
                said.pop()
            return said
        case ToolResults():
            return [
                {"type": "function_call_output", "call_id": result.call, "output": result.text}
                for result in message.results
            ]
        case _:
            assert_never(message)


def _item(block: Block, provider: str) -> dict[str, Any] | None:
    match block:
        case Text():
            return {"type": "message", "role": "assistant", "content": block.text} if block.text else None
        case Thinking():
            # An item without encrypted content cannot be sent back: it was not stored.
            if not block.opaque or block.provider != provider:
                return None
            item: dict[str, Any] = msgspec.json.decode(block.opaque)
            return item
        case ToolCall():
            return {
                "type": "function_call",
                "call_id": block.call,
                "name": block.tool,
                "arguments": arguments_text(block.arguments),
            }
        case _:
            assert_never(block)


# ---------------------------------------------------------------- wire events, as far as they matter here


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""


class _Item(msgspec.Struct):
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None


class _WireUsage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None


class _Why(msgspec.Struct):
    reason: str | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None


class _Response(msgspec.Struct):
    id: str = ""
    model: str = ""
    output: list[_Item] | None = None
    usage: _WireUsage | None = None
    incomplete_details: _Why | None = None
    error: _Why | None = None


class _WireEvent(msgspec.Struct):
    """Any event of the stream; those that do not matter are recognised by nothing but their type."""

    type: str = ""
    output_index: int = 0
    delta: Any = None
    item: _Item | None = None
    response: _Response | None = None
    code: str | None = None
    message: str | None = None
    error: _Why | None = None


_decoder = msgspec.json.Decoder(_WireEvent)


class ResponsesMessage:
    """A response being put together. Items are keyed by output index."""

    def __init__(self, peer: Peer, request: ModelRequest) -> None:
        self._peer = peer
        self._request = request
        self._items: dict[int, _Item] = {}
        self._done: dict[int, _Item] = {}
        self._end: _Response | None = None
        self._summary_parts = 0
        self.drain_s: float | None = None

    def take(self, data: bytes) -> list[ModelEvent]:
        """One wire event; what it means to a watcher. Raises ProviderError."""
        if data.startswith(b"[DONE]"):
            return []
        try:
            event = _decoder.decode(data)
        except UNDECODABLE as error:
            raise malformed(self._peer, str(error)) from error
        match event.type:
            case "response.output_text.delta" | "response.refusal.delta" if isinstance(event.delta, str):
                return [TextDelta(text=event.delta)]
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" if isinstance(
                event.delta, str
            ):
                return [ThinkingDelta(text=event.delta)]
            case "response.reasoning_summary_part.added":
                return self._next_summary_part()
            case "response.output_item.added" if event.item is not None:
                return self._begin(event.output_index, event.item)
            case "response.output_item.done" if event.item is not None:
                self._done[event.output_index] = event.item
            case "response.completed" | "response.incomplete" if event.response is not None:
                self._end = event.response
                self.drain_s = DRAIN_S
            case "response.failed":
                why = (event.response.error if event.response else None) or _Why()
                raise self._failure(why)
            case "error":
                raise self._failure(event.error or _Why(code=event.code, message=event.message))
            case "" if event.error is not None:
                raise self._failure(event.error)
            case _:
                pass
        return []

    def response(self) -> ModelResponse:
        """The whole response. Raises ProviderError if it is not whole."""
        if self._end is None:
            raise cut(self._peer, "it ended before response.completed")
        items = dict(enumerate(self._end.output or ())) | self._done
        blocks = tuple(b for i in sorted(items) if (b := self._block(i, items[i])) is not None)
        return ModelResponse(
            blocks=blocks,
            stop=self._stop(items, blocks),
            usage=self._usage(),
            model=self._end.model,
            response=self._end.id,
        )

    def _failure(self, why: _Why) -> Exception:
        return status_failure(
            self._peer, 0, kind=why.code or why.type or "", message=why.message or "", has_begun=True
        )

    def _begin(self, index: int, item: _Item) -> list[ModelEvent]:
        self._items[index] = item
        self._summary_parts = 0
        if item.type == "function_call":
            return [ToolCallBegun(call=self._call_id(index, item), tool=item.name or "")]
        return []

    def _next_summary_part(self) -> list[ModelEvent]:
        """Parts of a summary are paragraphs, as in the finished block."""
        self._summary_parts += 1
        return [ThinkingDelta(text="\n\n")] if self._summary_parts > 1 else []

    def _call_id(self, index: int, item: _Item) -> str:
        """Compatible servers may leave ids out; ours is unique in the conversation."""
        begun = self._items.get(index, item)
        return begun.call_id or item.call_id or item.id or f"call_{len(self._request.messages)}_{index}"

    def _block(self, index: int, item: _Item) -> Block | None:
        match item.type:
            case "message":
                text = "".join(part.text or part.refusal for part in item.content or ())
                return Text(text=text) if text else None
            case "reasoning":
                summary = "\n\n".join(part.text for part in item.summary or ())
                text = summary or "".join(part.text for part in item.content or ())
                return Thinking(text=text, opaque=_opaque(item), provider=self._peer.name)
            case "function_call":
                return ToolCall(
                    call=self._call_id(index, item), tool=item.name or "", arguments=item.arguments or "{}"
                )
            case _:
                return None

    def _stop(self, items: dict[int, _Item], blocks: tuple[Block, ...]) -> StopReason:
        assert self._end is not None
        reason = self._end.incomplete_details.reason if self._end.incomplete_details else None
        if reason == "content_filter":
            return "refusal"
        if reason is not None:
            return "max_tokens"
        if any(isinstance(block, ToolCall) for block in blocks):
            return "tool_calls"
        refused = any(part.type == "refusal" for item in items.values() for part in item.content or ())
        return "refusal" if refused else "end"

    def _usage(self) -> Usage:
        assert self._end is not None
        if self._end.usage is None:
            return Usage(calls=1)  # Nobody counted; that is for whoever knows an estimate from a count.
        return openai_usage(
            total_input_tokens=self._end.usage.input_tokens,
            output_tokens=self._end.usage.output_tokens,
            cached=self._end.usage.input_tokens_details,
            output=self._end.usage.output_tokens_details,
        )


def _opaque(item: _Item) -> str:
    """The item as it goes back, or nothing when it cannot."""
    if not item.encrypted_content:
        return ""
    back: dict[str, Any] = {
        "type": "reasoning",
        "id": item.id or "",
        "summary": [{"type": part.type, "text": part.text} for part in item.summary or ()],
        "encrypted_content": item.encrypted_content,
    }
    if item.content:
        back["content"] = [{"type": part.type, "text": part.text} for part in item.content]
    return msgspec.json.encode(back).decode()
