"""What the parts of root's supervision share: the instruments, and nothing that decides."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack

from msgspec.structs import replace

from ottod.core.projection import fold
from ottod.isolation.enclosure import Enclosures
from ottod.protocol.birth import Tracing
from ottod.protocol.events import Event
from ottod.root.hub import Hub
from ottod.root.session_table import Session, SessionTable
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import ZygoteClient
from ottod.settings.daemon import DaemonSettings
from ottod.storage.database import Database
from ottod.telemetry.instruments import Instruments
from ottod.telemetry.log import Ids

T = TypeVar("T")


class Say(Protocol):
    """One line for the daemon's log, and what it is about."""

    def __call__(self, message: str, **ids: Unpack[Ids]) -> None: ...


class RootContext:
    """Root's instruments. One for each root."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        settings: DaemonSettings,
        table: SessionTable,
        hub: Hub,
        gate: WorkerGate,
        zygote: ZygoteClient,
        database: Database,
        threads: ThreadPoolExecutor,
        sessions_dir: Path,
        enclosures: Enclosures,
        instruments: Instruments,
        log: Say,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.table = table
        self.hub = hub
        self.gate = gate
        self.zygote = zygote
        self.database = database
        self.threads = threads
        self.sessions_dir = sessions_dir
        self.enclosures = enclosures
        self.instruments = instruments
        self.random = random
        """Uniform in [0, 1); spreads delays."""
        self.log = log
        self.secrets: Callable[[], Mapping[str, str]] = dict
        """What every worker must keep out of what it says, by name."""
        self.tracing: Callable[[], Tracing | None] = lambda: None
        """Where sessions send their spans, if they do."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what may block on a thread."""
        return await self.loop.run_in_executor(self.threads, function, *arguments)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a task that nobody waits for; a defect in it is logged."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a supervision task failed", "exception": error, "task": task}
            self.loop.call_exception_handler(context)

    async def wait_for_tasks(self, *, timeout_s: float | None = None) -> None:
        """Returns when no task is left, or after `timeout_s`."""
        deadline_s = None if timeout_s is None else self.loop.time() + timeout_s
        while self._tasks and (deadline_s is None or self.loop.time() < deadline_s):
            left_s = None if deadline_s is None else deadline_s - self.loop.time()
            await asyncio.wait(self._tasks, timeout=left_s)

    def record(self, session: Session, *events: Event) -> int:
        """Appends events of root's own to a session that has no worker, and folds them. Gives the first one's offset.

        They are one record and one change of the table: a later root finds all of them or none.
        """
        at_ns, seq, info = time.time_ns(), session.next_seq, session.info
        offset = self.hub.append_events(session.key, seq, info.incarnation, events, at_ns)
        session.next_seq = seq + len(events)
        for event in events:
            info = fold(info, event, at_ns)
        last = len(events) - 1
        self.table.update(session, replace(info, last_seq=seq + last, last_offset=offset + last))
        return offset
