"""SIGTERM and SIGHUP leave through `finally`, with the status that a shell gives such an end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from ottoctl.endings import ENDING_SIGNALS, Endings

SIGNALS = pytest.mark.parametrize("number", ENDING_SIGNALS)


@pytest.fixture(autouse=True)
def nothing_is_ignored() -> Iterator[None]:
    """Also where the tests themselves were started with `nohup`."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@SIGNALS
def test_a_loop_is_cancelled_and_puts_things_in_order(number: signal.Signals) -> None:
    """It goes on to its next wait, and is interrupted once; then the signal means what it meant before."""
    done = []

    async def body() -> int:
        try:
            signal.raise_signal(number)
            done.append("went on")
            await asyncio.get_running_loop().create_future()
            raise AssertionError("the future was never set")
        finally:
            for each in ENDING_SIGNALS:
                signal.raise_signal(each)
            await asyncio.sleep(0)
            done.append("let go")

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, Endings() as endings:
        try:
            endings.run(body())
        finally:
            signal.raise_signal(number)
            done.append("left")
    assert ended.value.code == 128 + number
    assert done == ["went on", "let go", "left"] and signal.getsignal(number) is before


@SIGNALS
def test_outside_of_a_loop_it_ends_at_once(number: signal.Signals) -> None:
    """As Ctrl-C does."""
    with pytest.raises(SystemExit) as ended, Endings():
        signal.raise_signal(number)
        raise AssertionError("it went on")
    assert ended.value.code == 128 + number


def test_without_a_signal_nothing_is_different() -> None:
    """What the body gives, and what it raises."""

    async def body(outcome: int) -> int:
        if outcome:
            raise ValueError(outcome)
        return 7

    with Endings() as endings:
        assert endings.run(body(0)) == 7
    with pytest.raises(ValueError, match="3"), Endings() as endings:
        endings.run(body(3))


def test_what_is_ignored_stays_ignored() -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Endings():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
