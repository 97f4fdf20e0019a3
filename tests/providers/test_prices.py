"""What calls cost."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ottod.protocol.specs import ModelTarget
from ottod.protocol.usage import Usage
from ottod.providers.prices import cost_usd_micros

USAGE = Usage(input_tokens=1000, output_tokens=200, cache_read_tokens=4000, cache_write_tokens=300)


def target(adapter: str = "scripted", model: str = "m", **fields: object) -> ModelTarget:
    return ModelTarget(**cast(Any, {"provider": adapter, "adapter": adapter, "model": model} | fields))


def test_configured_prices_are_dollars_per_million_tokens() -> None:
    """A dollar per million is a micro-dollar per token."""
    priced = target(price_input_usd=3.0, price_output_usd=15.0, price_cache_read_usd=0.3, price_cache_write_usd=3.75)
    assert cost_usd_micros(priced, USAGE) == 3000 + 3000 + 1200 + 1125


def test_cached_tokens_without_a_price_cost_what_input_costs() -> None:
    """The dearer assumption, as a budget wants it."""
    assert cost_usd_micros(target(price_input_usd=2, price_output_usd=0), USAGE) == 2 * (1000 + 4000 + 300)


def test_fractions_are_rounded_up_once_per_call() -> None:
    """Three tenths of a micro-dollar are one; exact sums stay exact in spite of binary fractions."""
    assert cost_usd_micros(target(price_input_usd=0.1, price_output_usd=0), Usage(input_tokens=3)) == 1
    assert cost_usd_micros(target(price_input_usd=0.1, price_output_usd=0), Usage(input_tokens=30)) == 3


def test_unknown_is_not_free() -> None:
    """No price, or none for a kind of token that was used: None. A price of zero is a price; a script is free."""
    assert cost_usd_micros(target("openai", "m", base_url="http://127.0.0.1:1/v1"), USAGE) is None
    assert cost_usd_micros(target(), USAGE) == 0
    assert cost_usd_micros(target(price_input_usd=1.0), USAGE) is None
    assert cost_usd_micros(target(price_input_usd=1.0), Usage(input_tokens=5)) == 5
    assert cost_usd_micros(target(price_input_usd=0.0, price_output_usd=0.0), USAGE) == 0


def test_published_prices_serve_the_public_apis_only() -> None:
    """A local server with a famous model's name has no published price."""
    pytest.importorskip("genai_prices")
    usage = Usage(input_tokens=1_000_000)
    known = cost_usd_micros(target("anthropic", "claude-sonnet-4-5"), usage)
    assert known is not None
    assert 100_000 <= known <= 100_000_000
    assert cost_usd_micros(target("openai", "no-such-model-anywhere"), usage) is None
    assert cost_usd_micros(target("openai", "gpt-5", base_url="http://127.0.0.1:1/v1"), usage) is None


def test_published_prices_know_that_cached_input_is_cheaper() -> None:
    """Cached tokens are not billed twice, as input and as cache."""
    pytest.importorskip("genai_prices")
    model = target("anthropic", "claude-sonnet-4-5")
    fresh = cost_usd_micros(model, Usage(input_tokens=10_000))
    cached = cost_usd_micros(model, Usage(cache_read_tokens=10_000))
    assert fresh is not None
    assert cached is not None
    assert 0 < cached < fresh
