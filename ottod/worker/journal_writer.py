"""The journal as the worker's loop sees it: an entry is durable when `put` returns.

Writing is a copy into the page cache; forcing it to disk happens on a thread. Several entries that wait at the
same time share one sync.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ottod.ids import session_key
from ottod.protocol.journal import JournalEntry
from ottod.protocol.worker import Birth
from ottod.storage.journal import Journal


class JournalWriter:
    """The one writer of one session's journal."""

    def __init__(self, journal: Journal, *, is_synced: bool) -> None:
        self._journal = journal
        self._is_synced = is_synced
        self._syncing: asyncio.Task[None] | None = None
        self._appended = 0
        self._durable = 0
        self._fsyncs = 0
        self._fsync_ns = 0
        self.redact: Callable[[JournalEntry], JournalEntry] = lambda entry: entry
        """What every entry goes through. What comes into the conversation has been redacted at its entrance, so this
        changes nothing of it: a resumed session has the same conversation."""

    @classmethod
    def open(cls, birth: Birth) -> JournalWriter:
        """Opens the session's journal, or creates it if it is not there; may read for long.

        Raises: StorageError if it cannot be read; RefusedError if another process still writes to it.
        """
        path = Path(birth.session_dir) / "journal"
        journal = Journal.open(path, session_key=session_key(birth.session), create=True)
        return cls(journal, is_synced=birth.journal_sync == "always")

    def take_entries(self) -> list[JournalEntry]:
        """What was there when it was opened. A second call gives nothing: they are not kept."""
        entries, self._journal.entries = self._journal.entries, []
        return entries

    @property
    def recovery(self) -> str:
        """What had to be repaired when it was opened; empty if nothing."""
        return self._journal.recovery.describe() if self._journal.recovery.is_repaired else ""

    def note(self, entry: JournalEntry) -> None:
        """Appends an entry that nothing depends on yet. Raises StorageError."""
        self._journal.append(self.redact(entry))
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

    async def _sync(self) -> None:
        covered = self._appended
        try:
            took_ns = await asyncio.to_thread(self._timed_sync)
            self._durable = covered
            self._fsyncs += 1
            self._fsync_ns += took_ns
        finally:
            self._syncing = None

    def _timed_sync(self) -> int:
        started_ns = time.perf_counter_ns()
        self._journal.sync()
        return time.perf_counter_ns() - started_ns

    def read_fsyncs(self) -> tuple[int, int]:
        """How often the journal was forced to disk, and how long that took together, in nanoseconds."""
        return self._fsyncs, self._fsync_ns

    async def close(self) -> None:
        """Waits for a sync that is under way, then closes."""
        if self._syncing is not None:
            await asyncio.wait({self._syncing})
        self._journal.close()
