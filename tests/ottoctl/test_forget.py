"""`ottoctl run --rm`: what stays on record is said by the exit status, and Ctrl-C is heard."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ottoctl.commands.run import Interrupts, _forget_until
from ottoctl.exits import CANCELLED, FAILED, INTERRUPTED, OK, TERMINATED
from ottod.errors import RefusedError


class Said:
    """What the console would show."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def error(self, error: Exception) -> None:
        self.lines.append(str(error))


class Daemon:
    """One on which a session ran with two below it; `remove` is what happens to each."""

    def __init__(self, *, refuses: str = "", runs: str = "", hangs: signal.Signals | None = None) -> None:
        self.refuses, self.runs, self.hangs = refuses, runs, hangs
        self.removed: list[str] = []

    async def list(self, **asked: Any) -> list[Any]:
        return [SimpleNamespace(session=s, state="running" if s == self.runs else "ended") for s in ("c", "b", "a")]

    async def session(self, session: str) -> Any:
        return SimpleNamespace(remove=lambda: self._remove(session))

    async def _remove(self, session: str) -> None:
        if self.hangs is not None:
            os.kill(os.getpid(), self.hangs)
            await asyncio.get_running_loop().create_future()
        if session == self.refuses:
            raise RefusedError(f"{session} stays")
        self.removed.append(session)


def forget(daemon: Daemon, status: int) -> tuple[int, list[str]]:
    said = Said()

    async def work() -> int:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        ended = await _forget_until(
            Interrupts(), cast(Any, said), cast(Any, daemon), cast(Any, SimpleNamespace(id="a")), status
        )
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        return ended

    return asyncio.run(work()), said.lines


@pytest.mark.parametrize("status", [OK, CANCELLED])
def test_what_is_forgotten_leaves_the_runs_own_status(status: int) -> None:
    """And nothing is said."""
    daemon = Daemon()
    assert forget(daemon, status) == (status, []) and daemon.removed == ["c", "b", "a"]


@pytest.mark.parametrize("daemon", [Daemon(refuses="b"), Daemon(runs="b")])
def test_what_stays_is_a_failure(daemon: Daemon) -> None:
    """The others go all the same; a run that went wrong keeps its own status."""
    status, said = forget(daemon, OK)
    assert status == FAILED and daemon.removed == ["c", "a"] and len(said) == 1 and "b" in said[0]
    assert forget(daemon, CANCELLED)[0] == CANCELLED


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_leaves_at_once(number: signal.Signals, status: int) -> None:
    """It says what may be left, and afterwards signals do what they did before."""
    left, said = forget(Daemon(hangs=number), OK)
    assert left == status and said == ["left; a may still be on record: `ottoctl rm a`"]
