"""The hub of the peers that are written in Python: a uvloop loop, the ring, and sessions that connect to its socket.

    python -m benchmarks.peers.py.hub SOCKET forkserver|spawn|circus LOWER SDK

How a session's process is started is the business of `starters`; the hub takes it as ready when it connects, and
replaces it when its line breaks.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from benchmarks.peers.py.starters import Starter, starter
from benchmarks.peers.ring import Ring, gap, hello
from benchmarks.peers.wire import READ_BYTES, RECORD_BYTES


class Hub:
    """Sessions, subscribers and the driver, around one ring."""

    def __init__(self, start: Starter) -> None:
        self.ring = Ring()
        self.sessions: dict[int, Line] = {}
        self.subscribers: set[Line] = set()
        self.driver: Line | None = None
        self.start = start
        self.known: set[int] = set()
        self.ended = asyncio.Event()
        self._scheduled = False

    def publish(self, records: memoryview) -> None:
        """Appends; subscribers are served once per iteration of the loop with all that it brought."""
        self.ring.append(records)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        for line in self.subscribers:
            line.pump()

    def obey(self, words: list[str]) -> None:
        """One order of the driver."""
        match words[0], [int(word) for word in words[1:] if word.lstrip("-").isdigit()]:
            case "spawn", [first, count]:
                for number in range(first, first + count):
                    self.start.start(number)
            case "emit", [first, count, *plan]:
                order = ("emit " + " ".join(map(str, plan)) + "\n").encode()
                for number in range(first, first + count):
                    self.sessions[number].transport.write(order)
            case "fault", [number, amount]:
                self.sessions[number].transport.write(f"fault {words[2]} {amount}\n".encode())
            case _:
                self.ended.set()

    def session_ready(self, number: int, pid: int, line: Line) -> None:
        """A session's process has connected."""
        word = "replaced" if number in self.known else "ready"
        self.known.add(number)
        self.sessions[number] = line
        if self.driver is not None:
            self.driver.transport.write(f"{word} {number} {pid}\n".encode())


class Line(asyncio.Protocol):
    """One connection; its first line says whose."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._rest = b""
        self._role = ""
        self._number = -1
        self._cursor = 0
        self._is_free = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=READ_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hub.subscribers.discard(self)
        if self._role == "control":
            self._hub.ended.set()
        elif self._role == "session" and not self._hub.ended.is_set():
            self._hub.start.replace(self._number)

    def pause_writing(self) -> None:
        self._is_free = False

    def resume_writing(self) -> None:
        self._is_free = True
        self.pump()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if self._role == "session":
            whole = len(data) - len(data) % RECORD_BYTES
            self._rest = data[whole:]
            if whole:
                self._hub.publish(memoryview(data)[:whole])
            return
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._read(line.decode().split())

    def _read(self, words: list[str]) -> None:
        if self._role == "control":
            self._hub.obey(words)
            return
        self._role = words[0]
        if self._role == "session":
            self._number = int(words[1])
            self._hub.session_ready(self._number, int(words[2]), self)
        elif self._role == "control":
            self._hub.driver = self
        else:
            head = self._hub.ring.head
            self._cursor = head if int(words[1]) < 0 else min(int(words[1]), head)
            self.transport.write(hello(self._cursor))
            self._hub.subscribers.add(self)
            self.pump()

    def pump(self) -> None:
        """Sends what the subscriber has not had, as long as the line takes it."""
        ring = self._hub.ring
        while self._is_free and self._cursor < ring.head:
            if self._cursor < ring.tail:
                self.transport.write(gap(self._cursor, ring.tail - self._cursor))
                self._cursor = ring.tail
            records = ring.read(self._cursor)
            self._cursor += len(records) // RECORD_BYTES
            self.transport.write(records)


async def serve(path: str, method: str, lowered: bool, sdk: bool) -> None:
    """The hub's life, until the driver says quit or goes away."""
    start = starter(method, path=path, lowered=lowered, sdk=sdk)
    hub = Hub(start)
    server = await asyncio.get_running_loop().create_unix_server(lambda: Line(hub), path)
    try:
        await hub.ended.wait()
    finally:
        server.close()
        start.close()


def main() -> None:
    """The command."""
    path, method, lowered, sdk = sys.argv[1:5]
    uvloop.run(serve(path, method, lowered == "1", sdk == "1"))
