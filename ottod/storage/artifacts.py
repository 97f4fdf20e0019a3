"""The content of artifacts: one file for each distinct content, under the name of its SHA-256.

    artifacts/3f/3f9a…64 digits       the content, mode 0400, never changed
    artifacts/incoming-…              being written; removed at the next start if its writer died

A file bears its digest as a name only once it is whole and on disk, so whatever has such a name can be believed after
a crash. Which of them mean something is for the index to say; what it does not know is swept away (`sweep`).

Workers hand content over in directories of their own, where they can write at any moment. So nothing there is
trusted: it is copied, and what counts is the copy, whose digest is computed while it is made. Nothing there is
reached by a symlink, either.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Collection
from pathlib import Path

from ottod.errors import RefusedError, StorageError
from ottod.protocol.artifacts import DIGEST, MAX_ARTIFACT_BYTES

COPY_BYTES = 256 * 1024
INCOMING = "incoming-"


class ArtifactStore:
    """The files below one directory. All methods block: for a thread. Only one process may have it open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Makes the directory, and removes what a killed writer has left. Raises StorageError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for entry in self._directory.iterdir():
                if entry.name.startswith(INCOMING):
                    entry.unlink(missing_ok=True)
        except OSError as error:
            raise _storage(self._directory, error) from error

    def take(self, handover: Path, token: str, *, digest: str, size_bytes: int) -> None:
        """Copies a handed-over file into the store; when it returns, the content is durable.

        Raises: RefusedError if the file is not what it is said to be, StorageError if it cannot be kept.
        """
        if not DIGEST.match(digest) or not 0 <= size_bytes <= MAX_ARTIFACT_BYTES:
            raise RefusedError(
                f"an artifact of {size_bytes} bytes; {MAX_ARTIFACT_BYTES} is the limit", code="too_large"
            )
        source = _open_handed_over(handover, token, size_bytes)
        incoming = self._directory / f"{INCOMING}{secrets.token_hex(8)}"
        try:
            with os.fdopen(source, "rb", buffering=0) as file:
                found = self._copy(file.fileno(), incoming, size_bytes)
            if found != digest:
                raise RefusedError("the content changed while it was handed over", code="bad_artifact")
            self._place(incoming, digest)
        except OSError as error:
            raise _storage(self._directory, error) from error
        finally:
            incoming.unlink(missing_ok=True)

    def _copy(self, source: int, target: Path, size_bytes: int) -> str:
        """Copies at most one byte more than was announced; gives the digest of the copy, which is on disk."""
        hasher = hashlib.sha256()
        left = size_bytes + 1
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            while left > 0 and (piece := os.read(source, min(COPY_BYTES, left))):
                left -= len(piece)
                hasher.update(piece)
                _write(fd, piece)
            os.fsync(fd)
        finally:
            os.close(fd)
        return hasher.hexdigest()

    def _place(self, incoming: Path, digest: str) -> None:
        """Gives a whole file its name. One that is there already is replaced: it may have been damaged."""
        target = self._path(digest)
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(self._directory)
        incoming.rename(target)
        _sync_directory(target.parent)

    def give(self, digest: str, handover: Path, token: str) -> None:
        """Puts a copy into a session's directory. Raises StorageError if the content is damaged or gone."""
        data = self.read(digest)
        try:
            handover.mkdir(mode=0o700, exist_ok=True)
            directory = os.open(handover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(token, flags, 0o600, dir_fd=directory)
                try:
                    _write(fd, data)
                finally:
                    os.close(fd)
            finally:
                os.close(directory)
        except OSError as error:
            raise _storage(handover, error) from error

    def read(self, digest: str, offset: int = 0, length: int = MAX_ARTIFACT_BYTES) -> bytes:
        """The content or a part of it. A whole one is compared with its digest. Raises StorageError."""
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise _storage(path, error) from error
        if offset == 0 and len(data) < length and hashlib.sha256(data).hexdigest() != digest:
            raise StorageError(f"{path} is damaged: it does not have its digest", mend="restore it from a backup")
        return data

    def sweep(self, known: Collection[str]) -> int:
        """Removes every content that is not among the known digests; gives their number. Raises StorageError."""
        removed = 0
        try:
            for path in [*self._directory.glob("??/*")]:
                if path.name not in known:
                    path.unlink(missing_ok=True)
                    removed += 1
        except OSError as error:
            raise _storage(self._directory, error) from error
        return removed

    def remove(self, digests: Collection[str]) -> None:
        """Removes contents; one that is not there is no matter. Raises StorageError."""
        try:
            for digest in digests:
                self._path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise _storage(self._directory, error) from error

    def _path(self, digest: str) -> Path:
        if not DIGEST.match(digest):
            raise StorageError(f"not a digest: {digest[:80]!r}")
        return self._directory / digest[:2] / digest


def _open_handed_over(handover: Path, token: str, size_bytes: int) -> int:
    """A descriptor of the file. Raises RefusedError if it is not there, or is something else than was said."""
    try:
        directory = os.open(handover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(token, flags, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise RefusedError(f"the content was not handed over: {error.strerror}", code="bad_artifact") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
        os.close(fd)
        raise RefusedError("what was handed over is not the file that was announced", code="bad_artifact")
    return fd


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _storage(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: {error.strerror or error}", mend="check the disk and who owns the state directory")
