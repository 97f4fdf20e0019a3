"""The output of a program, bounded: the beginning and the end are kept, the middle is counted and dropped."""

from __future__ import annotations

import codecs
from collections import deque


class BoundedOutput:
    """Collects bytes. Memory stays below about twice `max_bytes`, whatever is fed."""

    def __init__(self, max_bytes: int) -> None:
        self._head_bound = max_bytes - max_bytes // 2
        self._tail_bound = max_bytes // 2
        self._max_bytes = max_bytes
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.total_bytes = 0

    def feed(self, data: bytes) -> None:
        """Takes the next piece."""
        self.total_bytes += len(data)
        room = self._head_bound - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data or not self._tail_bound:
            return
        data = data[-self._tail_bound :]
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes - len(self._tail[0]) >= self._tail_bound:
            self._tail_bytes -= len(self._tail.popleft())
        if len(self._tail) > 64 and self._tail_bytes < 32 * len(self._tail):
            # Many tiny pieces cost more in objects than in bytes.
            self._tail = deque((b"".join(self._tail),))

    @property
    def is_truncated(self) -> bool:
        """True if the middle is missing."""
        return self.total_bytes > self._max_bytes

    def text(self) -> str:
        """What was kept, as text of at most `max_bytes` in UTF-8, besides the line that marks the cut."""
        tail = b"".join(self._tail)[-self._tail_bound :] if self._tail_bound else b""
        if not self.is_truncated:
            return cut_middle(bytes(self._head + tail).decode("utf-8", "replace"), self._max_bytes)
        # A character cut in two at the seam is dropped, not shown as damage that was not there.
        head = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self._head))
        for _ in range(3):
            if tail and tail[0] & 0xC0 == 0x80:
                tail = tail[1:]
        missing = self.total_bytes - self._head_bound - self._tail_bound
        head = _clip(head, self._head_bound, from_end=False)
        return head + _cut_mark(missing) + _clip(tail.decode("utf-8", "replace"), self._tail_bound, from_end=True)


def cut_middle(text: str, max_bytes: int) -> str:
    """The text, with its middle replaced by a mark if it exceeds `max_bytes` in UTF-8."""
    size_bytes = len(text.encode("utf-8", "replace"))
    if size_bytes <= max_bytes:
        return text
    head = _clip(text, max_bytes - max_bytes // 2, from_end=False)
    tail = _clip(text, max_bytes // 2, from_end=True)
    missing = size_bytes - len(head.encode("utf-8", "replace")) - len(tail.encode("utf-8", "replace"))
    return head + _cut_mark(missing) + tail


def _clip(text: str, max_bytes: int, *, from_end: bool) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    if max_bytes <= 0:
        return ""
    return (data[-max_bytes:] if from_end else data[:max_bytes]).decode("utf-8", "ignore")


def _cut_mark(missing_bytes: int) -> str:
    return f"\n[… {missing_bytes} bytes not shown …]\n"
