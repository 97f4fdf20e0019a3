"""One session in a process of its own, as the Python peers run it: a uvloop loop and one unix socket to the hub.

    python -m benchmarks.peers.py.session SOCKET ID LOWER SDK

It announces itself with `session ID PID`, obeys the hub's orders, and sends records. It ends when the hub is gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import cast

import uvloop

from benchmarks.peers.wire import EMIT_BATCH, pack, phase_ns

LOWERED_NICE = 19
LIVES_S = 86_400.0


class Session(asyncio.Protocol):
    """The session's end of its line to the hub."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._seq = 0
        self._kept: list[bytearray] = []
        self._free = asyncio.Event()
        self._free.set()
        self._rest = b""
        self._emission: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        self._line = cast(asyncio.WriteTransport, transport)
        self._line.write(f"session {self._number} {os.getpid()}\n".encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()

    def pause_writing(self) -> None:
        self._free.clear()

    def resume_writing(self) -> None:
        self._free.set()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            words = line.decode().split()
            if words[0] == "emit":
                self._emission = asyncio.create_task(self._emit(*(int(word) for word in words[1:])))
            else:
                self.fault(words[1], int(words[2]))

    async def _emit(self, start_ns: int, rate: int, events: int) -> None:
        interval_ns = 1e9 / rate if rate else 0.0
        start_ns += phase_ns(self._number, interval_ns)
        index = 0
        while index < events:
            await self._free.wait()
            now_ns = time.monotonic_ns()
            due = min(events, int((now_ns - start_ns) // interval_ns) + 1) if rate else events
            if due <= index:
                # Loops count in milliseconds and may wake early; nothing leaves before its time.
                wait_ns = start_ns + int(index * interval_ns) - now_ns
                await asyncio.sleep(-(-wait_ns // 1_000_000) / 1000)
                continue
            batch = range(index, min(due, index + EMIT_BATCH))
            self._line.write(
                b"".join(
                    pack(
                        self._number,
                        self._seq + i - index,
                        start_ns + int(i * interval_ns) if rate else now_ns,
                        now_ns,
                    )
                    for i in batch
                )
            )
            index += len(batch)
            self._seq += len(batch)
            if not rate:
                await asyncio.sleep(0)

    def fault(self, kind: str, amount: int) -> None:
        """Misbehaves: blocks the loop for `amount` ms, keeps that many bytes, or dies of an error."""
        if kind == "spin":
            end_ns = time.monotonic_ns() + amount * 1_000_000
            while time.monotonic_ns() < end_ns:
                pass
        elif kind == "leak":
            self._kept.append(bytearray(b"\xa5") * amount)
        else:
            os.abort()


async def serve(path: str, number: int) -> None:
    """The session's life."""
    session = Session(number)
    await asyncio.get_running_loop().create_unix_connection(lambda: session, path)
    await asyncio.wait_for(session.gone.wait(), LIVES_S)


def main(path: str, number: int, lowered: bool, sdk: bool) -> None:
    """Runs one session; with `sdk` it has both vendors' libraries loaded, as a session of Otto has."""
    if lowered:
        os.nice(LOWERED_NICE)
    if sdk:
        load_sdks()
    uvloop.run(serve(path, number))


def load_sdks() -> None:
    """What an agent needs before its first model call. A fork server has done this already."""
    import anthropic  # noqa: F401
    import openai  # noqa: F401


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4] == "1")
