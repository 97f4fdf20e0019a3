"""Processes that leave their session's control group: taken back, or the end of their worker, never left alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ottod.ids import session_id
from ottod.isolation.caps import IsolationError, Reading
from ottod.isolation.processes import ProcessId, identify
from ottod.protocol.results import SessionInfo
from ottod.root import watch
from ottod.root.burials import Burials
from ottod.root.reaper import Exit
from ottod.root.session_table import Incarnation, Session
from ottod.root.supervisor import Supervisor
from ottod.root.watch import Watch

SESSION = session_id(1)


class Worker(Incarnation):
    """A ready one. `signals` is what it was sent."""

    def __init__(self) -> None:
        super().__init__(number=1, secret=b"", generation=0)
        self.is_ready = True
        self.lease = cast(Any, SimpleNamespace(pid=1, exited=None))
        self.signals: list[int] = []

    def send_signal(self, signum: signal.Signals) -> None:
        self.signals.append(signum)


class Place:
    """What the watch uses of root, with one session, one process of which is outside. It looks as often as it can."""

    session = SESSION

    def __init__(self, outside: ProcessId, *, is_admitted: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = SimpleNamespace(sessions=SimpleNamespace(hung_after_s=60.0))
        self.outside = outside
        self.is_admitted = is_admitted
        self.admitted: list[int] = []
        self.looks = 0
        self.worker = Worker()
        self.watched = Session(SessionInfo(session=SESSION, agent="a", model="", state="running"), None)
        self.watched.incarnation = self.worker
        self.watched.enclosure = cast(Any, self)
        self.table = SimpleNamespace(live=[self.watched])
        self.enclosures = self

    async def in_thread(self, function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)

    def log(self, message: str, **ids: object) -> None:
        pass

    def read_all(self, enclosures: Sequence[object]) -> dict[str, Any]:
        self.looks += 1
        return {}

    def escaped(self, workers: object, enclosures: object) -> dict[str, list[ProcessId]]:
        return {SESSION: [self.outside]} if self.looks == 1 else {}

    def next_look_s(self, readings: object) -> float:
        return 0.0

    def admit(self, pid: int) -> None:
        self.admitted.append(pid)
        if not self.is_admitted:
            raise IsolationError("it cannot be admitted")

    def read(self) -> Reading:
        return Reading(tasks=71, is_over_pids=True)

    def cause_of(self, worker: Worker) -> str:
        """What is said of this worker's end by a signal."""
        nobody: Any = None
        exit_ = Exit(None)
        exit_.signal = "SIGKILL"
        cause = Burials(cast(Any, self), nobody, nobody)._cause(self.watched, worker, exit_)
        assert cause.kind == "crashed"
        return cause.message


def watched(outside: ProcessId, *, is_admitted: bool) -> Place:
    """Root's state after two looks, the first of which met a process outside."""

    async def work() -> Place:
        place = Place(outside, is_admitted=is_admitted)
        watching = Watch(cast(Any, place))
        async with asyncio.timeout(30):
            while place.looks < 2:
                await asyncio.sleep(0)
        watching.close()
        return place

    return asyncio.run(work())


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.0)


@pytest.fixture
def child() -> Iterator[ProcessId]:
    with subprocess.Popen(["sleep", "60"]) as process:
        found = identify(process.pid)
        assert found is not None
        yield found
        process.kill()


def test_who_has_left_is_taken_back(child: ProcessId) -> None:
    """Its session goes on."""
    place = watched(child, is_admitted=True)
    assert place.admitted == [child.pid]
    assert (place.worker.end_intent, place.worker.signals) == (None, [])


def test_who_cannot_be_taken_back_ends_its_session(child: ProcessId) -> None:
    """It has no cap out there: the session crashes, and its reason names the process."""
    place = watched(child, is_admitted=False)
    assert place.admitted == [child.pid]
    assert (place.worker.end_intent, place.worker.signals) == ("crashed", [signal.SIGKILL])
    assert str(child.pid) in place.cause_of(place.worker).split()


def test_who_is_dead_by_then_ends_nothing() -> None:
    """A process that cannot be taken back because it is gone needs no cap."""
    with subprocess.Popen(["true"]) as process:
        gone = identify(process.pid) or ProcessId(process.pid, 1)
    place = watched(gone, is_admitted=False)
    assert place.admitted == [gone.pid]
    assert (place.worker.end_intent, place.worker.signals) == (None, [])


@pytest.mark.parametrize(
    ("kill", "said"),
    [
        (lambda place, watching: watching._escaped(place.watched, [4711]), "process 4711 left"),
        (lambda place, watching: watching._judge(place.watched, place.read()), "71 tasks"),
        (lambda place, watching: Supervisor._worker_unfit(cast(Any, place), place.watched, "it lies"), "it lies"),
    ],
    ids=["left its group", "too many tasks", "unfit"],
)
def test_why_one_worker_was_killed_is_not_said_of_the_next(kill: Callable[..., None], said: str) -> None:
    """Nor of a stop: the session was not stopped."""

    async def work() -> None:
        place = Place(ProcessId(1, 1), is_admitted=True)
        watching = Watch(cast(Any, place))
        watching.close()
        kill(place, watching)
        assert place.worker.signals == [signal.SIGKILL]
        assert place.cause_of(place.worker).startswith(said)
        assert place.watched.stop_reason == ""
        place.watched.incarnation = second = Worker()
        assert place.cause_of(second) == "the worker was killed by SIGKILL"

    asyncio.run(work())
