"""The journal: one append-only file per session, written by its worker alone.

File header, 32 bytes, little-endian::

     0                8        12       16               24       28       32
     +----------------+--------+--------+----------------+--------+--------+
     | magic OTTOJRNL | version| number | session key    | 0      | crc32  |
     | 8 bytes        | u32    | u32    | u64            | u32    | u32    |
     +----------------+--------+--------+----------------+--------+--------+

then records, back to back, 16 bytes of header and the payload, a msgpack `JournalEntry`::

     0        4        8                16
     +--------+--------+----------------+----------
     | crc32  | length | index          | payload …
     | u32    | u32    | u64            |
     +--------+--------+----------------+----------

`number` counts the files that came before this one (`journal_files`): a long-lived session's journal is *rotated*, it
goes on in another file, which begins with a snapshot of all that is in the earlier ones.

`crc32` covers everything behind itself. `index` counts from 0 without a hole. A record whose length is 0 does not
exist, so trailing zeros, which some file systems leave after a crash, are a torn tail like any other.

A torn tail is not corruption: it is a write that the crash came before. Opening keeps the longest valid prefix, says
what it dropped, and puts a copy of the whole file aside first. A bad *file header* is corruption, and an error. So is
a bad record with a whole one behind it: what is behind has happened, and a tail is not torn in its middle.

An entry is written when `append` returns and durable when `sync` returns. After a failed sync nobody knows what is on
disk, so the journal takes nothing more. Source: docs/adr/0004-journal-format.md, docs/adr/0032-lost-journals.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ottod.errors import UNDECODABLE, RefusedError, StorageError
from ottod.protocol.journal import JournalEntry, Snapshot
from ottod.storage.aside import free_name, sync_directory
from ottod.storage.journal_files import NEW_SUFFIX, full_name, read_file
from ottod.storage.lock import lock_file

MAGIC = b"OTTOJRNL"
VERSION = 1
FILE_HEADER = struct.Struct("<8sIIQII")
RECORD_HEADER = struct.Struct("<IIQ")
MAX_ENTRY_BYTES = 16 * 1024 * 1024
INDEX_AT = 8
"""In a record's header."""
LOST, DAMAGED = "journal_lost", "journal_damaged"
"""Codes of errors that no other incarnation can mend."""
MAX_AHEAD = 64
"""How many records in a row may be damaged for those behind them to be found."""
MAX_LOOKS = 256
"""At places that may be the next record's."""
LOST_MEND = "put it back from a copy of yours, if there is one, then `ottoctl resume` the session; or start anew"
HEADER_MEND = "move the file away and restore it from a copy; the session's events are still in the ring"

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[JournalEntry] = msgspec.msgpack.Decoder(JournalEntry)


class JournalRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """What opening found. `dropped_bytes` were cut off behind the last whole record; `aside` holds the original."""

    entries: int = 0
    dropped_bytes: int = 0
    aside: str = ""
    reason: str = ""

    @property
    def is_repaired(self) -> bool:
        return bool(self.reason)

    def describe(self) -> str:
        """One line for people."""
        if not self.is_repaired:
            return f"{self.entries} entries, intact"
        return (
            f"{self.entries} entries kept, {self.dropped_bytes} bytes behind them dropped ({self.reason}); "
            f"the original is {self.aside}"
        )


class Journal:
    """An open journal. `entries` are those that were there when it was opened."""

    def __init__(self, path: Path, fd: int, entries: list[JournalEntry], recovery: JournalRecovery) -> None:
        self.path = path
        self._fd = fd
        self.entries = entries
        self.recovery = recovery
        self._next_index = len(entries)
        self.number = 0
        """How many files came before this one."""
        self.size_bytes = 0
        self._newest_bytes = 0
        self._broken = ""
        self._is_new = False
        """Its name is not durable yet: the first sync sees to that, with the first entry that anybody waits for."""
        self.last_sync_ns = 0
        """How long the newest sync took."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, session_key: int, create: bool) -> Journal:
        """Opens the journal for writing, repairing a torn tail; `create` makes it if it is not there.

        Raises: StorageError if it cannot be read, is no journal, or another session's, with code `journal_damaged`
        if something in it is, and, unless `create`, `journal_lost` if it holds no entry: nothing is changed then.
        RefusedError if another process writes to it.
        """
        path = Path(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError as error:
            code = "" if create else LOST
            raise StorageError(f"there is no journal {path}: {error.strerror}", code=code, mend=LOST_MEND) from error
        except OSError as error:
            raise StorageError(f"cannot open the journal {path}: {error.strerror}") from error
        try:
            return cls._take(path, fd, session_key, create=create)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _take(cls, path: Path, fd: int, session_key: int, *, create: bool) -> Journal:
        try:
            lock_file(fd)
        except BlockingIOError as error:
            raise RefusedError(
                f"another process writes to the journal {path}",
                code="journal_in_use",
                mend="wait until the session's earlier worker is gone",
            ) from error
        try:
            data = _read_all(fd)
            if len(data) < FILE_HEADER.size and create:
                return cls._begin(path, fd, session_key, data)
            entries, end, reason = list[JournalEntry](), 0, ""
            if len(data) >= FILE_HEADER.size:
                check_file_header(data, path, session_key=session_key)
                entries, end, reason = scan(data, path)
            if not (entries or create):
                raise StorageError(f"the journal {path} has lost all that it held", code=LOST, mend=LOST_MEND)
            recovery = JournalRecovery(entries=len(entries))
            number = FILE_HEADER.unpack_from(data)[2]
            if number and not (entries and isinstance(entries[0], Snapshot)):
                raise StorageError(f"the journal {path} has lost what it begins with", code=DAMAGED, mend=LOST_MEND)
            if end < len(data):
                recovery = _cut(path, fd, end, len(data), len(entries), reason)
            _undo_rotation(path, fd, number)
        except OSError as error:
            raise StorageError(f"the journal {path}: {error.strerror}") from error
        journal = cls(path, fd, entries, recovery)
        journal.number, journal.size_bytes = number, end
        return journal

    @classmethod
    def _begin(cls, path: Path, fd: int, session_key: int, found: bytes) -> Journal:
        """A new file, or one that the crash came before the header was whole."""
        head = file_header(session_key, number=0)
        if not head.startswith(found.rstrip(b"\0")):
            raise StorageError(f"{path} is not this session's journal", mend=HEADER_MEND)
        recovery = JournalRecovery()
        if found:
            recovery = _cut(path, fd, 0, len(found), 0, "the file header was not whole")
        _write_all(fd, head)
        journal = cls(path, fd, [], recovery)
        journal._is_new = True
        journal.size_bytes = len(head)
        return journal

    @property
    def next_index(self) -> int:
        """The next entry's, in this file."""
        return self._next_index

    def tear(self) -> None:
        """Cuts the newest record in half: what a power failure may leave of it. For tests."""
        os.ftruncate(self._fd, self.size_bytes - self._newest_bytes // 2)

    def append(self, entry: JournalEntry) -> int:
        """Writes an entry and gives its index. It is not durable yet. Raises StorageError."""
        if self._broken:
            raise StorageError(self._broken, mend="free some space; the session continues from its last entry")
        record = encode_record(entry, self._next_index)
        try:
            _write_all(self._fd, record)
        except OSError as error:
            # A part of the record may be in the file: it is a torn tail, and nothing may follow it.
            self._broken = f"cannot write the journal {self.path}: {error.strerror}"
            raise StorageError(self._broken, mend="free some space, then start the task again") from error
        index = self._next_index
        self._next_index += 1
        self._newest_bytes = len(record)
        self.size_bytes += len(record)
        return index

    def sync(self) -> None:
        """Blocks until everything appended is on disk; for a thread. Raises StorageError, and then for good."""
        if self._broken:
            raise StorageError(self._broken, mend="free some space, then start the task again")
        begun_ns = time.monotonic_ns()
        try:
            os.fdatasync(self._fd)
            if self._is_new:
                sync_directory(self.path.parent)
                self._is_new = False
        except OSError as error:
            self._broken = f"cannot sync the journal {self.path}: {error.strerror}"
            raise StorageError(self._broken, mend="check the disk, then start the task again") from error
        self.last_sync_ns = time.monotonic_ns() - begun_ns

    def rotate(self, snapshot: Snapshot, *, at: Callable[[str], None] = lambda point: None) -> Path:
        """Goes on in another file, which begins with `snapshot`; gives the name of the full one. Blocks.

        Killed at any point of it, the journal is either the old file or the new one, and nothing is lost. `at` is
        called with the name of each point. Raises StorageError; the old file is then still the journal, unless the
        journal takes nothing more.
        """
        self.sync()
        new, full = self.path.with_name(self.path.name + NEW_SUFFIX), full_name(self.path, self.number)
        record = encode_record(snapshot, 0)
        fd = -1
        try:
            head = os.pread(self._fd, FILE_HEADER.size, 0)
            key = FILE_HEADER.unpack(head)[3]
            new.unlink(missing_ok=True)
            fd = os.open(new, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            lock_file(fd)
            at("made")
            _write_all(fd, file_header(key, number=self.number + 1) + record)
            os.fsync(fd)
            at("written")
            os.link(self.path, full)
            sync_directory(self.path.parent)
            at("linked")
            new.rename(self.path)
            at("renamed")
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                # What it has left takes up room, where room may be what is missing, and stands in the next one's way.
                _undo_rotation(self.path, self._fd, self.number)
            raise StorageError(f"cannot rotate the journal {self.path}: {error.strerror}") from error
        old, self._fd = self._fd, fd
        os.close(old)
        self.number += 1
        self._next_index, self.size_bytes = 1, FILE_HEADER.size + len(record)
        try:
            sync_directory(self.path.parent)
        except OSError as error:
            self._broken = f"cannot sync the journal {self.path}: {error.strerror}"
            raise StorageError(self._broken, mend="check the disk, then start the task again") from error
        at("durable")
        return full

    def close(self) -> None:
        """Gives the file and its lock back. A second call changes nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._broken = f"the journal {self.path} is closed"


def read_journal(path: str | os.PathLike[str]) -> list[JournalEntry]:
    """The whole entries of a journal, also while its worker writes. Raises StorageError."""
    path = Path(path)
    return parse_file(path, read_file(path))[1]


def parse_file(path: Path, data: bytes) -> tuple[int, list[JournalEntry]]:
    """How many files came before this one, and its whole entries. Raises StorageError."""
    if len(data) < FILE_HEADER.size and MAGIC.startswith(data[: len(MAGIC)].rstrip(b"\0")):
        return 0, []  # It is being made.
    check_file_header(data, path)
    return FILE_HEADER.unpack_from(data)[2], scan(data, path)[0]


def file_header(session_key: int, *, number: int) -> bytes:
    """The header of a file that `number` others came before."""
    head = FILE_HEADER.pack(MAGIC, VERSION, number, session_key, 0, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "little")


def encode_record(entry: JournalEntry, index: int) -> bytes:
    """One record. Raises StorageError if the entry is too large for one."""
    payload = _encoder.encode(entry)
    if len(payload) > MAX_ENTRY_BYTES:
        raise StorageError(
            f"a journal entry of {len(payload)} bytes exceeds {MAX_ENTRY_BYTES}", code="entry_too_large"
        )
    body = struct.pack("<IQ", len(payload), index) + payload
    return zlib.crc32(body).to_bytes(4, "little") + body


def begin_journal(path: Path, entry: JournalEntry, *, session_key: int) -> None:
    """Makes a journal that begins with this entry, durably. Blocks. Raises StorageError."""
    journal = Journal.open(path, session_key=session_key, create=True)
    try:
        journal.append(entry)
        journal.sync()
    finally:
        journal.close()


def check_file_header(data: bytes, path: Path, *, session_key: int | None = None) -> None:
    """Raises StorageError unless `data` begins as a journal (of that session, if one is given)."""
    mend = HEADER_MEND
    if len(data) < FILE_HEADER.size:
        raise StorageError(f"{path} is too short for a journal", mend=mend)
    magic, version, _, key, _, crc = FILE_HEADER.unpack_from(data)
    if magic != MAGIC:
        raise StorageError(f"{path} is not a journal", mend=mend)
    if crc != zlib.crc32(data[: FILE_HEADER.size - 4]):
        raise StorageError(f"the header of the journal {path} is damaged", mend=mend)
    if version != VERSION:
        raise StorageError(
            f"the journal {path} has version {version}, this is version {VERSION}", mend="use a newer ottod"
        )
    if session_key is not None and key != session_key:
        raise StorageError(f"the journal {path} belongs to another session", mend=mend)


def scan(data: bytes, path: Path) -> tuple[list[JournalEntry], int, str]:
    """The whole records from the start, the byte behind the last of them, and what is wrong there.

    Raises: StorageError for a whole record of an unknown kind, and for one behind what is wrong.
    """
    entries: list[JournalEntry] = []
    at, wrong = FILE_HEADER.size, ""
    while at < len(data):
        stop, wrong = _end_of_record(data, at, len(entries))
        if wrong:
            break
        try:
            entries.append(_decoder.decode(data[at + RECORD_HEADER.size : stop]))
        except UNDECODABLE as error:
            # The checksum holds, so this is what was written: by a later version. Cutting it off would lose it.
            raise StorageError(
                f"record {len(entries)} of the journal is of a kind that this version does not know",
                mend="use the version of ottod that wrote it, or a newer one",
            ) from error
        at = stop
    if wrong and (behind := _find_record(data, at, len(entries) + 1)):
        raise StorageError(
            f"the journal {path} is damaged at byte {at}, record {len(entries)}, and goes on at byte {behind}",
            code=DAMAGED,
            mend=LOST_MEND,
        )
    return entries, at, wrong


def _end_of_record(data: bytes, at: int, wanted: int) -> tuple[int, str]:
    """Where the record at this byte ends, if it is whole and has the wanted index; else what is wrong with it."""
    if len(data) - at < RECORD_HEADER.size:
        return 0, "a record header was cut"
    crc, length, index = RECORD_HEADER.unpack_from(data, at)
    stop = at + RECORD_HEADER.size + length
    if length == 0 or length > MAX_ENTRY_BYTES:
        return 0, "no record begins there"
    if stop > len(data):
        return 0, "a record was cut"
    if zlib.crc32(memoryview(data)[at + 4 : stop]) != crc or index != wanted:
        return 0, "a record is damaged"
    return stop, ""


def _find_record(data: bytes, at: int, first: int) -> int:
    """Where, behind this byte, a whole record with an index from `first` on begins; 0 if nowhere.

    It is looked for by its index, since of a damaged record the length may be wrong as well.
    """
    looks = 0
    for index in range(first, first + MAX_AHEAD):
        found, pattern = at, struct.pack("<Q", index)
        while looks < MAX_LOOKS and (found := data.find(pattern, found + 1)) >= 0:
            looks += 1
            begin = found - INDEX_AT
            if begin > at and not _end_of_record(data, begin, index)[1]:
                return begin
    return 0


def _undo_rotation(path: Path, fd: int, number: int) -> None:
    """What a rotation that was killed has left: the next file, or a second name of this one."""
    path.with_name(path.name + NEW_SUFFIX).unlink(missing_ok=True)
    full = full_name(path, number)
    if full.exists() and os.path.samestat(os.fstat(fd), full.stat()):
        full.unlink()


def _cut(path: Path, fd: int, end: int, size: int, entries: int, reason: str) -> JournalRecovery:
    """Puts a copy aside, then truncates, durably and in this order."""
    aside = free_name(path, "broken")
    try:
        shutil.copyfile(path, aside)
        with aside.open("rb+") as copy:
            os.fchmod(copy.fileno(), 0o600)
            os.fsync(copy.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    os.ftruncate(fd, end)
    os.fsync(fd)
    sync_directory(path.parent)
    return JournalRecovery(entries=entries, dropped_bytes=size - end, aside=str(aside), reason=reason)


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    pieces = []
    at = 0
    while at < size:
        piece = os.pread(fd, size - at, at)
        if not piece:
            break
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
