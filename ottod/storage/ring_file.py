"""The file behind a ring: made whole or not at all, locked, mapped, and put aside when it cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path

import msgspec

from ottod.errors import StorageError
from ottod.storage.aside import move_aside, sync_directory
from ottod.storage.lock import lock_file
from ottod.storage.ring_format import (
    MAX_LOST_INTERVALS,
    SUPERBLOCK_BYTES,
    Superblock,
    UnknownVersion,
    pack_superblock,
    read_head_note,
    read_superblock,
    write_superblock,
)
from ottod.storage.ring_recovery import Image, RingRecovery, recover, scan_segment, with_lost

DEFAULT_SIZE_BYTES = 64 * 1024 * 1024
DEFAULT_SEGMENT_BYTES = 128 * 1024
"""Holds the largest record; smaller segments make fairness finer and records that do not fit more likely."""
MIN_SEGMENT_BYTES = 1024
SECTOR_BYTES = 512
READ_BYTES = 1 << 20
ReadAt = Callable[[int, int, int], bytes]
"""As `os.pread`: descriptor, length, position."""

SALVAGE_MARGIN = 1 << 20
"""How far beyond the newest offset found in an unreadable ring its successor begins."""


class RingFile:
    """An open, locked and mapped file."""

    def __init__(self, path: Path, fd: int, length: int) -> None:
        self.path = path
        self.fd = fd
        self.map = mmap(fd, length)

    @property
    def is_closed(self) -> bool:
        return self.fd < 0

    def close(self) -> None:
        """Unmaps and unlocks. Once is enough, twice is harmless."""
        if self.fd >= 0:
            self.map.close()
            os.close(self.fd)
            self.fd = -1


def open_ring_file(
    path: Path,
    *,
    size_bytes: int,
    segment_bytes: int,
    boot_id: str,
    min_next_offset: int,
    pread: ReadAt = os.pread,
) -> tuple[RingFile, Image]:
    """Opens, repairs or makes the file. Raises StorageError.

    It is read once before it is mapped: what the disk does not give back is an error then, and SIGBUS in a mapping.
    """
    if segment_bytes < MIN_SEGMENT_BYTES or segment_bytes % SECTOR_BYTES or size_bytes < 2 * segment_bytes:
        raise StorageError(
            f"{path}: a ring of {size_bytes} bytes cannot have segments of {segment_bytes} bytes",
            mend=f"segments are {MIN_SEGMENT_BYTES} bytes or more, a multiple of {SECTOR_BYTES}, and at least two",
        )
    fresh = _begin_at(min_next_offset, Superblock(size_bytes=size_bytes, segment_bytes=segment_bytes))
    with _as_storage_error(path):
        if not path.exists():
            return _create(path, fresh, RingRecovery(created=True, lost=fresh.lost[0] if fresh.lost else None))
        fd = _open_locked(path)
        try:
            superblock = _check_superblock(path, _salvage(fd, SUPERBLOCK_BYTES, 0, pread), fresh)
            if superblock is None or not _is_readable(fd, superblock.file_bytes, pread):
                return _replace(path, fd, fresh, pread)
            superblock, missing = _restore_length(path, fd, superblock)
            file = RingFile(path, fd, superblock.file_bytes)
        except BaseException:
            os.close(fd)
            raise
        return file, _not_before(
            min_next_offset, recover(file.map, superblock, boot_id=boot_id, missing_bytes=missing)
        )


def _begin_at(start: int, superblock: Superblock) -> Superblock:
    """An empty ring that knows of nothing before offset `start`."""
    lost = ((1, start - 1),) if start > 1 else ()
    return msgspec.structs.replace(superblock, offset_limit=start, lost=lost)


def _not_before(min_next_offset: int, image: Image) -> Image:
    """The image with the offsets between its own end and `min_next_offset` declared lost."""
    if image.next_offset >= min_next_offset:
        return image
    lost = (image.next_offset, min_next_offset - 1)
    return image._replace(
        next_offset=min_next_offset,
        superblock=msgspec.structs.replace(
            image.superblock, lost=with_lost(image.superblock.lost, lost)[-MAX_LOST_INTERVALS:]
        ),
        recovery=msgspec.structs.replace(image.recovery, lost=lost),
    )


def _check_superblock(path: Path, head: bytes, wanted: Superblock) -> Superblock | None:
    """The superblock, or None if there is none to be had. Raises StorageError if it is not what is wanted."""
    mend = f"move {path} away to start with an empty ring"
    try:
        superblock = read_superblock(head)
    except UnknownVersion:
        raise StorageError(f"{path}: the ring was written by another version of Otto", mend=mend) from None
    if superblock is None:
        return None
    if (superblock.size_bytes, superblock.segment_bytes) != (wanted.size_bytes, wanted.segment_bytes):
        raise StorageError(
            f"{path}: the ring has {superblock.size_bytes} bytes in segments of {superblock.segment_bytes}, "
            f"the configuration says {wanted.size_bytes} in segments of {wanted.segment_bytes}",
            mend=f"set the old sizes again, or {mend}",
        )
    return superblock


def _restore_length(path: Path, fd: int, superblock: Superblock) -> tuple[Superblock, int]:
    """Gives a file that was cut short its length back. Returns how many bytes were missing."""
    length, wanted = os.fstat(fd).st_size, superblock.file_bytes
    if length > wanted:
        raise StorageError(f"{path}: the file has {length} bytes, the ring in it {wanted}", mend=f"move {path} away")
    if length < wanted:
        # Said before it is done: a crash in between must not make the missing part look like free segments.
        superblock = msgspec.structs.replace(superblock, counter=superblock.counter + 1, damaged=True)
        at, copy = pack_superblock(superblock)
        os.pwrite(fd, copy, at)
        os.fsync(fd)
    # Also where nothing is missing: a copied file may have holes, and a hole on a full disk is a SIGBUS.
    os.posix_fallocate(fd, 0, wanted)
    return superblock, wanted - length


def _create(path: Path, superblock: Superblock, recovery: RingRecovery) -> tuple[RingFile, Image]:
    """Makes the file under another name and gives it its own when it is whole and on disk."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd, path)
        os.posix_fallocate(fd, 0, superblock.file_bytes)
        file = RingFile(path, fd, superblock.file_bytes)
        for _ in range(2):
            superblock = msgspec.structs.replace(superblock, counter=superblock.counter + 1)
            write_superblock(file.map, superblock)
        os.fsync(fd)
        draft.rename(path)
        sync_directory(path.parent)
    except BaseException:
        os.close(fd)
        draft.unlink(missing_ok=True)
        raise
    free = list(range(superblock.segment_count - 1, -1, -1))
    return file, Image([], free, superblock.offset_limit, 1, superblock, recovery)


