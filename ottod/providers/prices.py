"""What a call costs, in whole millionths of a US dollar.

One US dollar per million tokens is one micro-dollar per token, so a price multiplies tokens as it stands. The sum
of a call is rounded up: a ledger may say a fraction of a micro-dollar too much, never too little.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from ottod.protocol.specs import ModelTarget
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import Quote

_MICROS = Decimal(1_000_000)
_MANY = 1_000_000
"""Tokens from whose price that of one is taken."""


def cost_usd_micros(target: ModelTarget, usage: Usage) -> int | None:
    """The price of that usage, or None if it is not known: unknown is not free.

    Prices in the configuration come first; then, for the two public APIs, the tables of genai-prices if it is
    installed. Cache reads and writes without a configured price of their own cost what input costs. A script costs
    nothing.
    """
    prices = (target.price_input_usd, target.price_output_usd, target.price_cache_read_usd)
    if any(price is not None for price in (*prices, target.price_cache_write_usd)):
        return _configured(target, usage)
    if target.adapter == "scripted":
        return 0
    if target.base_url:
        return None
    return _published(target, usage)


def quote(target: ModelTarget, *, input_tokens: int) -> Quote | None:
    """The most that a call with so much input can cost, or None if no price is known. A script costs nothing.

    Nobody knows beforehand what will come from the provider's cache and what will be written to it: all of the input
    counts as what is dearest.
    """
    if target.adapter == "scripted" and target.price_input_usd is None and target.price_output_usd is None:
        return Quote(input_usd_micros=0, output_token_usd_nanos=0)
    if not input_tokens:
        input_tokens = 1
    inputs = [
        cost_usd_micros(target, Usage(input_tokens=input_tokens)),
        cost_usd_micros(target, Usage(cache_read_tokens=input_tokens)),
        cost_usd_micros(target, Usage(cache_write_tokens=input_tokens)),
    ]
    with_output = cost_usd_micros(target, Usage(input_tokens=input_tokens, output_tokens=_MANY))
    known = [cost for cost in inputs if cost is not None]
    if len(known) < len(inputs) or with_output is None or inputs[0] is None:
        return None
    # What was rounded up in the cost of the input alone must not be taken from the output's.
    output_micros = with_output - inputs[0] + 1
    return Quote(input_usd_micros=max(known), output_token_usd_nanos=-(-output_micros * 1000 // _MANY))


def _configured(target: ModelTarget, usage: Usage) -> int | None:
    input_usd = target.price_input_usd
    total = Decimal(0)
    for tokens, price in (
        (usage.input_tokens, input_usd),
        (usage.output_tokens, target.price_output_usd),
        (usage.cache_read_tokens, input_usd if target.price_cache_read_usd is None else target.price_cache_read_usd),
        (
            usage.cache_write_tokens,
            input_usd if target.price_cache_write_usd is None else target.price_cache_write_usd,
        ),
    ):
        if not tokens:
            continue
        if price is None:
            return None
        total += tokens * Decimal(str(price))
    return _whole(total)


def _published(target: ModelTarget, usage: Usage) -> int | None:
    try:
        import genai_prices
    except ImportError:
        return None
    # genai-prices counts cached tokens as part of the input, as OpenAI does.
    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        price = genai_prices.calc_price(counted, target.model, provider_id=target.adapter)
    except (LookupError, ValueError):
        return None
    return _whole(price.total_price * _MICROS)


def _whole(micros: Decimal) -> int:
    return int(micros.to_integral_value(rounding=ROUND_CEILING))
