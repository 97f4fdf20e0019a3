"""OpenAI's counts as ours."""

from __future__ import annotations

import msgspec

from ottod.protocol.usage import Usage


class TokenDetails(msgspec.Struct):
    """What both APIs say about the tokens of one direction."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


def openai_usage(
    *, total_input_tokens: int, output_tokens: int, cached: TokenDetails | None, output: TokenDetails | None
) -> Usage:
    """The usage of one call. OpenAI counts cached tokens as part of the input; here they are apart."""
    cached, output = cached or TokenDetails(), output or TokenDetails()
    read, write = cached.cached_tokens or 0, cached.cache_write_tokens or 0
    return Usage(
        input_tokens=max(0, total_input_tokens - read - write),
        output_tokens=output_tokens,
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=output.reasoning_tokens or 0,
        calls=1,
    )
