"""The bounded, replayable ring of the hubs that are written in Python: the newest events, in memory."""

from __future__ import annotations

from benchmarks.peers.wire import GAP, HELLO, READ_BYTES, RECORD_BYTES, RING_BYTES, pack


class Ring:
    """Whole records, addressed by an offset that counts events from 0."""

    def __init__(self, size_bytes: int = RING_BYTES) -> None:
        self.capacity = size_bytes // RECORD_BYTES
        self._bytes = bytearray(self.capacity * RECORD_BYTES)
        self.head = 0
        """The offset of the next event."""

    @property
    def tail(self) -> int:
        """The oldest offset that is still here."""
        return max(0, self.head - self.capacity)

    def append(self, records: memoryview) -> None:
        """Takes whole records, in as many bytes as they need; at most the ring's size."""
        at = self.head % self.capacity * RECORD_BYTES
        room = len(self._bytes) - at
        self._bytes[at : at + min(room, len(records))] = records[:room]
        if len(records) > room:
            self._bytes[: len(records) - room] = records[room:]
        self.head += len(records) // RECORD_BYTES

    def read(self, cursor: int) -> bytes:
        """A copy of what follows the cursor, up to the ring's end or READ_BYTES: live ring memory may change."""
        at = cursor % self.capacity * RECORD_BYTES
        size = min(self.head - cursor, READ_BYTES // RECORD_BYTES) * RECORD_BYTES
        return bytes(self._bytes[at : min(at + size, len(self._bytes))])


def hello(offset: int) -> bytes:
    """The record that opens a subscription."""
    return pack(HELLO, 0, offset, 0)


def gap(first: int, count: int) -> bytes:
    """The record that says what is missing."""
    return pack(GAP, 0, first, count)
