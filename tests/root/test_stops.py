"""Stops that come in the middle of another kind of stop, and a database that does not answer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import pytest

from ottod.errors import Failure
from ottod.ids import session_id
from ottod.protocol.cause import Cause
from ottod.protocol.results import Halt, SessionInfo
from ottod.protocol.worker import StopTurn
from ottod.root import stops
from ottod.root.groups import Groups
from ottod.root.session_table import Incarnation, Session, SessionTable
from ottod.root.stops import Stops
from ottod.settings.daemon import DaemonSettings


class Lone(Groups):
    """Of a session without anything below it."""

    def __init__(self) -> None:
        pass

    def stop_requested(self, session: Session) -> None:
        pass

    async def stop_children(self, session: Session) -> None:
        pass


class Worker(Incarnation):
    """One that has said hello, and does not obey. `done` is what it and the database went through, in order."""

    def __init__(self, done: list[object]) -> None:
        super().__init__(number=1, secret=b"", generation=0)
        self.identity = b"worker"
        self.knows_undo = True
        self._done = done

    def send_signal(self, signum: signal.Signals) -> None:
        self._done.append(signum)


class Stage:
    """What stops use of root, with one session. The database answers when `answers` says so."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = DaemonSettings()
        self.done: list[object] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.reply: Failure | None = None
        """What its worker answers."""
        self.database = self.gate = self
        self.table = SessionTable(lambda info: None)
        self.session = Session(SessionInfo(session=session_id(1), agent="a", model="", state="running"), None)
        self.session.incarnation = Worker(self.done)
        self.session.announced.set()
        self.table.add(self.session)
        self.tasks: set[asyncio.Task[None]] = set()
        context: Any = self
        self.stops = Stops(context, Lone())

    def log(self, message: str, **ids: object) -> None:
        self.done.append(message)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def put_session(self, info: SessionInfo, *, durable: bool) -> None:
        self.done.append("asked")
        await self.answers.wait()
        self.done.append((info.state, info.halt))

    async def command(self, session: Session, order: StopTurn, *, timeout_s: float) -> Failure | None:
        self.done.append(order)
        return self.reply

    async def rest(self) -> None:
        """Returns when nothing more happens without the time going on."""
        for _ in range(20):
            await asyncio.sleep(0)

    def leave(self) -> None:
        self.session.cancel_timers()
        for task in self.tasks:
            task.cancel()

    def orders(self) -> list[bool]:
        """The orders to the worker: whether each was for its group's restart."""
        return [each.for_restart for each in self.done if isinstance(each, StopTurn)]

    def stop(self, grace_s: float) -> None:
        self.session.is_killed = grace_s <= 0
        self.stops.begin(self.session, deadline_s=self.loop.time() + grace_s, reason="enough", cause="cancelled")


def test_a_stop_for_good_overrules_one_for_a_restart() -> None:
    """It is on record before its worker hears of it, and its worker does, though it is being stopped already."""

    async def main() -> None:
        stage = Stage()
        stage.stops.stop_worker(stage.session)
        await stage.rest()
        assert stage.done[1] == ("running", Halt()) and stage.orders() == [True]
        stage.done.clear()
        stage.answers.clear()
        stage.stop(60.0)
        await stage.rest()
        assert stage.done == ["asked"], "nobody hears of it before it is written"
        stage.answers.set()
        await stage.rest()
        assert stage.done[1] == ("stopping", None) and stage.orders() == [False]
        stage.leave()

    asyncio.run(main())


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_stop_that_may_take_no_time_hurries_one_for_a_restart(is_noted: bool) -> None:
    """Whether its worker has been told of that already or not."""

    async def main() -> None:
        stage = Stage()
        if not is_noted:
            stage.answers.clear()
        stage.stops.stop_worker(stage.session)
        await stage.rest()
        stage.stop(0.0)
        async with asyncio.timeout(5):
            while signal.SIGKILL not in stage.done:
                await asyncio.sleep(0.001)
        # Whoever has been told to make room hears that it is for good; whoever has not been told never hears of it.
        assert stage.orders() == ([True, False] if is_noted else [])
        stage.leave()

    asyncio.run(main())


def test_what_is_condemned_is_stopped_although_the_database_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its being on record, and not for ever."""

    async def main() -> None:
        stage = Stage()
        stage.answers.clear()
        assert stage.session.incarnation is not None
        stage.session.incarnation.verdict = Cause(kind="failed", message="its children", code="restart_intensity")
        stage.stops.stop_worker(stage.session)
        await stage.rest()
        assert stage.orders() == []
        async with asyncio.timeout(5):
            while not stage.orders():
                await asyncio.sleep(0.001)
        assert any("does not answer" in each for each in stage.done if isinstance(each, str))
        stage.leave()

    monkeypatch.setattr(stops, "NOTE_S", 0.02)
    asyncio.run(main())


@pytest.mark.parametrize("code", ["session_ended", "no_answer", "not_ready"])
def test_a_workflow_has_heard_that_its_time_is_up_when_it_says_so(code: str) -> None:
    """Not when its worker dies before it can answer, nor when that makes room for the next one: either ends no more
    than the worker, and the next one is told again."""

    async def main() -> None:
        stage = Stage()
        stage.reply = Failure(code=code, message="gone")
        assert not await stage.stops.tell_time_up(stage.session, "time is up")
        stage.reply = None
        assert await stage.stops.tell_time_up(stage.session, "time is up")
        assert [each.may_undo for each in stage.done if isinstance(each, StopTurn)] == [True, True]
        stage.leave()

    asyncio.run(main())


def test_a_workflow_whose_worker_cannot_be_told_that_time_is_up_is_stopped() -> None:
    """One of an older version would take it for a stop in which root ends the steps. Who has not said hello waits."""

    async def main() -> None:
        stage = Stage()
        worker = stage.session.incarnation
        assert worker is not None
        worker.knows_undo, worker.identity = False, None
        stage.reply = Failure(code="not_ready", message="no hello yet")
        assert not await stage.stops.tell_time_up(stage.session, "time is up") and not stage.session.is_stopping
        stage.done.clear()
        worker.identity, stage.reply = b"worker", None
        assert await stage.stops.tell_time_up(stage.session, "time is up")
        await stage.rest()
        orders = [(each.cause, each.may_undo) for each in stage.done if isinstance(each, StopTurn)]
        assert stage.session.stop_cause == "budget" and orders == [("budget", False)]
        stage.leave()

    asyncio.run(main())
