"""Rates from readings that only grow: over a window, without a past that belongs to another process."""

from __future__ import annotations

import pytest

from ottoctl.rates import MAX_READINGS, WINDOW_S, Rate, Rates
from ottod.protocol.results import SessionInfo


def info(cpu_ms: int, last_seq: int, *, incarnation: int = 1, session: str = "s-1") -> SessionInfo:
    return SessionInfo(
        session=session,
        agent="coder",
        model="m",
        state="running",
        cpu_ms=cpu_ms,
        last_seq=last_seq,
        incarnation=incarnation,
    )


def test_one_reading_says_nothing() -> None:
    """A rate needs two readings, at different times."""
    rates = Rates()
    assert rates.observe([info(500, 100)], now_s=1.0) == {"s-1": Rate()}
    assert rates.observe([info(900, 200)], now_s=1.0) == {"s-1": Rate()}


def test_a_rate_is_taken_over_the_window() -> None:
    """Half a processor and ten events a second, and what lies behind the window is forgotten."""
    rates = Rates()
    for second in range(20):
        found = rates.observe([info(second * 500, second * 10)], now_s=float(second))
    assert found["s-1"] == Rate(pytest.approx(0.5), pytest.approx(10.0))
    for second in range(20, 20 + int(WINDOW_S) + 1):
        found = rates.observe([info(19 * 500, 190)], now_s=float(second))
    assert found["s-1"] == Rate(0.0, 0.0)


def test_a_new_process_begins_anew() -> None:
    """The processor time of a new incarnation begins at 0: never a negative rate."""
    rates = Rates()
    rates.observe([info(9000, 100)], now_s=0.0)
    assert rates.observe([info(10, 110, incarnation=2)], now_s=1.0)["s-1"] == Rate()
    assert rates.observe([info(1010, 120, incarnation=2)], now_s=2.0)["s-1"] == Rate(1.0, 10.0)


def test_what_is_remembered_is_bounded() -> None:
    """Readings beyond the bound, and sessions that are not there any more, are forgotten."""
    rates = Rates()
    for i in range(3 * MAX_READINGS):
        rates.observe([info(i, i), info(i, i, session=f"s-{i}")], now_s=i / 1000)
    assert len(rates._readings) == 2
    assert len(rates._readings["s-1"]) == MAX_READINGS