def _replace(path: Path, fd: int, fresh: Superblock, pread: ReadAt) -> tuple[RingFile, Image]:
    """Puts an unreadable ring aside and starts anew, beyond every offset that the old one still shows."""
    newest = _newest_offset(fd, fresh, pread)
    if newest:
        fresh = _begin_at(max(newest + 1 + SALVAGE_MARGIN, fresh.offset_limit), fresh)
    aside = move_aside(path)
    lost = fresh.lost[0] if fresh.lost else None
    made = _create(path, fresh, RingRecovery(created=True, moved_aside=str(aside), lost=lost))
    os.close(fd)
    return made


def _newest_offset(fd: int, fresh: Superblock, pread: ReadAt) -> int:
    """The newest offset to be found in a ring that cannot be used, 0 if there is none."""
    length = os.fstat(fd).st_size
    if length < SUPERBLOCK_BYTES:
        return 0
    head = _salvage(fd, SUPERBLOCK_BYTES, 0, pread)
    note = read_head_note(head)
    newest = note.next_offset - 1 if note is not None and note.next_offset else 0
    for number in range((length - SUPERBLOCK_BYTES) // fresh.segment_bytes):
        # Each is looked at as if it were the only one.
        found = _salvage(fd, fresh.segment_bytes, SUPERBLOCK_BYTES + number * fresh.segment_bytes, pread)
        segment = scan_segment(memoryview(head + found), 0, fresh).segment
        if segment is not None:
            newest = max(newest, segment.last_offset)
    return newest


def _is_readable(fd: int, stop: int, pread: ReadAt) -> bool:
    at = 0
    try:
        while found := pread(fd, min(READ_BYTES, stop - at), at):
            at += len(found)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        return False
    return True


def _salvage(fd: int, length: int, at: int, pread: ReadAt) -> bytes:
    """So many bytes of the file, with zeros for those that are not there, or that the disk does not give back."""
    try:
        return pread(fd, length, at).ljust(length, b"\0")
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
    if length <= SECTOR_BYTES:
        return bytes(length)
    parts = range(at, at + length, SECTOR_BYTES)
    return b"".join(_salvage(fd, min(SECTOR_BYTES, at + length - part), part, pread) for part in parts)


def _open_locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        lock_file(fd)
    except BlockingIOError:
        raise StorageError(f"{path}: another process is writing this ring", mend="stop the other daemon") from None


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "free some space, or configure a smaller ring" if error.errno in _NO_SPACE else ""
        raise StorageError(f"{path}: {error.strerror}", mend=mend) from error


_UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)
"""What the kernel says of a sector, or of a block whose checksum is wrong."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
