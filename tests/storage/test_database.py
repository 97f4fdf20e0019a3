"""The database: rows go in and out, nothing blocks the loop, nothing is lost in silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop
from msgspec.structs import replace

from ottod.errors import StorageError
from ottod.protocol.cause import Cause
from ottod.protocol.results import SessionInfo
from ottod.protocol.usage import Usage
from ottod.storage import database as database_module
from ottod.storage.database import MAX_PENDING_JOBS, THREAD_NAME, Database
from ottod.storage.database_rows import Incarnation
from ottod.storage.ledger import Ledger, LedgerEntry
from ottod.storage.schema import MIGRATIONS


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Runs on the loop that root uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())  # type: ignore[arg-type]


def info(n: int, **changes: object) -> SessionInfo:
    fields: dict[str, object] = {
        "session": f"s-{n:010}",
        "agent": "coder",
        "model": "scripted",
        "state": "running",
        "created_at_ns": 1000 + n,
        "usage": Usage(input_tokens=n, usd_micros=3),
    }
    return SessionInfo(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "otto.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    database = Database.open(path)
    yield database
    database.close()


def test_a_row_comes_back_as_it_went_in(db: Database, path: Path) -> None:
    """Whole structs survive, also over a reopening."""
    one = info(1, cause=Cause(kind="crashed", signal="SIGKILL"), remaining_pids=(3, 4), title="Ünïcode")

    async def write() -> None:
        await db.put_session(one)
        assert await db.sessions() == [one]

    run(write)
    db.close()
    again = Database.open(path)

    async def read() -> None:
        assert await again.sessions() == [one]

    run(read)
    again.close()


def test_lists_are_newest_first_filtered_and_limited(db: Database) -> None:
    """Live sessions by default; states and ended ones on demand."""

    async def work() -> None:
        for n in range(6):
            db.put_session_nowait(info(n, state=("running", "idle", "ended")[n % 3]))
        ids = [s.session[-1] for s in await db.sessions()]
        assert ids == ["4", "3", "1", "0"]
        assert [s.session[-1] for s in await db.sessions(include_ended=True, limit=3)] == ["5", "4", "3"]
        assert [s.session[-1] for s in await db.sessions(["ended"])] == ["5", "2"]
        assert [s.session[-1] for s in await db.sessions(["idle", "ended"], limit=3)] == ["5", "4", "2"]

    run(work)


def test_a_prefix_finds_at_most_the_limit(db: Database) -> None:
    """Two are enough to know that a prefix is ambiguous."""

    async def work() -> None:
        for session in ("s-7f3k2m9qxa", "s-7f3k2m9qxb", "s-7zzzzzzzzz", "s-8000000000"):
            db.put_session_nowait(info(1, session=session))
        assert len(await db.session_by_prefix("s-7")) == 2
        assert len(await db.session_by_prefix("s-7", limit=9)) == 3
        assert [s.session for s in await db.session_by_prefix("s-7z")] == ["s-7zzzzzzzzz"]
        assert [s.session for s in await db.session_by_prefix("s-8000000000")] == ["s-8000000000"]
        assert await db.session_by_prefix("s-9") == []

    run(work)


def test_deleting_forgets_the_session_but_not_its_cost(db: Database) -> None:
    """Also when its row is still dirty."""
    entry = LedgerEntry(
        session=info(1).session, at_ns=5, provider="p", model="m", usage=Usage(input_tokens=7, calls=1)
    )

    async def work() -> None:
        db.put_session_nowait(info(1))
        await db.put_incarnation(
            Incarnation(session=info(1).session, incarnation=1, pid=9, start_time_ticks=8, started_at_ns=7)
        )
        await Ledger(db).add(entry)
        db.put_session_nowait(info(1, state="ended"))
        assert await db.delete_session(info(1).session)
        assert await db.sessions(include_ended=True) == []
        assert await db.incarnations(info(1).session) == []
        assert await Ledger(db).entries(info(1).session) == [entry]
        assert not await db.delete_session(info(1).session)

    run(work)


def test_calls_without_a_price_are_counted(db: Database) -> None:
    """A sum says of how many calls nobody knows the price: what it adds up is the least that it can be."""

    def entry(n: int, agent: str, micros: int | None) -> LedgerEntry:
        usage = Usage(input_tokens=1, usd_micros=micros, calls=1)
        return LedgerEntry(session="s-a", permit=f"p{n}", at_ns=n, provider="p", model="m", agent=agent, usage=usage)

    async def work() -> None:
        for n, (agent, micros) in enumerate((("mixed", 5), ("mixed", None), ("dark", None), ("free", 0))):
            await Ledger(db).add(entry(n, agent, micros))
        rows = await Ledger(db).cost("agent")
        assert {row.key: (row.usage.usd_micros, row.unpriced_calls) for row in rows} == {
            "mixed": (5, 1),
            "dark": (None, 1),
            "free": (0, 0),
        }

    run(work)


def test_live_incarnations_are_those_nobody_has_seen_end(db: Database) -> None:
    """This is what a new root must find or reap."""

    async def work() -> None:
        first = Incarnation(session="s-a", incarnation=1, pid=10, start_time_ticks=99, started_at_ns=5)
        second = Incarnation(session="s-a", incarnation=2, pid=11, start_time_ticks=100, started_at_ns=6)
        await db.put_incarnation(first)
        await db.put_incarnation(second)
        assert await db.live_incarnations() == [first, second]
        ended = Incarnation(
            session="s-a",
            incarnation=1,
            pid=10,
            start_time_ticks=99,
            started_at_ns=5,
            ended_at_ns=7,
            cause=Cause(kind="memory", message="peak 512 MiB"),
        )
        await db.put_incarnation(ended)
        assert await db.live_incarnations() == [second]
        assert await db.incarnations("s-a") == [ended, second]

    run(work)


def test_a_storm_of_updates_costs_few_transactions(db: Database) -> None:
    """Dirty rows coalesce by session: the newest version is written, and the queue cannot grow."""

    async def work() -> None:
        for turn in range(500):
            for n in range(20):
                db.put_session_nowait(info(n, turn=turn))
        assert db.stats().dirty_rows <= 20
        await db.flush()
        stats = db.stats()
        assert stats.commits < 500 and stats.dirty_rows == 0
        assert {s.turn for s in await db.sessions()} == {499}

    run(work)


def test_the_newest_version_wins_whatever_the_order_of_calls(db: Database) -> None:
    """An awaited write and a later nowait one: the later one stays."""

    async def work() -> None:
        for turn in range(50):
            waiting = asyncio.ensure_future(db.put_session(info(1, turn=2 * turn)))
            await asyncio.sleep(0)
            db.put_session_nowait(info(1, turn=2 * turn + 1))
            await waiting
            await db.flush()
            assert (await db.sessions())[0].turn == 2 * turn + 1

    run(work)


def test_one_named_thread_and_it_ends(path: Path) -> None:
    """`close` leaves no thread, closes the file once, and later calls are refused."""
    before = set(threading.enumerate())
    db = Database.open(path)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == THREAD_NAME
    db.put_session_nowait(info(1))
    db.close()
    db.close()
    assert not thread.is_alive()
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    reader.close()
    assert not path.with_name("otto.db-wal").exists()

    async def late() -> None:
        with pytest.raises(StorageError, match="closed"):
            await db.flush()

    run(late)


def test_the_queue_is_bounded_and_the_loop_never_waits(path: Path) -> None:
    """With the thread stuck, calls beyond the bound are refused at once, and nowait writes still return at once."""
    db = Database.open(path)
    release = threading.Event()

    async def work() -> None:
        stuck = asyncio.ensure_future(db._call(release.wait))
        await asyncio.sleep(0)
        deadline = asyncio.get_running_loop().time() + 60
        while db.stats().pending_jobs:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.001)
        waiting = [asyncio.ensure_future(db.flush()) for _ in range(MAX_PENDING_JOBS)]
        await asyncio.sleep(0)
        with pytest.raises(StorageError, match="waiting"):
            await db.flush()
        for n in range(5000):
            db.put_session_nowait(info(n % 10, turn=n))
        assert db.stats().dirty_rows == 10 and db.stats().pending_jobs == MAX_PENDING_JOBS
        release.set()
        await asyncio.gather(stuck, *waiting)
        assert len(await db.sessions()) == 10

    run(work)
    db.close()


def test_a_cancelled_caller_harms_nobody(db: Database) -> None:
    """Its work is done all the same, and the next call works."""

    async def work() -> None:
        task = asyncio.ensure_future(db.put_session(info(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await db.flush()
        assert len(await db.sessions()) == 1

    run(work)


def test_a_failing_disk_is_an_error_for_who_waits_and_a_retry_for_who_does_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only for a while: awaited calls raise, rows stay dirty, reads work, and then everything is written."""
    monkeypatch.setattr(database_module, "RETRY_S", 0.01)
    db = Database.open(path)

    async def work() -> None:
        await db.put_session(info(1))
        await db._call(lambda: db._connection.execute("PRAGMA query_only=1"))
        with pytest.raises(StorageError, match="readonly") as caught:
            await db.put_session(info(2))
        assert caught.value.mend and caught.value.__cause__ is not None
        db.put_session_nowait(info(3))
        with pytest.raises(StorageError):
            await db.flush()
        assert [s.session for s in await db.sessions()] == [info(1).session]
        stats = db.stats()
        assert stats.dirty_rows == 2 and stats.errors >= 2 and "readonly" in stats.last_error
        await db._call(lambda: db._connection.execute("PRAGMA query_only=0"))
        deadline = asyncio.get_running_loop().time() + 60
        while db.stats().dirty_rows:
            assert asyncio.get_running_loop().time() < deadline, "rows are written when the disk is back"
            await asyncio.sleep(0.005)
        assert len(await db.sessions()) == 3

    run(work)
    db.close()


