"""What outlives root: the ring's file and the database, and the faults of the disk that they are on.

Both are the real classes. The ring lies in a small file in memory; the database is real SQLite in memory whose
thread is replaced by the world: its work is done at once, and known to the caller after a delay. A root that is
killed loses what the thread had not got to.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ottod.errors import StorageError
from ottod.protocol.records import RecordHeader
from ottod.storage import database_rows as rows
from ottod.storage.database import Database
from ottod.storage.ring import Ring
from ottod.storage.schema import MIGRATIONS, DatabaseFile, DatabaseRecovery
from tests.simulation.loop import VirtualLoop
from tests.simulation.world import NS, World

RING_BYTES = 256 * 1024
SEGMENT_BYTES = 8 * 1024
WRITE_S = (0.000_200, 0.050)
COALESCE_S = 0.02
BOOT_ID = "a simulated boot"
LOST = b"incarnation.exited"
"""What is in a record that says so: root may die before it says what follows."""

Guard = Callable[[str], None]
"""Called where root may be killed; raises when it is, and for everything that a dead root tries."""


class Disk:
    """The machine's storage. `is_full` makes every write fail."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.path = directory / "ring.wal"
        self.is_full = False
        self.was_full = False
        """It has been full in this run: failed writes may show up later."""
        self.connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        for number, migration in enumerate(MIGRATIONS, 1):
            self.connection.executescript(f"BEGIN; {migration} PRAGMA user_version={number}; COMMIT;")
        self.on_append: Callable[[bytes, RecordHeader, int], None] = lambda record, header, offset: None

    def open_ring(self, guard: Guard, *, min_next_offset: int) -> SimRing:
        ring = SimRing.open(
            self.path,
            boot_id=BOOT_ID,
            size_bytes=RING_BYTES,
            segment_bytes=SEGMENT_BYTES,
            min_next_offset=min_next_offset,
        )
        assert isinstance(ring, SimRing)
        ring.disk, ring.guard = self, guard
        return ring

    def newest_offset(self) -> int:
        """What `Database.newest_offset` would say; asked before there is a loop."""
        return rows.max_last_offset(self.connection)

    def state_of(self, session: str) -> str:
        """The state that a committed row says."""
        found = self.connection.execute("SELECT state FROM sessions WHERE session = ?", (session,)).fetchone()
        return str(found[0]) if found is not None else ""

    def open_incarnations(self) -> list[str]:
        """Workers that the committed rows say are alive."""
        return [f"{row.session}.{row.incarnation}" for row in rows.select_live_incarnations(self.connection)[0]]

    def close(self) -> None:
        self.connection.close()
        self.path.unlink(missing_ok=True)


class SimRing(Ring):
    """The real ring, watched: root may die before and after an append, and a full disk cannot sync."""

    disk: Disk
    guard: Guard

    def append(self, record: bytes | memoryview, header: RecordHeader) -> tuple[int, bytes]:
        self.guard("append")
        offset, sealed = super().append(record, header)
        self.disk.on_append(bytes(record), header, offset)
        self.guard("appended")
        if LOST in bytes(record):
            self.guard("lost")
        return offset, sealed

    def sync(self) -> int:
        if self.disk.is_full:
            raise StorageError("ring.wal: no space left on device")
        return super().sync()


class SimDatabase(Database):
    """The real database without its thread."""

    def __init__(self, disk: Disk, loop: VirtualLoop, guard: Guard) -> None:
        self._disk = disk
        self._loop = loop
        self._guard = guard
        self._is_write_due = False
        self._busy_until_ns = 0
        super().__init__(DatabaseFile(Path("otto.db"), -1, disk.connection, DatabaseRecovery()))

    def _run(self) -> None:
        """The thread ends at once: the world does its work, see `_work`."""

    def put_session_nowait(self, info: Any) -> None:
        super().put_session_nowait(info)
        if not self._is_write_due:
            self._is_write_due = True
            self._disk.world.after(COALESCE_S, self._write_dirty)

    def _write_dirty(self) -> None:
        self._is_write_due = False
        if self._loop.is_dead or self._closing:
            return
        try:
            self._drain(durable=False)
        except StorageError:
            self._is_write_due = True
            self._disk.world.after(1.0, self._write_dirty)

    def _commit(self, work: Callable[[], Any], *, durable: bool) -> Any:
        if self._disk.is_full:
            raise self._note(sqlite3.OperationalError("database or disk is full"))
        return super()._commit(work, durable=durable)

    async def _call(self, work: Callable[[], Any]) -> Any:
        self._guard("database")
        if self._closing:
            raise StorageError("otto.db: closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        world = self._disk.world
        # One thread: calls are served in their order.
        self._busy_until_ns = max(self._busy_until_ns, world.now_ns) + int(world.delay(*WRITE_S) * NS)
        world.at(self._busy_until_ns, self._work, future, work)
        result = await future
        self._guard("database answered")
        return result

    def _work(self, future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        """The thread's turn: everything dirty goes first, as in the real one."""
        if self._loop.is_dead:
            return
        result, failure = None, None
        try:
            self._drain(durable=False)
        except StorageError:
            pass  # Counted already; the job itself says what it makes of it.
        try:
            result = work()
        except StorageError as error:
            failure = error
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            failure = self._note(error)
        self._loop.call_soon(_settle, future, result, failure)

    def close(self) -> None:
        self._closing = True
        if self._dirty:
            self._drain(durable=True)


def _settle(future: asyncio.Future[Any], result: Any, failure: StorageError | None) -> None:
    if future.cancelled():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
