"""The Ray peer: every session is an asynchronous actor, the hub an actor of its own that keeps the ring.

    python -c 'from benchmarks.peers.py.ray_hub import main; main()' SOCKET

The driver's conversation and the subscriber's line end in this process, the Ray driver: it pulls from the hub actor,
one call outstanding. Sessions are restarted by Ray (`max_restarts=-1`), which this process watches with a call that
ends when the actor dies.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.peers.ring import Ring, gap, hello
from benchmarks.peers.wire import EMIT_BATCH, RECORD_BYTES, pack, phase_ns

PULL_TIMEOUT_S = 0.5
SPARE_MEMORY_BYTES = 256 * 1024 * 1024


@ray.remote(num_cpus=0, max_concurrency=1000)
class HubActor:
    """The ring, behind two calls."""

    def __init__(self) -> None:
        self._ring = Ring()
        self._news = asyncio.Event()

    async def publish(self, records: bytes) -> None:
        """Appends whole records."""
        self._ring.append(memoryview(records))
        self._news.set()

    async def read(self, cursor: int) -> tuple[int, bytes]:
        """(the offset after them, records) from the cursor on; waits a little when there is none."""
        ring = self._ring
        if cursor < 0:
            return ring.head, hello(ring.head)
        if cursor == ring.head:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), PULL_TIMEOUT_S)
            except TimeoutError:
                return cursor, b""
        if cursor < ring.tail:
            return ring.tail, gap(cursor, ring.tail - cursor)
        records = ring.read(cursor)
        return cursor + len(records) // RECORD_BYTES, records


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=4)
class SessionActor:
    """One session."""

    def __init__(self, number: int, hub: Any) -> None:
        self._number, self._hub, self._seq = number, hub, 0
        self._kept: list[bytearray] = []

    async def pid(self) -> int:
        """Answers once the actor is ready."""
        return os.getpid()

    async def watch(self) -> None:
        """Never returns; fails when the process dies."""
        await asyncio.Event().wait()

    async def emit(self, start_ns: int, rate: int, events: int) -> None:
        """Emits on the schedule, or with `rate` 0 as fast as the hub takes it."""
        interval_ns = 1e9 / rate if rate else 0.0
        start_ns += phase_ns(self._number, interval_ns)
        index = 0
        while index < events:
            now_ns = time.monotonic_ns()
            due = min(events, int((now_ns - start_ns) // interval_ns) + 1) if rate else events
            if due <= index:
                wait_ns = start_ns + int(index * interval_ns) - now_ns
                await asyncio.sleep(-(-wait_ns // 1_000_000) / 1000)
                continue
            batch = range(index, min(due, index + EMIT_BATCH))
            records = [
                (self._number, self._seq + i - index, start_ns + int(i * interval_ns) if rate else now_ns, now_ns)
                for i in batch
            ]
            # One call at a time keeps the order, and what falls due meanwhile goes into the next one.
            await self._hub.publish.remote(b"".join(pack(*times) for times in records))
            index += len(batch)
            self._seq += len(batch)

    async def fault(self, kind: str, amount: int) -> None:
        """Misbehaves as `py.session` does."""
        if kind == "spin":
            end_ns = time.monotonic_ns() + amount * 1_000_000
            while time.monotonic_ns() < end_ns:
                pass
        elif kind == "leak":
            self._kept.append(bytearray(b"\xa5") * amount)
        else:
            os.abort()


class Driver:
    """The Ray driver's end of everything."""

    def __init__(self) -> None:
        self._hub: Any = HubActor.remote()
        self._sessions: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the driver or of a subscriber."""
        words = (await reader.readline()).decode().split()
        if words[0] == "subscribe":
            await self._subscriber(int(words[1]), writer)
            return
        while line := await reader.readline():
            self._obey(line.decode().split(), writer)
        self.ended.set()

    async def _subscriber(self, cursor: int, writer: asyncio.StreamWriter) -> None:
        if cursor >= 0:
            writer.write(hello(cursor))
        while not self.ended.is_set():
            cursor, records = await self._hub.read.remote(cursor)
            writer.write(records)
            await writer.drain()

    def _obey(self, words: list[str], writer: asyncio.StreamWriter) -> None:
        match words[0], [int(word) for word in words[1:] if word.lstrip("-").isdigit()]:
            case "spawn", [first, count]:
                for number in range(first, first + count):
                    self._sessions[number] = SessionActor.remote(number, self._hub)
                    task = asyncio.create_task(self._keep(number, writer))
                    self._tasks.add(task)
            case "emit", [first, count, *plan]:
                for number in range(first, first + count):
                    self._sessions[number].emit.remote(*plan)
            case "fault", [number, amount]:
                self._sessions[number].fault.remote(words[2], amount)
            case _:
                self.ended.set()

    async def _keep(self, number: int, writer: asyncio.StreamWriter) -> None:
        word = "ready"
        while not self.ended.is_set():
            try:
                pid = await self._sessions[number].pid.remote()
                writer.write(f"{word} {number} {pid}\n".encode())
                word = "replaced"
                await self._sessions[number].watch.remote()
            except ray.exceptions.RayActorError:
                await asyncio.sleep(0.01)


async def serve(path: str) -> None:
    """Until the driver says quit or goes away."""
    driver = Driver()
    server = await asyncio.start_unix_server(driver.connected, path)
    await driver.ended.wait()
    server.close()


def main() -> None:
    """The command."""
    ray.init(
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=SPARE_MEMORY_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(Path(sys.argv[1]).parent),
    )
    try:
        asyncio.run(serve(sys.argv[1]))
    finally:
        ray.shutdown()
