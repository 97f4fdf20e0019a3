"""Forces the ring to disk, as `ring.sync` says: before delivery, at intervals, or never. Syncs run on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ottod.errors import StorageError
from ottod.root.hub import Hub
from ottod.root.worker_gate import WorkerGate
from ottod.settings.daemon import DaemonSettings
from ottod.storage.ring import Ring
from ottod.telemetry.instruments import Instruments
from ottod.telemetry.log import Log


class RingSync:
    """One task for one ring. `on_broken` is called when nothing may be delivered any more."""

    def __init__(
        self,
        ring: Ring,
        *,
        settings: DaemonSettings,
        hub: Hub,
        workers: WorkerGate,
        threads: ThreadPoolExecutor,
        instruments: Instruments,
        log: Log,
        on_broken: Callable[[], None],
    ) -> None:
        self._ring = ring
        self._settings = settings
        self._hub = hub
        self._workers = workers
        self._threads = threads
        self._instruments = instruments
        self._log = log
        self._on_broken = on_broken

    async def run(self) -> None:
        """Runs until it is cancelled, or the disk fails."""
        match self._settings.ring.sync:
            case "interval":
                await self._at_intervals()
            case "always":
                await self._before_delivery()
            case "none":
                pass

    async def _sync(self) -> int:
        """One sync; gives the newest offset that is on disk. Raises StorageError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._instruments.time_ring_sync, self._ring.sync)

    async def _at_intervals(self) -> None:
        synced_head = 0
        while True:
            await asyncio.sleep(self._settings.ring.sync_interval_s)
            if self._ring.head_offset == synced_head:
                continue
            synced_head = self._ring.head_offset
            try:
                await self._sync()
            except StorageError as error:
                self._log.error(f"ring: {error}; events are kept in memory only until the daemon is restarted")
                return

    async def _before_delivery(self) -> None:
        """Delivers and acknowledges nothing that is not on disk; what gathers during a sync shares the next."""
        is_due = asyncio.Event()
        self._hub.hold_until_synced(is_due.set)
        self._workers.hold_until_synced()
        while True:
            await is_due.wait()
            is_due.clear()
            appended = self._workers.appended()
            try:
                newest = await self._sync()
            except StorageError as error:
                # Without a disk there is nothing that this mode may deliver; the daemon must not pretend.
                self._log.error(f"ring: {error}; leaving, because ring.sync is `always`")
                self._on_broken()
                return
            self._hub.release(newest + 1)
            self._workers.acknowledge(appended)
