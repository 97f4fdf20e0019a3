"""The files of a session's journal: their names, and how those that nobody writes any more are compressed.

::

    journal               the one that is written; its header says how many came before it
    journal.000000        one that was full; the next one begins with a snapshot of what it amounts to
    journal.000001.zst    another, compressed
    journal.new           the next one, while it is made
    journal.zst           the last one, of a session that has ended

A compressed file is one zstd frame with a checksum, written beside the original, forced to disk and renamed before
the original goes: while both are there, the original counts. A frame that is damaged is an error, not a torn tail.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ottod.errors import StorageError
from ottod.storage.aside import sync_directory

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NAME = "journal"
SUFFIX = ".zst"
NEW_SUFFIX = ".new"
CHUNK_BYTES = 1024 * 1024
LEVEL = 3
MIN_ENDED_BYTES = 16 * 1024
"""A smaller file of an ended session is left as it is: nothing would be gained."""
MAX_FILE_BYTES = 4 * 1024**3
"""Of a journal's file, once it is decompressed."""


def full_name(path: Path, number: int) -> Path:
    """What the journal's file with this number is called once it is full."""
    return path.with_name(f"{path.name}.{number:06d}")


def read_file(path: Path) -> bytes:
    """A journal's file, compressed or not. Raises StorageError, also if there is none."""
    compressed = path.with_name(path.name + SUFFIX)
    for _ in range(2):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot read the journal {path}: {error.strerror}") from error
        try:
            return _decompressed(compressed, compressed.read_bytes())
        except FileNotFoundError:
            continue  # Looked at twice: it may have been compressed, or begun, between the two looks.
        except OSError as error:
            raise StorageError(f"cannot read the journal {compressed}: {error.strerror}") from error
    raise StorageError(f"cannot read the journal {path}: no such file", code="no_journal")


def _decompressed(path: Path, data: bytes) -> bytes:
    try:
        decompressor = zstd.ZstdDecompressor()
        plain = decompressor.decompress(data, MAX_FILE_BYTES)
    except zstd.ZstdError as error:
        raise StorageError(f"the journal {path} is damaged: {error}", mend="restore it from a copy") from error
    if not decompressor.eof or decompressor.unused_data:
        raise StorageError(f"the journal {path} is damaged: it was cut", mend="restore it from a copy")
    return plain


def compress_file(path: Path) -> Path:
    """Compresses a file that nobody writes any more, and gives the new name. Blocks. Raises StorageError."""
    target = path.with_name(path.name + SUFFIX)
    temporary = target.with_name(target.name + NEW_SUFFIX)
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.compression_level: LEVEL, parameter.checksum_flag: 1}
    try:
        with path.open("rb") as source, temporary.open("wb") as sink:
            os.fchmod(sink.fileno(), 0o600)
            compressor = zstd.ZstdCompressor(options=options)
            while chunk := source.read(CHUNK_BYTES):
                sink.write(compressor.compress(chunk))
            sink.write(compressor.flush())
            sink.flush()
            os.fsync(sink.fileno())
        temporary.rename(target)
        sync_directory(path.parent)
        path.unlink()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot compress the journal {path}: {error.strerror}") from error
    return target


def compress_ended(directory: Path) -> None:
    """Compresses all files of a journal that nobody writes any more. Blocks. Raises StorageError."""
    for path in sorted(directory.glob(f"{NAME}*")):
        digits = path.name.removeprefix(f"{NAME}.")
        is_full = len(digits) == 6 and digits.isdigit()
        if is_full or (path.name == NAME and _size_bytes(path) >= MIN_ENDED_BYTES):
            compress_file(path)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # Its session has just been forgotten.
