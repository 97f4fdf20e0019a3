"""Server-sent events out of a byte stream, bounded.

Fields are lines `name: value`; an empty line ends an event; lines may end in LF, CR or CRLF; a line that begins
with a colon is a comment. Data stays bytes, since JSON decoders want bytes. Source: the HTML standard, §9.2.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event that grows beyond this is refused: no buffer of a worker grows as its peer pleases."""


class EventTooLargeError(Exception):
    """The server sends an event without end."""

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__(f"an event of more than {max_event_bytes} bytes")


class ServerSentEvent(NamedTuple):
    """One event; `event` is empty when the server named none."""

    event: str
    data: bytes


class SseDecoder:
    """Feed it chunks, it gives whole events. The cut between chunks never matters."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._skip_lf = False
        self._event = ""
        self._data: list[bytes] = []
        self._size_bytes = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that this chunk completes. Raises EventTooLargeError."""
        if self._skip_lf and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        elif not chunk:
            return []
        self._skip_lf = chunk.endswith(b"\r")
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        if self._size_bytes + len(self._line) + len(chunk) - end > self._max_event_bytes:
            raise EventTooLargeError(self._max_event_bytes)
        if not end:
            self._line += chunk
            return []
        complete = bytes(self._line) + chunk[:end] if self._line else chunk[:end]
        self._line = bytearray(chunk[end:])
        events: list[ServerSentEvent] = []
        for line in complete.splitlines():
            self._take(line, events)
        return events

    def finish(self) -> list[ServerSentEvent]:
        """The end of the stream: an event whose lines are whole counts even without its empty line."""
        events: list[ServerSentEvent] = []
        self._take(b"", events)
        return events

    def _take(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if not line:
            if self._data:
                events.append(ServerSentEvent(self._event, b"\n".join(self._data)))
            self._event, self._data, self._size_bytes = "", [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size_bytes += len(value) + 1
            if self._size_bytes > self._max_event_bytes:
                raise EventTooLargeError(self._max_event_bytes)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
