"""What a model call consumed."""

from __future__ import annotations

import msgspec

MAX_CALL_TOKENS = 1_000_000_000
"""No call of a model consumes more than that of any kind, whoever says so."""
MAX_CALL_USD_MICROS = 1_000_000_000_000
"""Nor does it cost more than a million dollars."""
TOKEN_COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens as the provider reported them, and the price if it is known.

    `input_tokens` are the uncached ones; cache reads and writes are counted apart. `reasoning_tokens` are part of
    `output_tokens`. `usd_micros` is None when no price is known for the model: unknown is not free.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    usd_micros: int | None = None
    calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        known = [u for u in (self.usd_micros, other.usd_micros) if u is not None]
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            usd_micros=sum(known) if known else None,
            calls=self.calls + other.calls,
        )

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens
