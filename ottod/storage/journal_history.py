"""The whole history that a session's journal holds, in however many files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ottod.errors import StorageError
from ottod.protocol.journal import JournalEntry, Snapshot
from ottod.storage.journal import parse_file
from ottod.storage.journal_files import NAME, full_name, read_file


class History(msgspec.Struct, frozen=True, kw_only=True):
    """All entries of a session. `incomplete` says why the oldest are missing, if they are."""

    entries: tuple[JournalEntry, ...]
    incomplete: str = ""


def read_history(directory: Path) -> History:
    """All entries of the session whose directory this is, oldest first, also while its worker writes.

    Snapshots at the heads of files are left out where what they repeat is there. Raises StorageError.
    """
    live = directory / NAME
    number, entries = parse_file(live, read_file(live))
    parts: list[list[JournalEntry]] = [entries]
    incomplete = ""
    for earlier in reversed(range(number)):
        path = full_name(live, earlier)
        try:
            _, entries = parse_file(path, read_file(path))
        except StorageError as error:
            incomplete = error.message
            break
        parts.append(entries)
    whole = list(parts[-1])
    for part in reversed(parts[:-1]):
        whole += part[1:] if part and isinstance(part[0], Snapshot) else part
    return History(entries=tuple(whole), incomplete=incomplete)
