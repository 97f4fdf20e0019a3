"""The journal as the worker's loop sees it: an entry is durable when `put` returns.

Writing is a copy into the page cache; forcing it to disk happens on a thread. Several entries that wait at the
same time share one sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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

    @classmethod
    def open(cls, birth: Birth) -> JournalWriter:
        """Opens or creates the session's journal; nothing else happens in this process meanwhile.

        Raises: StorageError.
        """
        path = Path(birth.session_dir) / "journal"
        key = session_key(birth.session)
        journal = Journal.open(path, session_key=key, create=birth.incarnation == 1)
        return cls(journal, is_synced=birth.journal_sync == "always")

    @property
    def recovery(self) -> str:
        """What had to be repaired when it was opened; empty if nothing."""
        return self._journal.recovery.describe() if self._journal.recovery.is_repaired else ""

    def note(self, entry: JournalEntry) -> None:
        """Appends an entry that nothing depends on yet. Raises StorageError."""
        self._journal.append(entry)
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
            await asyncio.to_thread(self._journal.sync)
            self._durable = covered
        finally:
            self._syncing = None

    async def close(self) -> None:
        """Waits for a sync that is under way, then closes."""
        if self._syncing is not None:
            await asyncio.wait({self._syncing})
        self._journal.close()
