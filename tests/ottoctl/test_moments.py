"""Moments as people write them."""

from __future__ import annotations

from datetime import datetime

import pytest

from ottoctl.moments import since_ns_of
from ottod.errors import OttoError

NOW_S = datetime(2026, 11, 27, 15, 0).timestamp()


@pytest.mark.parametrize(
    ("text", "before_s"),
    [
        ("90s", 90),
        ("15m", 900),
        ("1h30m", 5400),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("14:30", 1800),
        ("14:30:30", 1770),
        ("2026-11-27", 15 * 3600),
        ("2026-11-27T14:00", 3600),
        ("2026-11-26 15:00", 86_400),
        ("99999w", NOW_S),
    ],
)
def test_spans_dates_and_times(text: str, before_s: float) -> None:
    """A span counts back from now, a time alone is today's, and nothing lies before the epoch."""
    assert since_ns_of(text, now_s=NOW_S) == int((NOW_S - before_s) * 1e9)


def test_a_moment_with_a_zone_is_that_moment() -> None:
    """The machine's zone is only for those who name none."""
    assert since_ns_of("1970-01-01T00:00:10+00:00", now_s=NOW_S) == 10_000_000_000


@pytest.mark.parametrize("text", ["", "soon", "5", "5x", "-5m", "2026-13-01", "25:00", "1m 2s"])
def test_anything_else_is_refused_with_what_can_be_written(text: str) -> None:
    """Among it what only looks like a number."""
    with pytest.raises(OttoError) as caught:
        since_ns_of(text, now_s=NOW_S)
    assert caught.value.code == "usage" and "1h30m" in caught.value.mend
