"""The ends of sessions, and those that are forgotten as soon as they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ottod.ids import session_id
from ottod.protocol.cause import Cause
from ottod.protocol.events import SessionExited
from ottod.protocol.results import SessionInfo
from ottod.root import burials, process
from ottod.root.burials import Burials
from ottod.root.loss import Loss
from ottod.root.session_table import Session, SessionTable
from ottod.settings.daemon import DaemonSettings
from ottod.storage.journal_files import MIN_ENDED_BYTES
from ottod.telemetry.instruments import Instruments

DONE = Loss(cause=Cause(kind="completed"))


class Place:
    """What burials use of root, with a database in memory. Threads work once `threads` is set."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = DaemonSettings()
        self.sessions_dir = directory
        self.threads = asyncio.Event()
        self.rows: dict[str, SessionInfo] = {}
        self.table = SessionTable(self.put_session_nowait)
        self.database = self
        self.instruments = Instruments()
        self.tasks: set[asyncio.Task[None]] = set()
        self.logged: list[str] = []
        kept: Any = self
        self.burials = Burials(kept, kept, kept)

    def log(self, message: str, **ids: object) -> None:
        self.logged.append(message)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def in_thread(self, function: Callable[..., Any], *arguments: object) -> Any:
        await self.threads.wait()
        return function(*arguments)

    def record(self, session: Session, event: SessionExited) -> None:
        self.table.update(session, SessionInfo(session=session.id, agent="a", model="", state="ended"))

    async def at_rest(self, *others: asyncio.Task[Any]) -> None:
        """Returns when nothing is left to do."""
        async with asyncio.timeout(30):
            while waiting := {*self.tasks, *(task for task in others if not task.done())}:
                await asyncio.wait(waiting)

    # ------------------------------------------------------------ the database

    def put_session_nowait(self, info: SessionInfo) -> None:
        self.rows[info.session] = info

    async def put_session(self, info: SessionInfo) -> None:
        self.rows[info.session] = info

    async def delete_session(self, session: str) -> None:
        self.rows.pop(session, None)

    async def surplus_sessions(self, retain: int, *, limit: int) -> list[str]:
        return [each.session for each in self.rows.values() if each.state == "ended"][retain:]

    async def tree_on_record(self, session: str) -> str:
        return session

    async def session_forgotten(self, of: str) -> None:
        """Nothing else is kept of it."""

    # ------------------------------------------------------------ sessions

    def session(self, number: int) -> Session:
        """One at work, with a journal that is worth compressing."""
        session = Session(SessionInfo(session=session_id(number), agent="a", model="", state="running"), None)
        enclosure: Any = SimpleNamespace(kind="watchdog", close=lambda: None)
        session.enclosure = enclosure
        self.table.add(session)
        directory = self.sessions_dir / session.id
        (directory / "tmp").mkdir(parents=True)
        (directory / "journal").write_bytes(bytes(MIN_ENDED_BYTES))
        return session

    def left(self) -> list[str]:
        """Of whom anything is known, or there."""
        in_memory = [session.id for session in (*self.table.live, *self.table.ended)]
        return [*self.rows, *in_memory, *(path.name for path in self.sessions_dir.iterdir())]


def test_who_is_forgotten_at_once_does_not_come_back(tmp_path: Path) -> None:
    """Whoever waited for the end asks so before the session is put away, which must not write its row again."""

    async def main() -> None:
        place = Place(tmp_path)
        session = place.session(1)
        place.burials.finish(session, DONE)
        forgetting = asyncio.create_task(place.burials.forget(session.id))
        for _ in range(20):
            await asyncio.sleep(0)
        place.threads.set()
        await place.at_rest(forgetting)
        assert (place.left(), place.logged) == ([], [])

    asyncio.run(main())


def test_surplus_sessions_that_are_just_being_put_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one's end forgets all of them, itself too, and none waits for another that waits for it."""
    monkeypatch.setattr(burials, "PRUNE_EVERY", 1)

    async def main() -> None:
        place = Place(tmp_path)
        place.settings = SimpleNamespace(  # type: ignore[assignment]
            sessions=SimpleNamespace(retain_ended=0), journal=place.settings.journal
        )
        for session in [place.session(number) for number in range(1, 4)]:
            place.burials.finish(session, DONE)
        place.threads.set()
        await place.at_rest()
        assert (place.left(), place.logged) == ([], [])

    asyncio.run(main())


def test_who_is_not_forgotten_stays(tmp_path: Path) -> None:
    """On record, with its journal, which is compressed by then."""

    async def main() -> None:
        place = Place(tmp_path)
        session = place.session(1)
        place.threads.set()
        place.burials.finish(session, DONE)
        await place.at_rest()
        assert place.rows[session.id].state == "ended"
        assert [path.name for path in (tmp_path / session.id).iterdir()] == ["journal.zst"]

    asyncio.run(main())


def test_what_is_left_of_the_forgotten_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next daemon: also what one that died meanwhile did not come to. Whose row is there keeps its files."""

    async def main() -> None:
        place = Place(tmp_path)
        place.threads.set()
        kept, forgotten = place.session(1), place.session(2)
        with monkeypatch.context() as patch:
            patch.setattr(process, "remove_tree", lambda path: False)
            await place.burials.forget(forgotten.id)
            await place.burials.sweep()
        left = f"{forgotten.id}.forgotten"
        assert sorted(path.name for path in tmp_path.iterdir()) == [kept.id, left]
        assert len(place.logged) == 2 and all(str(tmp_path / left) in said for said in place.logged)
        await place.burials.sweep()
        assert [path.name for path in tmp_path.iterdir()] == [kept.id]
        assert len(place.logged) == 2

    asyncio.run(main())
