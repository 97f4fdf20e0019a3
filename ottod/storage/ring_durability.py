"""What of a ring is on disk: its superblock, the offsets reserved there, and syncing.

An offset that a subscriber may have seen must never be given again, not even after a power failure that takes the
event. So offsets are reserved ahead: the superblock's limit is on disk before any offset at or above it is given.
"""

from __future__ import annotations

import os
import threading

import msgspec

from ottod.errors import StorageError
from ottod.storage.ring_file import RingFile
from ottod.storage.ring_format import HEAD_NOTE, HEAD_NOTE_AT, SUPERBLOCK_BYTES, U64, Superblock, write_superblock

RESERVED_OFFSETS = 1 << 20
"""How many offsets are reserved on disk at a time. A power failure skips at most twice as many."""
_MEND = "check the disk, then restart the daemon"


class RingDurability:
    """The superblock of an open ring.

    `sync` and `close` block and may run in another thread than the rest; they exclude each other.
    """

    def __init__(self, file: RingFile, superblock: Superblock) -> None:
        self.superblock = superblock
        self.limit = 0
        """Offsets below it may be given: the superblock's limit, once that is on disk."""
        self.syncs = 0
        self._file = file
        self._writing = threading.Lock()
        """Held for the few microseconds of writing a superblock, also by the loop's thread."""
        self._syncing = threading.Lock()
        """Held while the disk is waited for, never by the loop's thread."""
        self._failure = ""

    def begin(self, *, boot_id: str, next_offset: int, missing_events: int) -> None:
        """Makes a ring just opened and repaired durable, in this boot's name. Raises OSError."""
        limit = self.superblock.offset_limit
        if limit - next_offset < RESERVED_OFFSETS // 2:
            limit = next_offset + RESERVED_OFFSETS
        HEAD_NOTE.pack_into(self._file.map, HEAD_NOTE_AT, next_offset, next_offset ^ U64, 0)
        os.fdatasync(self._file.fd)
        self._update(
            clean=False,
            damaged=False,
            boot_id=boot_id,
            offset_limit=limit,
            synced_offset=next_offset - 1,
            missing_events=missing_events,
        )
        os.fdatasync(self._file.fd)
        self.limit = limit

    def forget(self, offset: int) -> None:
        """Moves the watermark of vanished sessions."""
        self._update(forgotten_offset=max(self.superblock.forgotten_offset, offset))

    def reserve(self, upto: int) -> None:
        """Reserves offsets when `sync` did not do so in time: one page is written, and the caller waits for it.

        Raises: StorageError.
        """
        limit = upto + RESERVED_OFFSETS
        self._update(offset_limit=limit)
        try:
            self._file.map.flush(0, SUPERBLOCK_BYTES)
        except OSError as error:
            raise StorageError(f"{self._file.path}: cannot reserve offsets: {error.strerror}", mend=_MEND) from error
        self.limit = max(self.limit, limit)

    def sync(self, *, newest: int, missing_events: int) -> None:
        """Blocks until the file is on disk and the superblock vouches for it up to offset `newest`.

        Raises: StorageError; after a failed sync nobody knows what is on disk, so every later one fails too.
        """
        with self._syncing:
            if self._failure:
                raise StorageError(self._failure, mend=_MEND)
            if newest <= self.superblock.synced_offset or self._file.is_closed:
                return
            limit = self.limit
            if limit - newest < RESERVED_OFFSETS // 2:
                limit = newest + 1 + RESERVED_OFFSETS
            try:
                os.fdatasync(self._file.fd)
                # Two steps, or the mark could reach the disk before what it vouches for.
                self._update(synced_offset=newest, missing_events=missing_events, offset_limit=limit)
                os.fdatasync(self._file.fd)
            except OSError as error:
                self._failure = f"{self._file.path}: cannot sync: {error.strerror}"
                raise StorageError(self._failure, mend=_MEND) from error
            self.limit = max(self.limit, limit)
            self.syncs += 1

    def close(self, *, clean: bool) -> None:
        """Closes the file, marked as complete if `clean`. Raises StorageError; the file is closed all the same."""
        with self._syncing:
            try:
                if clean and not self._failure:
                    self._update(clean=True)
                    os.fdatasync(self._file.fd)
            except OSError as error:
                raise StorageError(f"{self._file.path}: cannot sync: {error.strerror}", mend=_MEND) from error
            finally:
                self._file.close()

    def _update(self, **changes: object) -> None:
        """Writes the superblock with these fields changed; the limit never goes down."""
        with self._writing:
            old = self.superblock
            new = msgspec.structs.replace(old, **changes)
            limit = max(new.offset_limit, old.offset_limit)
            # A new limit goes into both copies, so that no single damaged copy brings an old one back.
            for _ in range(1 if limit == old.offset_limit else 2):
                new = msgspec.structs.replace(new, counter=self.superblock.counter + 1, offset_limit=limit)
                write_superblock(self._file.map, new)
                self.superblock = new
