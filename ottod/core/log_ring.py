"""The newest output of a process that may run for days: a bounded number of bytes, read by a cursor.

    dropped │ kept, at most max_bytes │ not yet written
            ^ first                   ^ end               cursors count from the first byte ever written

A reader that was away for too long is told how many bytes it missed.
"""

from __future__ import annotations

from collections import deque


class LogRing:
    """Memory stays below about twice `max_bytes`, whatever is fed."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.end = 0
        """How many bytes were ever written: the cursor behind the newest one."""
        self._pieces: deque[bytes] = deque()
        self._kept = 0

    @property
    def first(self) -> int:
        """The cursor of the oldest byte that is kept."""
        return self.end - self._kept

    def feed(self, data: bytes) -> None:
        """Takes the next piece; the oldest bytes make room for it."""
        self.end += len(data)
        data = data[-self.max_bytes :] if self.max_bytes else b""
        if data:
            self._pieces.append(data)
            self._kept += len(data)
        surplus = self._kept - self.max_bytes
        while surplus > 0:
            oldest = self._pieces.popleft()
            if len(oldest) > surplus:
                self._pieces.appendleft(oldest[surplus:])
            cut = min(surplus, len(oldest))
            self._kept -= cut
            surplus -= cut
        if len(self._pieces) > 64 and self._kept < 64 * len(self._pieces):
            # Many tiny pieces cost more in objects than in bytes.
            self._pieces = deque((b"".join(self._pieces),))

    def read(self, cursor: int, max_bytes: int) -> tuple[bytes, int, int]:
        """At most `max_bytes` from a cursor on; the cursor behind them; how many bytes before them are gone."""
        begin = min(max(cursor, self.first), self.end)
        missed = max(0, begin - cursor)
        skip = begin - self.first
        found = bytearray()
        for piece in self._pieces:
            if skip >= len(piece):
                skip -= len(piece)
                continue
            found += piece[skip : skip + max_bytes - len(found)]
            skip = 0
            if len(found) >= max_bytes:
                break
        return bytes(found), begin + len(found), missed
