"""The output of a program, bounded: the beginning and the end are kept, the middle is counted and dropped.

Half a secret must not stand at either side of the gap. So a little more is kept on each side than is shown, secrets
are taken out of that, and only then it is cut.
"""

from __future__ import annotations

import codecs
from collections import deque

from ottod.core.cut_text import clip, cut_mark, cut_middle
from ottod.core.redaction import Redactor

MARGIN_BYTES = 64 * 1024
"""Kept beyond what is shown: more than any secret is long."""


class BoundedOutput:
    """Collects bytes. Memory stays below about twice `max_bytes` and the margins, whatever is fed.

    With a `redactor` secrets are taken out where something is cut out; what is whole is left as it is.
    """

    def __init__(self, max_bytes: int, *, redactor: Redactor | None = None) -> None:
        margin = MARGIN_BYTES if redactor is not None else 0
        self._redactor = redactor
        self._head_bound = max_bytes - max_bytes // 2 + margin
        self._tail_bound = max_bytes // 2 + (margin if max_bytes > 1 else 0)
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
        """What was kept, as text of at most `max_bytes` in UTF-8, besides the line that marks the cut.

        Blocks for as long as it takes to look for secrets in it.
        """
        tail = b"".join(self._tail)[-self._tail_bound :] if self._tail_bound else b""
        if self.total_bytes <= self._head_bound + self._tail_bound:
            whole = bytes(self._head + tail).decode("utf-8", "replace")
            if self.is_truncated and self._redactor is not None:
                whole = self._redactor.text(whole)
            return cut_middle(whole, self._max_bytes)
        # A character cut in two at the seam is dropped, not shown as damage that was not there.
        head = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self._head))
        for _ in range(3):
            if tail and tail[0] & 0xC0 == 0x80:
                tail = tail[1:]
        shown_tail_bytes = self._max_bytes // 2
        shown_head_bytes = self._max_bytes - shown_tail_bytes
        if self._redactor is None:
            end = tail.decode("utf-8", "replace")
        else:
            head = self._redactor.beginning(head)
            at = max(0, len(tail) - shown_tail_bytes)
            before = tail[:at].decode("utf-8", "replace")
            end = self._redactor.ending(tail[at:].decode("utf-8", "replace"), before=before)
        head = clip(head, shown_head_bytes, from_end=False)
        end = clip(end, shown_tail_bytes, from_end=True)
        return head + cut_mark(self.total_bytes - self._max_bytes) + end
