"""Usage where the provider reports none: four characters count as one token, rounded up.

Crude, and better than nothing: a budget in tokens must not fail open because a local server counts nothing.

A reservation needs the other side: what cannot be exceeded. A token is at least one byte of what was sent, so the
bytes of a request bound its tokens, once what providers add of their own is allowed for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import msgspec
from msgspec.structs import replace

from ottod.protocol.model import (
    AssistantMessage,
    Block,
    Message,
    ModelRequest,
    Text,
    Thinking,
    ToolCall,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import MAX_CALL_TOKENS, TOKEN_COUNTS, Usage

CHARS_PER_TOKEN = 4
REQUEST_OVERHEAD_TOKENS = 1024
"""The most that providers add to a request: their own words on how tools are used, and the frame of it all."""
MESSAGE_OVERHEAD_TOKENS = 32
"""The most that they add to a message, a block or a tool: its role, its limits, the id of its call."""


def estimated_usage(request: ModelRequest, blocks: Iterable[Block]) -> Usage:
    """The usage of one call, estimated from its texts. All input counts as uncached."""
    input_chars = len(request.system)
    for message in request.messages:
        match message:
            case UserMessage():
                input_chars += len(message.text)
            case AssistantMessage():
                input_chars += sum(map(_block_chars, message.blocks))
            case ToolResults():
                input_chars += sum(len(result.text) for result in message.results)
            case _:
                assert_never(message)
    output_chars = sum(map(_block_chars, blocks))
    return Usage(input_tokens=_tokens(input_chars), output_tokens=_tokens(output_chars), calls=1)


def counted_usage(usage: Usage, request: ModelRequest, blocks: Sequence[Block]) -> Usage:
    """What the provider counted. Where it counted nothing of what was there its estimate, and no nonsense at all:
    a count below nothing would give money back, and one beyond all measure take everybody's."""
    counts = {name: min(max(0, getattr(usage, name)), MAX_CALL_TOKENS) for name in TOKEN_COUNTS}
    guess = estimated_usage(request, blocks)
    if not counts_input(usage):
        counts["input_tokens"] = guess.input_tokens
    return replace(usage, **{**counts, "output_tokens": counts["output_tokens"] or guess.output_tokens})


def counts_input(usage: Usage) -> bool:
    """Whether a provider has said anything of the input: else what is said of it is an estimate, and no bound."""
    return max(usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) > 0


def bound_frame_tokens(request: ModelRequest, *, is_framed: bool) -> int:
    """The most that everything but the messages can count. `is_framed`: the provider adds words of its own."""
    tokens = _bytes(request.system)
    if is_framed:
        tokens += REQUEST_OVERHEAD_TOKENS + sum(
            len(msgspec.json.encode(tool)) + MESSAGE_OVERHEAD_TOKENS for tool in request.tools
        )
    return tokens


def bound_tokens(messages: Iterable[Message], *, is_framed: bool) -> int:
    """The most that these messages can count as input."""
    return sum(_bound(message, MESSAGE_OVERHEAD_TOKENS if is_framed else 0) for message in messages)


def _bound(message: Message, overhead: int) -> int:
    match message:
        case UserMessage():
            return overhead + _bytes(message.text)
        case AssistantMessage():
            return overhead + sum(overhead + _block_bytes(block) for block in message.blocks)
        case ToolResults():
            return overhead + sum(
                overhead + _bytes(result.call) + _bytes(result.tool) + _bytes(result.text)
                for result in message.results
            )
        case _:
            assert_never(message)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _block_bytes(block: Block) -> int:
    match block:
        case Text():
            return _bytes(block.text)
        case Thinking():
            return _bytes(block.text) + len(block.signature) + len(block.opaque)
        case ToolCall():
            return _bytes(block.call) + _bytes(block.tool) + _bytes(block.arguments)
        case _:
            assert_never(block)


def _tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def _block_chars(block: Block) -> int:
    match block:
        case Text() | Thinking():
            return len(block.text)
        case ToolCall():
            return len(block.tool) + len(block.arguments)
        case _:
            assert_never(block)