def test_a_full_disk_is_an_error_with_a_mend(db: Database) -> None:
    """SQLITE_FULL, brought about by the database's own page limit."""

    async def work() -> None:
        await db._call(lambda: db._connection.execute("PRAGMA max_page_count=1"))
        with pytest.raises(StorageError, match="full") as caught:
            await db.put_session(info(1, task="x" * 200_000))
        assert "free some space" in caught.value.mend
        await db._call(lambda: db._connection.execute("PRAGMA max_page_count=1000000"))
        await db.flush()
        assert len(await db.sessions()) == 1

    run(work)


def test_a_row_that_no_database_can_hold_does_not_block_the_others(db: Database) -> None:
    """An integer beyond 64 bits is refused to who waits and dropped with a count for who does not."""

    async def work() -> None:
        db.put_session_nowait(info(1))
        with pytest.raises(StorageError):
            await db.put_session(info(2, last_seq=1 << 70))
        assert [s.session for s in await db.sessions()] == [info(1).session]
        assert db.stats().rows_rejected == 1 and db.stats().dirty_rows == 0

    run(work)


def test_an_unreadable_row_does_not_hide_the_others(db: Database) -> None:
    """It is counted."""

    async def work() -> None:
        await db.put_session(info(1))
        await db.put_session(info(2))
        await db._write(
            lambda: db._connection.execute("UPDATE sessions SET info = x'c1' WHERE session = ?", [info(1).session])
        )
        assert [s.session for s in await db.sessions()] == [info(2).session]
        assert db.stats().unreadable_rows == 1

    run(work)


