"""The fork server: gives leases on workers that are not born yet, dies, and comes back as another generation."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable

from ottod.root.zygote_client import ForkError, Lease
from tests.simulation.loop import VirtualLoop
from tests.simulation.processes import Process, ProcessTable, made_exit
from tests.simulation.world import World

FORK_S = (0.000_500, 0.020)
IMPORT_S = (0.1, 1.5)
WARM = 2


class PrivateChannel:
    """Root's end of a worker's socket pair."""

    def __init__(self) -> None:
        self.is_closed = False
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_close: Callable[[], None] = lambda: None

    def receive(self, data: bytes) -> None:
        if not self.is_closed:
            self.on_data(data)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.on_close()


class Zygote:
    """One root's fork server, with the interface of `ottod.root.zygote_client.ZygoteClient`.

    `give_life` makes the worker behind a process and its private channel.
    """

    def __init__(
        self,
        world: World,
        loop: VirtualLoop,
        table: ProcessTable,
        *,
        generation: int,
        give_life: Callable[[Process, PrivateChannel], None],
        guard: Callable[[str], None],
    ) -> None:
        self._world = world
        self._loop = loop
        self._table = table
        self._give_life = give_life
        self._guard = guard
        self._warm: deque[Lease] = deque()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._is_closing = False
        self._channels: list[PrivateChannel] = []
        self.generation = generation - 1
        self.process: Process | None = None
        self.refuses_forks = False
        self.import_ms = 0.0
        self.deaths = 0
        self.start()

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    @property
    def warm_count(self) -> int:
        return len(self._warm)

    def start(self) -> None:
        """Another generation, once it has imported everything."""
        if self._is_closing or self._loop.is_dead:
            return
        self.generation += 1
        if self._ready.done():
            self._ready = self._loop.create_future()
        self.process = self._table.start("zygote")
        self._table.watch(self.process, self._loop, lambda _exit: self._died())
        self._world.after(self._world.delay(*IMPORT_S), self._imported, self.generation)

    def _imported(self, generation: int) -> None:
        if self.process is None or generation != self.generation or self._loop.is_dead:
            return
        if not self._ready.done():
            self._ready.set_result(None)
        self._world.after(0.02, self._refill)

    def _refill(self) -> None:
        while len(self._warm) < WARM and self.process is not None and not self._is_closing and not self._loop.is_dead:
            self._warm.append(self._fork())

    def _fork(self) -> Lease:
        process = self._table.start("worker")
        channel = PrivateChannel()
        lease = Lease(process.pid, channel, self.generation)  # type: ignore[arg-type]
        lease.child = self._table.watch(process, self._loop, lease.handle_exit)  # type: ignore[assignment]
        self._channels.append(channel)
        self._give_life(process, channel)
        return lease

    async def wait_ready(self) -> None:
        await asyncio.shield(self._ready)

    async def lease(self) -> Lease:
        """A worker. Raises ForkError."""
        self._guard("lease")
        self._world.after(0.02, self._refill)
        while self._warm:
            lease = self._warm.popleft()
            if lease.exited is None and lease.generation == self.generation:
                return lease
            lease.close()
        while True:
            await self.wait_ready()
            await asyncio.sleep(self._world.delay(*FORK_S))
            if self.refuses_forks:
                raise ForkError("fork failed: resource temporarily unavailable")
            if self.process is not None and self._ready.done():
                self._guard("forked")
                return self._fork()

    def _died(self) -> None:
        self.process = None
        self.deaths += 1
        if self._ready.done():
            self._ready = self._loop.create_future()
        while self._warm:
            self._warm.popleft().close()
        self._world.after(0.1, self.start)

    def kill(self) -> None:
        """A fault: the fork server dies."""
        if self.process is not None:
            self._table.send(self.process, signal.SIGKILL)

    def root_died(self) -> None:
        """The kernel closes root's descriptors: the zygote and the workers that are not born see it."""
        if self.process is not None:
            self._table.end(self.process, made_exit(status=0))
        for channel in self._channels:
            channel.close()

    def close(self) -> None:
        self._is_closing = True
        while self._warm:
            self._warm.popleft().close()
