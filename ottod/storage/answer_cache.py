"""Models' answers that may stand in for another: files in one directory, the least lately used go first.

A file is named by its key. Layout:

    | crc32 of the answer | answer |
    |       4 bytes       |  ...   |

A file that is damaged is no answer, and is removed. Nothing is synced: an answer lost is a call made.
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path

MAX_BYTES = 64 * 1024 * 1024
MAX_ANSWERS = 10_000
_KEY = re.compile(r"[0-9a-f]{16,128}\Z")
_CRC_BYTES = 4


class AnswerCache:
    """One directory. Its methods block on files, and may be called from any thread."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES, max_answers: int = MAX_ANSWERS) -> None:
        """Touches nothing before its first use."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_answers = max_answers
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] | None = None
        """By key, the least lately used first."""
        self._held_bytes = 0
        self._newest_ns = 0
        """When the answer that was used last was used, as its file says."""

    def get(self, key: str) -> bytes:
        """The answer; empty if there is none. Raises OSError if the directory cannot be used."""
        with self._lock:
            sizes = self._known()
            if key not in sizes:
                return b""
            path = self._directory / key
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                data = b""
            answer = data[_CRC_BYTES:]
            if len(data) <= _CRC_BYTES or zlib.crc32(answer).to_bytes(_CRC_BYTES, "big") != data[:_CRC_BYTES]:
                self._remove(key)
                return b""
            sizes.move_to_end(key)
            self._used(path)
            return answer

    def put(self, key: str, answer: bytes) -> None:
        """Keeps an answer, in place of the one that was there. Raises OSError; ValueError for what is no key."""
        if not _KEY.match(key) or not answer:
            raise ValueError("an answer needs a key in hex and a content")
        with self._lock:
            sizes = self._known()
            path = self._directory / key
            fresh = self._directory / f".{key}"
            fresh.write_bytes(zlib.crc32(answer).to_bytes(_CRC_BYTES, "big") + answer)
            self._used(fresh)
            fresh.replace(path)
            self._held_bytes += len(answer) + _CRC_BYTES - sizes.pop(key, 0)
            sizes[key] = len(answer) + _CRC_BYTES
            while self._held_bytes > self._max_bytes or len(sizes) > self._max_answers:
                self._remove(next(iter(sizes)))

    def _used(self, path: Path) -> None:
        """Dates a file behind all others: the kernel's own dates are alike for milliseconds, and may go back."""
        self._newest_ns = max(self._newest_ns + 1, time.time_ns())
        os.utime(path, ns=(self._newest_ns, self._newest_ns))

    def _remove(self, key: str) -> None:
        assert self._sizes is not None
        self._held_bytes -= self._sizes.pop(key)
        (self._directory / key).unlink(missing_ok=True)

    def _known(self) -> OrderedDict[str, int]:
        if self._sizes is None:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            found = []
            for entry in os.scandir(self._directory):
                if _KEY.match(entry.name):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((stat.st_mtime_ns, entry.name, stat.st_size))
                elif entry.name.startswith("."):
                    os.unlink(entry.path)  # A write that a killed daemon did not finish.
            self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
            self._newest_ns = max((at_ns for at_ns, _, _ in found), default=0)
            self._held_bytes = sum(self._sizes.values())
        return self._sizes