DAMAGED = {
    "no such code": b"\xc1",
    "no text": b"\x81\xa4kind\xa7crash\xffd",
    "too deep": b"\x91" * 100_000,
    "empty": b"",
    "a number": 7,
    "other text": "crashed",
}
"""What a row may hold where a struct was, or a string of it."""


def damage(db: Database, change: str, *values: object) -> Awaitable[object]:
    """Writes into the file beside all that guards it."""
    return db._write(lambda: db._connection.execute(change, values))


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
def test_a_cause_that_cannot_be_read_is_none(db: Database, value: object) -> None:
    """The rest of its row is told, and whoever calls next is answered."""

    async def work() -> None:
        one, cause = info(1), Cause(kind="crashed")
        await db.put_session(one)
        for number in (1, 2):
            row = Incarnation(
                session=one.session, incarnation=number, pid=7, start_time_ticks=8, started_at_ns=9, ended_at_ns=10
            )
            await db.put_incarnation(replace(row, cause=cause))
        await damage(db, "UPDATE incarnations SET cause = ? WHERE incarnation = 1", value)
        found = await db.incarnations(one.session)
        assert [(row.incarnation, row.pid, row.cause) for row in found] == [(1, 7, None), (2, 7, cause)]
        assert db.stats().unreadable_rows == 1
        assert await db.sessions() == [one]

    run(work)


