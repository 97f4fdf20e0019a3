"""Usage where the provider reports none: four characters count as one token, rounded up.

Crude, and better than nothing: a budget in tokens must not fail open because a local server counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from ottod.protocol.model import (
    AssistantMessage,
    Block,
    ModelRequest,
    Text,
    Thinking,
    ToolCall,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage

CHARS_PER_TOKEN = 4


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
