"""When the next zygote is started: at once, unless they keep dying."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from ottod.protocol.zygote import ZygoteReady, zygote_replies
from ottod.root.reaper import Exit
from ottod.root.zygote_client import RESTART_MAX_S, STABLE_S, ZygoteClient


class StubLoop(asyncio.SelectorEventLoop):
    """A loop that never runs: the test has its clock, its timers and what it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.readable: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        self.later.append((delay, lambda: callback(*args)))

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        self.readable = callback

    def remove_reader(self, fd: Any) -> bool:
        return True


class Stage:
    """A client whose zygotes live and die as the test says."""

    def __init__(self) -> None:
        self.loop = StubLoop()
        self.peer: socket.socket | None = None
        self.client = ZygoteClient(
            self.loop,
            cast(Any, self),
            worker_endpoint="ipc://none",
            warm=0,
            preload=(),
            log=lambda line: None,
            execute=self.execute,
        )
        self.client.start()

    def execute(self, argv: list[str], environment: dict[str, str]) -> int:
        self.environment = environment
        self.peer = socket.socket(fileno=os.dup(int(argv[argv.index("ottod.zygote") + 1])))
        return 1

    def watch(self, pid: int, on_exit: Callable[[Exit], None]) -> Stage:
        """The reaper's part."""
        self.exited = on_exit
        return self

    def expect(self, count: int) -> None:
        """The reaper's part."""

    def send_signal(self, signum: int) -> None:
        """The process's part."""

    def comes_up(self) -> None:
        assert self.peer is not None
        self.peer.send(zygote_replies.encode(ZygoteReady(pid=1, generation=self.client.generation, import_ms=1.0)))
        self.loop.readable()

    def dies(self, *, after_s: float) -> float:
        """The delay before the next one, which is then started."""
        assert self.peer is not None
        self.loop.now_s += after_s
        self.peer.close()
        self.peer = None
        self.exited(Exit(None))
        delay_s, restart = self.loop.later[-1]
        self.loop.now_s += delay_s
        restart()
        assert self.peer is not None, "the next generation was not started"
        return delay_s

    def close(self) -> None:
        self.client.close()
        if self.peer is not None:
            self.peer.close()
        self.loop.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    here = Stage()
    yield here
    here.close()


@pytest.mark.parametrize("comes_up", [True, False])
def test_zygotes_that_keep_dying_are_started_ever_later(stage: Stage, comes_up: bool) -> None:
    """The first is replaced at once; also those that come up and then die have the delay grow, to its bound."""
    delays = []
    for _ in range(10):
        if comes_up:
            stage.comes_up()
        delays.append(stage.dies(after_s=1.0))
    assert delays[:5] == pytest.approx([0.0, 0.2, 0.4, 0.8, 1.6])
    assert delays == sorted(delays) and delays[-1] == RESTART_MAX_S
    assert stage.client.generation == 11 and stage.client.deaths == 10


def test_one_that_served_for_a_while_is_replaced_at_once(stage: Stage) -> None:
    """Its end is the first again, however many died before it."""
    for _ in range(4):
        stage.comes_up()
        stage.dies(after_s=1.0)
    stage.comes_up()
    assert stage.dies(after_s=STABLE_S) == 0.0
    stage.comes_up()
    assert stage.dies(after_s=1.0) > 0.0


def test_its_programs_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor's library that starts one by name finds none that lies where root's PATH leads."""
    monkeypatch.setenv("PATH", "/home/somebody/project/.venv/bin:/usr/bin")
    stage = Stage()
    try:
        assert "project" not in stage.environment["PATH"] and "/usr/bin" in stage.environment["PATH"].split(":")
    finally:
        stage.close()
