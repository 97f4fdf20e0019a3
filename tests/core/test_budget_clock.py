"""A session's time: what counts, when it is nearly used, and when it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottod.core.budget_clock import NS, BudgetClock


def test_time_counts_by_what_the_session_did_since_the_last_look() -> None:
    """Waiting for somebody's answer does not count; what follows it does again."""
    clock = BudgetClock(limit_ns=10 * NS, now_ns=-5 * NS)
    clock.look(now_ns=0, is_counting=True)
    clock.look(now_ns=3 * NS, is_counting=False)
    clock.look(now_ns=100 * NS, is_counting=True)
    assert clock.used_ns == 3 * NS
    clock.look(now_ns=105 * NS, is_counting=True)
    assert clock.used_ns == 8 * NS and clock.take_warning() and not clock.take_warning()
    assert not clock.is_for_last
    clock.look(now_ns=106 * NS, is_counting=True)
    assert clock.is_for_last and not clock.is_used
    clock.look(now_ns=107 * NS, is_counting=True)
    assert clock.is_used


def test_no_time_is_used_from_the_beginning() -> None:
    """0 is nothing at all."""
    assert BudgetClock(limit_ns=0, now_ns=5).is_used


def test_a_long_budget_keeps_a_minute_for_the_last_call() -> None:
    """Not a tenth of a day."""
    clock = BudgetClock(limit_ns=86_400 * NS, now_ns=0, used_ns=86_330 * NS)
    clock.look(now_ns=0, is_counting=True)
    assert not clock.is_for_last
    clock.look(now_ns=10 * NS, is_counting=True)
    assert clock.is_for_last


def test_more_time_is_more_time() -> None:
    """And its own warning."""
    clock = BudgetClock(limit_ns=10 * NS, now_ns=0, used_ns=10 * NS)
    clock.look(now_ns=0, is_counting=True)
    assert clock.is_used and not clock.take_warning()
    clock.extend(10 * NS)
    assert not clock.is_used and not clock.is_for_last
    clock.look(now_ns=6 * NS, is_counting=True)
    assert clock.take_warning()


@given(st.lists(st.tuples(st.integers(-5, 50), st.booleans())))
def test_it_is_the_sum_of_what_counted(looks: list[tuple[int, bool]]) -> None:
    """Against adding up by hand; a clock that goes back counts nothing, and nothing twice."""
    clock = BudgetClock(limit_ns=10**9, now_ns=0)
    now = seen = used = 0
    counts = False
    for step, is_counting in looks:
        now += step
        if counts:
            used += max(0, now - seen)
        seen, counts = max(seen, now), is_counting
        clock.look(now_ns=now, is_counting=is_counting)
    assert clock.used_ns == used
