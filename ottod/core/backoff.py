"""Delays before trying again. Randomness is an argument."""

from __future__ import annotations

from ottod.protocol.specs import Backoff


def delay_s(backoff: Backoff, attempt: int, *, random: float, at_least_s: float = 0.0) -> float:
    """Seconds to wait before attempt `attempt + 1` (attempts count from 1).

    `random` is uniform in [0, 1); jitter spreads the delay by ± its share. `at_least_s` is a peer's Retry-After,
    which jitter may lengthen and never shortens.
    """
    if attempt < 1:
        raise ValueError("attempts count from 1")
    exponent = min(attempt - 1, 64)
    nominal = min(backoff.base_s * backoff.factor**exponent, backoff.max_s)
    spread = nominal * backoff.jitter * (2 * random - 1)
    return max(0.0, nominal + spread, at_least_s * (1 + backoff.jitter * random))
