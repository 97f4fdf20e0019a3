"""The database: what root knows of sessions, their processes and their cost, in SQLite behind one thread.

Root's loop never touches SQLite. Every statement runs in one named thread that owns the only writing connection.
Reads and awaited writes are jobs in a bounded queue; a session row that nobody waits for only marks the session as
dirty, and the thread writes the newest version of each dirty row when it gets there, so that a storm of updates
costs one row per session.

Durability: the write-ahead log makes every commit survive the death of the process. `synchronous=NORMAL` syncs the
log at checkpoints only, which is right for rows that follow from events (the ring and the journals say more); a
power failure may take the last of them, never the file. Awaited writes commit with `synchronous=FULL`: once awaited,
they survive a power failure too.

If a write fails (disk full, read-only), awaited calls raise StorageError, the dirty rows are kept and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ottod.errors import StorageError
from ottod.protocol.events import SessionState
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import AuditEntry, SessionInfo
from ottod.storage import database_rows as rows
from ottod.storage import policy_rows
from ottod.storage.database_rows import Incarnation
from ottod.storage.definitions import DefinitionRow, keep_definitions
from ottod.storage.schema import DatabaseFile, DatabaseRecovery, open_database_file, storage_error

MAX_PENDING_JOBS = 1024
"""More calls than this waiting at once are refused: something is wrong with the disk."""
COALESCE_S = 0.02
"""How long the thread lets dirty rows gather; at full event rate this is one transaction for many updates."""
RETRY_S = 1.0
MAX_REJECTED = 64
MAX_PENDING_AUDIT = 10_000
"""Entries that wait for a disk which takes none; beyond it the oldest go, and their number is noted."""
CLOSE_TIMEOUT_S = 10.0
THREAD_NAME = "otto-database"

T = TypeVar("T")


class DatabaseStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since opening, and a reading of the present."""

    commits: int
    rows_written: int
    rows_rejected: int
    unreadable_rows: int
    errors: int
    last_error: str
    dirty_rows: int
    pending_jobs: int


