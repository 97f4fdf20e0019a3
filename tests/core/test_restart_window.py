"""The restart window: it counts as OTP does, on any clock, and never grows beyond its bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.restart_window import MAX_RESTARTS, RestartWindow

S = 1_000_000_000


@pytest.mark.parametrize(
    ("max_restarts", "times_s", "allowed"),
    [
        (0, [0], [False]),
        (1, [0, 0], [True, False]),
        (1, [0, 5], [True, False]),
        (1, [0, 5.1], [True, True]),
        (2, [0, 3, 5, 6], [True, True, False, False]),
        (2, [0, 3, 5.1, 8.2], [True, True, True, True]),
        (3, [0, 0, 0, 0], [True, True, True, False]),
    ],
)
def test_more_than_the_maximum_within_the_period_is_too_much(
    max_restarts: int, times_s: list[float], allowed: list[bool]
) -> None:
    """Period 5 s: a restart exactly 5 s old still counts; with a maximum of 0 the first is too much."""
    window = RestartWindow(max_restarts=max_restarts, period_ns=5 * S)
    assert [window.add(round(at_s * S)) for at_s in times_s] == allowed


@given(st.integers(0, 5), st.integers(1, 10), st.lists(st.integers(0, 6), max_size=60))
def test_it_agrees_with_counting_by_hand(max_restarts: int, period_ns: int, gaps_ns: list[int]) -> None:
    """Against the naive oracle: all restarts ever, counted if at most one period old."""
    window = RestartWindow(max_restarts=max_restarts, period_ns=period_ns)
    now_ns, ever = 0, []
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        ever.append(now_ns)
        counted = [at_ns for at_ns in ever if at_ns >= now_ns - period_ns]
        assert window.add(now_ns) is (len(counted) <= max_restarts)
        assert len(window) == min(len(counted), max_restarts + 1)


@given(
    st.lists(st.integers(0, 6), max_size=20), st.integers(-(10**15), 10**15), st.lists(st.integers(0, 6), max_size=20)
)
def test_another_clock_takes_it_over(before_ns: list[int], offset_ns: int, after_ns: list[int]) -> None:
    """As ages, the restarts move to a clock with another zero, and decide there as they would have here."""
    here = RestartWindow(max_restarts=2, period_ns=10)
    there = RestartWindow(max_restarts=2, period_ns=10)
    now_ns = 0
    for gap_ns in before_ns:
        now_ns += gap_ns
        here.add(now_ns)
    there.take_over(here.ages_ns(now_ns), now_ns=now_ns + offset_ns)
    for gap_ns in after_ns:
        now_ns += gap_ns
        assert here.add(now_ns) is there.add(now_ns + offset_ns)


def test_cleared_it_starts_anew() -> None:
    """After `clear` the whole allowance is there again."""
    window = RestartWindow(max_restarts=1, period_ns=S)
    assert [window.add(0), window.add(0)] == [True, False]
    window.clear()
    assert len(window) == 0 and window.add(0)


def test_even_the_largest_allowance_has_an_end() -> None:
    """A number that no memory could hold is no way to switch the limit off."""
    window = RestartWindow(max_restarts=10**30, period_ns=S)
    assert [window.add(0) for _ in range(MAX_RESTARTS + 1)] == [True] * MAX_RESTARTS + [False]