@pytest.mark.parametrize("column", ["pid", "start_time_ticks", "secret", "session"])
@pytest.mark.parametrize("value", ["X'FF'", "CAST(X'FF' AS TEXT)", "'text'", "1.5"])
def test_an_incarnation_that_cannot_be_read_does_not_hide_the_others(db: Database, column: str, value: str) -> None:
    """Whatever SQLite gives for it."""

    async def work() -> None:
        rows = [
            Incarnation(
                session=info(n).session, incarnation=1, pid=n, start_time_ticks=8, started_at_ns=9, secret=b"s"
            )
            for n in (1, 2)
        ]
        for row in rows:
            await db.put_incarnation(row)
        await damage(db, f"UPDATE incarnations SET {column} = {value} WHERE pid = 1")
        found = await db.live_incarnations()
        assert rows[1] in found and len(found) <= 2
        assert await db.sessions() == []

    run(work)


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
def test_what_is_kept_of_a_session_is_bytes_whatever_the_row_holds(db: Database, value: object) -> None:
    """Plans and what supervisors remember are decoded by others, who expect bytes that may mean nothing."""

    async def work() -> None:
        for n in (1, 2):
            await db.put_session(info(n))
            await db.put_plan(info(n).session, b"plan")
            await db.put_supervision(info(n).session, b"node")
        one, two = info(1).session, info(2).session
        await damage(db, "UPDATE plans SET plan = ? WHERE session = ?", value, one)
        await damage(db, "UPDATE supervision SET snapshot = ? WHERE node = ?", value, one)
        await damage(db, "UPDATE sessions SET info = ? WHERE session = ?", value, one)
        for kept, whole in ((await db.live_plans(), b"plan"), (await db.supervision(), b"node")):
            assert kept[two] == whole and isinstance(kept[one], bytes) and kept[one] != whole
        assert isinstance(await db.plan(one), bytes)
        assert await db.sessions() == [info(2)] and db.stats().unreadable_rows == 1

    run(work)


def test_a_session_under_a_name_that_is_none_is_unreadable(db: Database) -> None:
    """One bit of its id is another: nobody could find its events."""

    async def work() -> None:
        await db.put_session(info(1))
        await db.put_session(info(2))
        await damage(
            db,
            "UPDATE sessions SET info = ? WHERE session = ?",
            msgspec.msgpack.encode(info(1, session="s-000000000q!")),
            info(1).session,
        )
        assert [s.session for s in await db.sessions()] == [info(2).session]
        assert db.stats().unreadable_rows == 1

    run(work)