class _Job:
    """One call: `work` runs in the thread, its outcome goes to `future` in `loop`."""

    __slots__ = ("future", "loop", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.work = work


class Database:
    """See the module. Made by `Database.open`; its methods are for one event loop at a time."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._connection = file.connection
        self._wake = threading.Condition()
        """Guards the jobs, the dirty rows and `_closing`; nobody holds it for more than a few instructions."""
        self._jobs: deque[_Job] = deque()
        self._dirty: dict[str, SessionInfo] = {}
        self._audit: deque[AuditEntry] = deque()
        self._audit_lost = 0
        self.audit_entries = 20_000
        """How many entries of the audit trail are kept."""
        self._noted_offset = 0
        """Waits to be written with the next rows; 0 for nothing."""
        self._closing = False
        self._rejected: dict[str, tuple[SessionInfo, str]] = {}
        """The newest rows that no database could hold, for whoever waits for them."""
        self._has_unsynced = False
        self._commits = self._rows_written = self._rows_rejected = self._unreadable_rows = self._errors = 0
        self._last_error = ""
        self.recovery: DatabaseRecovery = file.recovery
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Database:
        """Opens or makes the database, checks and migrates it. Blocks; for start-up.

        Raises: StorageError if it cannot be opened, is in use, or is of a newer version. A damaged file is put
        aside as `otto.db.broken-N`, and `recovery` says so.
        """
        return cls(open_database_file(Path(path)))

    # ------------------------------------------------------------ sessions

    async def put_session(self, info: SessionInfo, *, durable: bool = True) -> None:
        """Writes the session's row. Once awaited it survives a power failure, or, unless `durable`, only a kill.

        Raises: StorageError.
        """
        with self._wake:
            self._dirty[info.session] = info
        await self._call(self._drain_durably if durable else self._drain_quickly)
        rejected, reason = self._rejected.get(info.session, (None, ""))
        if rejected is info:
            raise StorageError(f"{self._file.path}: {info.session}: {reason}")

    def put_session_nowait(self, info: SessionInfo) -> None:
        """Writes the session's row soon. Never blocks, never fails; see `stats` for errors."""
        with self._wake:
            is_first = not self._dirty
            self._dirty[info.session] = info
            if is_first:
                self._wake.notify()

    def note_offset_nowait(self, offset: int) -> None:
        """From what was put before, every session's seq is known as of `offset`: written behind it, or with it."""
        with self._wake:
            self._noted_offset = offset

    async def noted_offset(self) -> int:
        """Up to which offset all rows of live sessions know their seqs; 0 if nobody said. Raises StorageError."""
        return await self._call(lambda: rows.select_noted_offset(self._connection))

    async def sessions(
        self, states: Sequence[SessionState] = (), *, limit: int = 1000, include_ended: bool = False
    ) -> list[SessionInfo]:
        """Sessions, newest first: those in one of `states`, or all that live, or all. Raises StorageError."""

        def work() -> list[SessionInfo]:
            return self._unpack(rows.select_sessions(self._connection, states, limit, include_ended=include_ended))

        return await self._call(work)

    async def unreadable_sessions(self) -> list[str]:
        """Those that live, as far as anybody can say, and whose rows cannot be read. Raises StorageError.

        By each name that such a row has: of two, one is the true one.
        """

        def work() -> list[str]:
            _, bad = rows.unpack_infos(rows.select_sessions(self._connection, (), -1, include_ended=False))
            # A damaged row may have anything for a name.
            return [name for names in bad for name in names if isinstance(name, str)]

        return await self._call(work)

    async def count_ended(self) -> int:
        """How many ended sessions are on record. Raises StorageError."""
        return await self._call(lambda: rows.count_ended(self._connection))

    async def session_by_prefix(self, prefix: str, *, limit: int = 2) -> list[SessionInfo]:
        """Sessions whose id begins with `prefix` (in canonical form), by id. Raises StorageError."""
        return await self._call(lambda: self._unpack(rows.select_sessions_by_prefix(self._connection, prefix, limit)))

    async def once_named(self, name: str) -> SessionInfo | None:
        """The newest ended session that was given this name, if one is on record. Raises StorageError."""
        found = await self._call(lambda: self._unpack(rows.select_named(self._connection, name)))
        return found[0] if found else None

    async def with_ended(self, work: Callable[[Iterable[SessionInfo]], T], *, top: str = "") -> T:
        """What `work` makes, in the thread, of the ended sessions, newest first; it reads as many as it likes.

        With a `top` they are that session and all below it, in any state. Raises StorageError.
        """

        def in_thread() -> T:
            packed = rows.each_below(self._connection, top) if top else rows.each_ended(self._connection)
            with contextlib.closing(packed):
                return work(self._unpacked(packed))

        return await self._call(in_thread)

    async def children(self, parent: str) -> list[SessionInfo]:
        """The newest sessions that were started below `parent`, newest first. Raises StorageError."""
        return await self._call(lambda: self._unpack(rows.select_children(self._connection, parent)))

    async def surplus_sessions(self, retain: int, *, limit: int) -> list[str]:
        """Ids of ended sessions beyond the newest `retain`, oldest end first. Raises StorageError."""
        return await self._call(lambda: rows.select_surplus(self._connection, retain, limit))

    async def delete_session(self, session: str) -> bool:
        """Forgets a session and its incarnations; its cost stays in the ledger. Raises StorageError."""
        with self._wake:
            self._dirty.pop(session, None)
        return await self._write(lambda: rows.delete_session(self._connection, session))

    async def newest_offset(self) -> int:
        """The newest offset that any session's row mentions, 0 if there is none. Raises StorageError."""
        return await self._call(lambda: rows.max_last_offset(self._connection))

    # ------------------------------------------------------------ processes

    async def put_incarnation(self, incarnation: Incarnation, *, durable: bool = True) -> None:
        """Writes an incarnation's row; unless `durable` it survives only a kill. Raises StorageError."""
        await self._write(lambda: rows.upsert_incarnation(self._connection, incarnation), durable=durable)

    async def live_incarnations(self) -> list[Incarnation]:
        """Incarnations that nobody has seen end. Raises StorageError."""
        return await self._call(lambda: self._counted(rows.select_live_incarnations(self._connection)))

    async def incarnations(self, session: str) -> list[Incarnation]:
        """All incarnations of a session, oldest first; without a cause that cannot be read. Raises StorageError."""
        return await self._call(lambda: self._counted(rows.select_incarnations(self._connection, session)))

    # ------------------------------------------------------------ supervision

    async def put_plan(
        self, session: str, plan: bytes, *, start_key: str = "", definitions: Sequence[DefinitionRow] = ()
    ) -> None:
        """Writes what the session is made from, with its definitions; it survives a kill. Raises StorageError."""
        at_ns = time.time_ns()

        def work() -> None:
            rows.upsert_plan(self._connection, session, start_key, plan)
            keep_definitions(self._connection, session, definitions, at_ns)

        await self._write(work, durable=False)

    async def live_plans(self) -> dict[str, bytes]:
        """Session → plan, of all that live. Raises StorageError."""
        return await self._call(lambda: rows.select_live_plans(self._connection))

    async def plan(self, session: str) -> bytes:
        """What the session is made from; empty if nobody knows. Raises StorageError."""
        return await self._call(lambda: rows.select_plan(self._connection, session))

    async def session_by_key(self, start_key: str) -> str:
        """The session that was started with this key; empty if there is none. Raises StorageError."""
        return await self._call(lambda: rows.select_session_by_key(self._connection, start_key))

    async def put_supervision(self, node: str, snapshot: bytes) -> None:
        """Writes what a supervisor remembers; empty forgets it. It survives a kill. Raises StorageError."""
        work = functools.partial(rows.upsert_supervision, self._connection, node, snapshot)
        await self._write(work, durable=False)

    async def supervision(self) -> dict[str, bytes]:
        """Node → what its supervisor remembered. Raises StorageError."""
        return await self._call(lambda: rows.select_supervision(self._connection))

    # ------------------------------------------------------------ for stores of their own

    async def transact(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Runs `work` in one transaction; unless `durable` it survives only a kill. Raises StorageError."""
        return await self._write(functools.partial(work, self._connection), durable=durable)

    async def query(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work`, which only reads. Raises StorageError."""
        return await self._call(functools.partial(work, self._connection))

    # ------------------------------------------------------------ tables of others

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` finds, in the thread; it must not change anything. Raises StorageError."""
        return await self._call(lambda: work(self._connection))

    async def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Runs `work` in one transaction; unless `durable` it survives only a kill. Raises StorageError."""
        return await self._write(lambda: work(self._connection), durable=durable)

    # ------------------------------------------------------------ permission

    def put_audit_nowait(self, entry: AuditEntry) -> None:
        """Writes an entry of the audit trail, no later than any session row that is put after it. From any thread."""
        with self._wake:
            if len(self._audit) >= MAX_PENDING_AUDIT:
                self._audit.popleft()
                self._audit_lost += 1
            self._audit.append(entry)
            if not self._dirty:
                self._wake.notify()

    async def audit(self, session: str = "", *, limit: int) -> list[AuditEntry]:
        """The newest entries, oldest first, of one session or of all. Raises StorageError."""
        await self._call(self._drain_quickly)
        return await self._call(lambda: policy_rows.select_audit(self._connection, session, limit))

    async def put_grant(self, grant: StandingGrant) -> None:
        """Writes leave that stands, durably. Raises StorageError."""
        await self._write(lambda: policy_rows.upsert_grant(self._connection, grant))

    async def delete_grant(self, grant: str) -> None:
        """Forgets leave that stood, durably. Raises StorageError."""
        await self._write(lambda: policy_rows.delete_grant(self._connection, grant))

    async def grants(self) -> list[StandingGrant]:
        """All leave that stands. Raises StorageError."""
        return await self._call(lambda: policy_rows.select_grants(self._connection))

    # ------------------------------------------------------------ life

    async def flush(self) -> None:
        """Waits until everything put before is on disk. Raises StorageError."""
        await self._call(self._drain_durably)

    def stats(self) -> DatabaseStats:
        """A reading for metrics."""
        with self._wake:
            return DatabaseStats(
                commits=self._commits,
                rows_written=self._rows_written,
                rows_rejected=self._rows_rejected,
                unreadable_rows=self._unreadable_rows,
                errors=self._errors,
                last_error=self._last_error,
                dirty_rows=len(self._dirty),
                pending_jobs=len(self._jobs),
            )

    def close(self) -> None:
        """Writes what is dirty, checkpoints and closes. Blocks; for the end, after `flush`. Twice is harmless.

        Raises: StorageError if rows could not be written.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise StorageError(
                f"{self._file.path}: still writing after {CLOSE_TIMEOUT_S:.0f} s", mend="check the disk"
            )
        if self._dirty:
            raise StorageError(f"{self._file.path}: {len(self._dirty)} sessions not written: {self._last_error}")

    # ------------------------------------------------------------ from the loop to the thread

    async def _write(self, work: Callable[[], T], *, durable: bool = True) -> T:
        def in_transaction() -> T:
            return self._commit(work, durable=durable)

        return await self._call(in_transaction)

    async def _call(self, work: Callable[[], T]) -> T:
        job = _Job(asyncio.get_running_loop(), work)
        with self._wake:
            if self._closing:
                raise StorageError(f"{self._file.path}: closed")
            if len(self._jobs) >= MAX_PENDING_JOBS:
                raise StorageError(
                    f"{self._file.path}: {MAX_PENDING_JOBS} calls are waiting already", mend="check the disk"
                )
            self._jobs.append(job)
            self._wake.notify()
        result: T = await job.future
        return result

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        retry = False
        while True:
            with self._wake:
                if not self._jobs and not self._closing:
                    self._wait(retry)
                jobs, self._jobs = self._jobs, deque()
                closing = self._closing
            try:
                self._drain(durable=any(job.work == self._drain_durably for job in jobs))
                retry = False
            except StorageError:
                # Counted already. What was asked for is still tried: reads work on a full disk.
                retry = True
            except Exception as error:  # noqa: BLE001 - a defect too: it shows in the counters, and is tried again
                self._note(error)
                retry = True
            for job in jobs:
                self._perform(job)
            if closing and not self._jobs:
                break
        try:
            self._file.close()
        except sqlite3.Error as error:
            self._note(error)

    def _wait(self, retry: bool) -> None:
        """Waits for work, holding `_wake`: for a job at once, for dirty rows until some have gathered."""
        if not self._dirty and not self._audit:
            self._wake.wait_for(lambda: self._jobs or self._dirty or self._audit or self._closing)
        if not self._jobs and not self._closing:
            self._wake.wait_for(lambda: self._jobs or self._closing, RETRY_S if retry else COALESCE_S)

    def _perform(self, job: _Job) -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = job.work()
        except StorageError as error:
            failure = error
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            failure = self._note(error)
        except Exception as error:  # noqa: BLE001 - a defect is for who called: without the thread all would wait for ever
            failure = error
        try:
            job.loop.call_soon_threadsafe(_settle, job.future, result, failure)
        except RuntimeError:
            pass  # The loop is closed, and with it whoever waited.

    def _drain_durably(self) -> None:
        self._drain(durable=True)

    def _drain_quickly(self) -> None:
        self._drain(durable=False)

    def _drain(self, *, durable: bool) -> None:
        """Writes all dirty rows in one transaction, and syncs older ones too if `durable`. Raises StorageError."""
        with self._wake:
            batch, self._dirty = self._dirty, {}
            audit, self._audit = self._audit, deque()
            lost, self._audit_lost = self._audit_lost, 0
            noted = self._noted_offset
        if not batch and not audit and not (durable and self._has_unsynced):
            return
        try:
            written = self._commit(lambda: self._upsert(batch, noted, audit, lost), durable=durable)
        except BaseException:
            with self._wake:
                self._dirty = {**batch, **self._dirty}
                self._audit = audit + self._audit
                self._audit_lost += lost
            raise
        self._rows_written += written

    def _upsert(self, batch: dict[str, SessionInfo], noted: int, audit: Iterable[AuditEntry], lost: int) -> int:
        written = 0
        self._add_audit(audit, lost)
        for session, info in batch.items():
            try:
                rows.upsert_session(self._connection, info)
                written += 1
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001 - trying again would fail again, and take the other rows with it
                self._note(error)
                self._rows_rejected += 1
                self._rejected[session] = (info, str(error))
                if len(self._rejected) > MAX_REJECTED:
                    del self._rejected[next(iter(self._rejected))]
        if noted and not self._rows_rejected:
            rows.upsert_noted_offset(self._connection, noted)
        if not written:
            # SQLite syncs its log only for a transaction that changes something.
            rows.touch(self._connection)
        return written

    def _add_audit(self, audit: Iterable[AuditEntry], lost: int) -> None:
        entries = list(audit)
        if lost:
            entries.insert(
                0, AuditEntry(kind="lost", at_ns=time.time_ns(), reason=f"{lost} entries were not written")
            )
        if not entries:
            return
        try:
            policy_rows.insert_audit(self._connection, entries, keep=self.audit_entries)
        except (OverflowError, UnicodeEncodeError) as error:
            # Trying again would fail again, and take the other rows with it.
            self._note(error)
            self._rows_rejected += len(entries)

    def _commit(self, work: Callable[[], T], *, durable: bool) -> T:
        """Runs `work` in one transaction. Raises StorageError, with nothing written."""
        connection = self._connection
        try:
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._note(error) from error
        self._commits += 1
        self._has_unsynced = not durable
        return result

    def _unpack(self, packed: list[rows.PackedRow]) -> list[SessionInfo]:
        infos, bad = rows.unpack_infos(packed)
        return self._counted((infos, len(bad)))

    def _counted(self, found: tuple[list[T], int]) -> list[T]:
        whole, bad = found
        self._unreadable_rows += bad
        return whole

    def _unpacked(self, packed: Iterable[rows.PackedRow]) -> Iterator[SessionInfo]:
        for row in packed:
            yield from self._unpack([row])

    def _note(self, error: Exception) -> StorageError:
        failure = storage_error(self._file.path, error)
        self._errors += 1
        self._last_error = failure.message
        return failure


def _settle(future: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if future.cancelled():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
