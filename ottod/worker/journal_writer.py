"""The journal as the worker's loop sees it: an entry is durable when `put` returns.

Writing is a copy into the page cache; forcing it to disk happens on a thread of the journal's own, which no tool that
hangs can keep from it. Several entries that wait at the same time share one sync.

When a file has grown beyond its bound the journal is rotated: what all entries amount to becomes the first entry of
the next file, in one step of the loop, and the full file is compressed on a thread. A conversation that is itself as
large as the bound would be written again and again, so the bound grows with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ottod.core.past import Past, Restored
from ottod.errors import StorageError
from ottod.ids import session_key
from ottod.protocol.birth import Birth
from ottod.protocol.journal import JournalEntry, SessionOpened
from ottod.storage.journal import Journal
from ottod.storage.journal_files import NAME, compress_file
from ottod.worker.failpoints import Failpoints

GROWTH = 3
"""A file is never rotated before it is this many times as large as the snapshot that it begins with."""


class JournalWriter:
    """The one writer of one session's journal. `on_trouble` hears of a rotation that could not be made."""

    def __init__(
        self,
        journal: Journal,
        *,
        is_synced: bool,
        file_bytes: int = 16 * 1024 * 1024,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._journal = journal
        self._is_synced = is_synced
        self._file_bytes = file_bytes
        self._bound_bytes = file_bytes
        self._failpoints = failpoints or Failpoints()
        self.on_trouble: Callable[[StorageError], None] = lambda error: None
        self._past = Past()
        """What all entries amount to, for those who go on from them."""
        entries, journal.entries = journal.entries, []
        for entry in entries:
            self._past.take(entry)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._syncing: asyncio.Task[None] | None = None
        self._compressing: set[asyncio.Task[None]] = set()
        self._appended = journal.next_index
        self._durable = journal.next_index
        self._fsyncs = 0
        self._fsync_ns = 0
        self.redact: Callable[[JournalEntry], JournalEntry] = lambda entry: entry
        """What every entry goes through. What comes into the conversation has been redacted at its entrance, so this
        changes nothing of it: a resumed session has the same conversation."""

    @classmethod
    def open(cls, birth: Birth) -> JournalWriter:
        """Opens the session's journal, or creates it for one that has not begun; may read for long.

        Raises: StorageError if it cannot be read; RefusedError if another process still writes to it.
        """
        path = Path(birth.session_dir) / NAME
        journal = Journal.open(path, session_key=session_key(birth.session), create=not birth.has_begun)
        return cls(
            journal,
            is_synced=birth.journal_sync == "always",
            file_bytes=birth.journal_file_bytes,
            failpoints=Failpoints.of(birth),
        )

    def restored(self) -> Restored:
        """What the entries so far amount to."""
        return self._past.restored()

    @property
    def recovery(self) -> str:
        """What had to be repaired when it was opened; empty if nothing."""
        return self._journal.recovery.describe() if self._journal.recovery.is_repaired else ""

    def note(self, entry: JournalEntry) -> None:
        """Appends an entry that nothing depends on yet. Raises StorageError."""
        # An idle session's first entry has nobody's words in it, and looking for secrets would cost it memory.
        if type(entry) is not SessionOpened or entry.task:
            entry = self.redact(entry)
        number = self._appended
        self._failpoints.reached("before", number)
        self._journal.append(entry)
        if self._failpoints.is_set("torn", number):
            self._journal.tear()
            self._failpoints.reached("torn", number)
        self._failpoints.reached("written", number)
        self._past.take(entry)
        self._appended += 1

    async def put(self, entries: Sequence[JournalEntry]) -> None:
        """Appends entries and returns when they are durable. Raises StorageError."""
        for entry in entries:
            self.note(entry)
        target = self._appended
        while self._is_synced and self._durable < target:
            if self._syncing is None:
                self._syncing = asyncio.get_running_loop().create_task(self._sync())
            await asyncio.shield(self._syncing)
        if self._journal.size_bytes > self._bound_bytes and self._syncing is None:
            self._rotate()

    async def _sync(self) -> None:
        covered = self._appended
        try:
            numbers = range(self._durable, covered)
            loop = asyncio.get_running_loop()
            took_ns = await loop.run_in_executor(self._thread, self._timed_sync, numbers)
            for number in numbers:
                self._failpoints.reached("synced", number)
            self._durable = covered
            self._fsyncs += 1
            self._fsync_ns += took_ns
        finally:
            self._syncing = None

    def _timed_sync(self, numbers: range) -> int:
        self._failpoints.hold(numbers)
        started_ns = time.perf_counter_ns()
        self._journal.sync()
        return time.perf_counter_ns() - started_ns

    def read_fsyncs(self) -> tuple[int, int]:
        """How often the journal was forced to disk, and how long that took together, in nanoseconds."""
        return self._fsyncs, self._fsync_ns

    # ------------------------------------------------------------ rotation

    def _rotate(self) -> None:
        """Goes on in the next file. Blocks the loop while a snapshot is written, which is rare."""
        number = self._journal.number
        try:
            full = self._journal.rotate(
                self._past.snapshot(), at=lambda point: self._failpoints.reached(f"rotation-{point}", number)
            )
        except StorageError as error:
            # There is no room, or the conversation is too large for one entry: the file goes on growing.
            self._bound_bytes = 2 * self._journal.size_bytes
            self.on_trouble(error)
            return
        self._durable = self._appended
        self._bound_bytes = max(self._file_bytes, GROWTH * self._journal.size_bytes)
        task = asyncio.get_running_loop().create_task(self._compress(full, number))
        self._compressing.add(task)
        task.add_done_callback(self._compressing.discard)

    async def _compress(self, full: Path, number: int) -> None:
        try:
            await asyncio.to_thread(compress_file, full)
        except StorageError as error:
            self.on_trouble(error)
        self._failpoints.reached("rotation-compressed", number)

    async def close(self) -> None:
        """Waits for what is under way, then closes."""
        tasks = {*self._compressing, *([self._syncing] if self._syncing is not None else [])}
        if tasks:
            await asyncio.wait(tasks)
        self._thread.shutdown(wait=False)
        self._journal.close()