@pytest.mark.parametrize("column", ["'s-000000000q'", "CAST('s-0000000001' AS BLOB)", "CAST(X'FF' AS TEXT)", "7"])
def test_a_session_that_cannot_be_read_is_known_by_each_name_that_its_row_has(db: Database, column: str) -> None:
    """Whichever of the two is damaged: the other one finds what is left of it. What is no name is none."""

    async def work() -> None:
        for n in (1, 2, 3):
            await db.put_session(info(n))
        await damage(db, f"UPDATE sessions SET session = {column} WHERE session = ?", info(1).session)
        await damage(db, "UPDATE sessions SET info = x'c1' WHERE session = ?", info(2).session)
        named = await db.unreadable_sessions()
        assert {info(1).session, info(2).session} <= set(named) and sorted(named) == sorted(map(str, named))
        assert info(3).session not in named
        assert await db.sessions() == [info(3)] and db.stats().unreadable_rows == 2

    run(work)


def test_a_defect_is_told_to_who_called_and_ends_there(db: Database) -> None:
    """What nobody expects, in a call or in a row that is put, costs neither the thread nor the rows beside it."""

    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            await db.query(lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await db.transact(lambda _: 1 // 0)
        db.put_session_nowait(info(1))
        with pytest.raises(StorageError):
            await db.put_session(info(2, title=object()))
        assert [s.session for s in await db.sessions()] == [info(1).session]
        assert db.stats().rows_rejected == 1 and db.stats().dirty_rows == 0

    run(work)


@pytest.mark.parametrize("damage", ["header", "page", "text"])
def test_a_damaged_file_is_put_aside_and_reported(path: Path, damage: str) -> None:
    """Numbered, never deleted; and the new database works."""
    for number in (1, 2):
        db = Database.open(path)

        async def fill(db: Database = db) -> None:
            for n in range(300):
                db.put_session_nowait(info(n, task="x" * 100))
            await db.flush()

        run(fill)
        db.close()
        data = bytearray(path.read_bytes())
        if damage == "header":
            data[:16] = b"not a database!!"
        elif damage == "page":
            data[4096 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4096)
        else:
            data = bytearray(b"hello")
        path.write_bytes(data)
        db = Database.open(path)
        assert db.recovery.moved_aside == f"{path}.broken-{number}"
        assert Path(db.recovery.moved_aside).read_bytes() == bytes(data)
        assert "damaged" in db.recovery.describe()
        begun_at_ns = db.recovery.begun_anew_at_ns
        assert 0 < begun_at_ns <= time.time_ns()

        async def look(db: Database = db) -> None:
            assert await db.sessions() == []

        run(look)
        db.close()
        db = Database.open(path)
        assert not db.recovery.moved_aside and db.recovery.begun_anew_at_ns == begun_at_ns
        db.close()


@pytest.mark.parametrize("value", ["X'FF'", "'soon'", "'-1'", "'²'"])
def test_a_note_of_the_beginning_that_cannot_be_read_is_none(path: Path, value: str) -> None:
    """And a database that did not begin anew has none."""
    for _ in range(2):
        db = Database.open(path)
        assert db.recovery.begun_anew_at_ns == 0
        db.close()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"INSERT OR REPLACE INTO meta VALUES ('begun_anew_at_ns', {value})")


def test_a_newer_schema_is_refused(path: Path) -> None:
    """And the file is left alone."""
    Database.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="schema") as caught:
        Database.open(path)
    assert caught.value.mend and path.read_bytes() == before


def test_migrations_are_applied_once(path: Path) -> None:
    """A second opening finds the schema in order."""
    db = Database.open(path)
    assert db.recovery.created
    db.close()
    db = Database.open(path)
    assert not db.recovery.created and db.recovery.migrated_from == len(MIGRATIONS)
    db.close()


def test_a_second_process_is_refused(db: Database, path: Path) -> None:
    """Two writing connections could corrupt the file."""
    with pytest.raises(StorageError, match="another process"):
        Database.open(path)


def test_paths_that_cannot_be_are_clean_errors(tmp_path: Path) -> None:
    """A missing directory, and a directory in the file's place."""
    for path in (tmp_path / "nowhere" / "otto.db", tmp_path):
        with pytest.raises(StorageError):
            Database.open(path)


