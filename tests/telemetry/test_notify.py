"""What the service manager hears, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.telemetry.notify import MAX_STATUS_CHARS, STATUS_S, WATCHDOG_SHARE, Notifier, Pulse, status_line

DEADLINE_S = 30.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A manager's socket; its address is in `getsockname`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(DEADLINE_S)
        yield listener


def told(manager: socket.socket) -> list[str]:
    """The lines of the next message."""
    return manager.recv(4096).decode().split("\n")


def notifier(manager: socket.socket, **extra: str) -> Notifier:
    return Notifier.from_env({"NOTIFY_SOCKET": manager.getsockname(), **extra}, pid=os.getpid())


def test_the_four_words(manager: socket.socket) -> None:
    """Ready, reloading, stopping and alive are what sd_notify(3) says they are."""
    told_all = notifier(manager, WATCHDOG_USEC="20000000")
    assert told_all.ready("sessions: none") and told(manager) == ["READY=1", "STATUS=sessions: none"]
    before_us = time.monotonic_ns() // 1000
    assert told_all.reloading()
    word, moment = told(manager)
    assert word == "RELOADING=1" and before_us <= int(moment.removeprefix("MONOTONIC_USEC="))
    assert told_all.stopping() and told(manager) == ["STOPPING=1"]
    assert told_all.stopping("x", within_s=90) and told(manager)[1] == "EXTEND_TIMEOUT_USEC=90000000"
    assert told_all.alive("fine") and told(manager) == ["WATCHDOG=1", "STATUS=fine"]


def test_an_abstract_socket() -> None:
    """An address that begins with @ is in the abstract namespace, as in containers."""
    name = f"otto-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(DEADLINE_S)
        assert Notifier(f"@{name}").ready()
        assert told(listener) == ["READY=1"]


def test_a_status_cannot_say_more_than_a_status(manager: socket.socket) -> None:
    """Whatever a status holds, it is one bounded line: it cannot smuggle another assignment in."""
    notifier(manager).ready("READY=0\nMAINPID=1 " + "x" * 10_000)
    lines = told(manager)
    assert lines[0] == "READY=1" and lines[1].startswith("STATUS=READY=0 MAINPID=1 x") and len(lines) == 2
    assert len(lines[1]) == len("STATUS=") + MAX_STATUS_CHARS


@pytest.mark.parametrize(
    ("environ", "expected_s"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "9" * 10_000}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_or_none(
    manager: socket.socket, environ: dict[str, str], expected_s: float | None
) -> None:
    """The interval counts if it is a number and meant for this process; nonsense stops no daemon."""
    assert notifier(manager, **environ).watchdog_s == expected_s


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@" + "x" * 300, "/a\0b"])
def test_nobody_listens(address: str) -> None:
    """Without a manager, or with one that is gone, telling is silent."""
    lonely = Notifier.from_env({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"}, pid=os.getpid())
    assert not lonely.ready("x") and not lonely.alive("x")


def test_a_manager_that_does_not_read_holds_up_nobody(manager: socket.socket) -> None:
    """Its queue is full at some time; from then on messages are dropped, and the daemon is not kept waiting."""
    full = notifier(manager)
    assert any(not full.ready("x") for _ in range(100_000))


def test_the_pulse_beats_with_the_loop_only(manager: socket.socket) -> None:
    """Signs of life come from the loop's timer, several in each interval; none comes while the loop is blocked."""
    interval_s = 0.3
    watched = notifier(manager, WATCHDOG_USEC=str(int(interval_s * 1e6)))

    async def live() -> None:
        pulse = Pulse(asyncio.get_running_loop(), watched, lambda: "sessions: 1 running")
        assert pulse.period_s == pytest.approx(interval_s / WATCHDOG_SHARE)
        assert told(manager) == ["WATCHDOG=1", "STATUS=sessions: 1 running"]
        manager.setblocking(False)
        time.sleep(3 * interval_s)  # noqa: ASYNC251 - the loop is blocked on purpose
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            await asyncio.sleep(pulse.period_s)
            try:
                assert told(manager)[0] == "WATCHDOG=1"
                break
            except BlockingIOError:
                continue
        else:
            raise AssertionError("the pulse did not come back")
        pulse.close()

    asyncio.run(live())


def test_a_status_that_fails_does_not_end_the_pulse(manager: socket.socket) -> None:
    """A defect in the status line is the loop's to report; the next beat comes all the same."""
    beats = []

    def status() -> str:
        beats.append(1)
        if len(beats) == 2:
            raise ZeroDivisionError
        return ""

    async def live() -> None:
        loop = asyncio.get_running_loop()
        reported: list[dict[str, object]] = []
        loop.set_exception_handler(lambda _loop, context: reported.append(context))
        pulse = Pulse(loop, notifier(manager, WATCHDOG_USEC="30000"), status)
        deadline = time.monotonic() + DEADLINE_S
        while len(beats) < 4 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        pulse.close()
        assert len(beats) >= 4 and isinstance(reported[0]["exception"], ZeroDivisionError)

    asyncio.run(live())


def test_without_a_watchdog_the_status_is_told_at_leisure(manager: socket.socket) -> None:
    """The status line is renewed, and no sign of life is claimed that nobody asked for."""

    async def live() -> None:
        pulse = Pulse(asyncio.get_running_loop(), notifier(manager), lambda: "sessions: none")
        assert pulse.period_s == STATUS_S
        pulse.close()

    asyncio.run(live())
    assert told(manager) == ["STATUS=sessions: none"]


def test_status_line() -> None:
    """States with sessions are counted, ended ones are history."""
    assert status_line({"running": 2, "ended": 40, "starting": 0, "idle": 1}) == "sessions: 1 idle, 2 running"
    assert status_line({"ended": 3}) == "sessions: none"
