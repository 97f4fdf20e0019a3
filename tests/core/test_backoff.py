"""Delays: growing, bounded, spread, and never shorter than the peer asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.backoff import delay_s
from ottod.protocol.specs import Backoff


def test_it_grows_to_its_bound() -> None:
    """Without jitter: base, base·f, base·f², … up to max."""
    backoff = Backoff(base_s=1, factor=2, max_s=5, jitter=0)
    assert [delay_s(backoff, n, random=0.3) for n in (1, 2, 3, 4, 500)] == [1, 2, 4, 5, 5]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 600))
def test_jitter_stays_in_its_share(attempt: int, random: float, at_least_s: float) -> None:
    """Jitter spreads by its share; a Retry-After is a floor."""
    backoff = Backoff(base_s=0.5, factor=2, max_s=60, jitter=0.2)
    delay = delay_s(backoff, attempt, random=random, at_least_s=at_least_s)
    assert delay >= at_least_s
    assert delay <= max(60 * 1.2, at_least_s * 1.2) + 1e-9


def test_attempts_count_from_one() -> None:
    """Attempt 0 is a defect of the caller."""
    with pytest.raises(ValueError, match="count from 1"):
        delay_s(Backoff(), 0, random=0.5)