WRITER = """
import asyncio, sys
from ottod.protocol.results import SessionInfo
from ottod.storage.database import Database

async def main():
    db = Database.open(sys.argv[1])
    n = 0
    while True:
        n += 1
        for k in range(20):
            db.put_session_nowait(SessionInfo(session=f"s-n{k:09}", agent="a", model="m", state="running", turn=n))
        await db.put_session(SessionInfo(session="s-awaited000", agent="a", model="m", state="running", turn=n))
        print(n, flush=True)

asyncio.run(main())
"""


def test_killed_while_writing_everything_awaited_is_there(path: Path) -> None:
    """kill -9 in the middle of a storm: the file is intact, and no awaited write is missing."""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        last = 0
        for line in process.stdout:
            last = int(line)
            if last >= 40:
                break
        os.kill(process.pid, signal.SIGKILL)
        last = max([last, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
        process.stdout.close()
        process.wait(timeout=30)
        db = Database.open(path)
        assert not db.recovery.moved_aside

        async def look(db: Database = db, last: int = last) -> None:
            turns = {s.session: s.turn for s in await db.sessions()}
            assert turns["s-awaited000"] >= last and len(turns) == 21

        run(look)
        db.close()


def test_a_note_is_written_behind_what_was_put_before(path: Path) -> None:
    """The offset up to which rows know their seqs comes with the next rows, and outlives a reopening."""
    database = Database.open(path)

    async def work() -> None:
        assert await database.noted_offset() == 0
        database.put_session_nowait(info(1))
        database.note_offset_nowait(17)
        await database.flush()
        assert await database.noted_offset() == 17

    run(work)
    database.close()
    again = Database.open(path)

    async def look() -> None:
        assert await again.noted_offset() == 17

    run(look)
    again.close()


def test_a_name_is_looked_up(db: Database) -> None:
    """The newest ended session that a client gave it, by the index; no agent's name, no mention, none that lives."""

    async def work() -> None:
        for n, changes in enumerate(
            (
                {"name": "db", "is_named": True},
                {"name": "db", "is_named": True},
                {"name": "db"},
                {"name": "other", "is_named": True, "task": "db"},
                {"name": "db", "is_named": True, "state": "running"},
            )
        ):
            db.put_session_nowait(info(n, **{"state": "ended", **changes}))
        found = await db.once_named("db")
        assert found is not None and found.session == info(1).session
        assert await db.once_named("") is None and await db.once_named("d") is None
        plan = await db.query(
            lambda c: c.execute(
                "EXPLAIN QUERY PLAN SELECT info FROM sessions WHERE name = ? AND name <> '' AND state = 'ended'"
                " ORDER BY created_at_ns DESC LIMIT 1",
                ("db",),
            ).fetchall()
        )
        assert [row[3] for row in plan] == ["SEARCH sessions USING INDEX sessions_name (name=?)"]

    run(work)


def test_ended_sessions_are_read_as_far_as_they_are_wanted(db: Database) -> None:
    """Newest first, and of a tree all that is in it, in any state, in whatever way it was reached."""

    async def work() -> None:
        parents = {2: 1, 3: 2, 4: 3, 6: 5}
        for n in range(1, 8):
            parent = info(parents[n]).session if n in parents else ""
            db.put_session_nowait(info(n, state="running" if n == 3 else "ended", parent=parent))
        newest = await db.with_ended(lambda rows: next(iter(rows)).session)
        assert newest == info(7).session
        ended = await db.with_ended(lambda rows: [i.created_at_ns - 1000 for i in rows])
        assert ended == [7, 6, 5, 4, 2, 1]
        tree = await db.with_ended(lambda rows: [i.created_at_ns - 1000 for i in rows], top=info(1).session)
        assert tree == [4, 3, 2, 1]

    run(work)
