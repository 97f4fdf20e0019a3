"""Assembles root and runs it: boot in an order that loses nothing, shutdown in the reverse one.

Boot: lock, directories, ring, database, sockets, zygote, leftovers of an earlier root. Only then is the daemon
ready, and only then does the control socket exist. Shutdown: sessions, subscribers, zygote, database, ring. The
lock goes last of all, with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop
import zmq

from ottod import __version__
from ottod.errors import OttoError, StorageError
from ottod.isolation.probe import probe
from ottod.isolation.processes import become_subreaper
from ottod.protocol.control import MAX_ENV_BYTES, MAX_TASK_BYTES, DaemonStatus
from ottod.protocol.records import HEADER_BYTES, MAX_PAYLOAD_BYTES
from ottod.root.context import RootContext
from ottod.root.control_gate import ControlGate
from ottod.root.hub import Hub
from ottod.root.lag import LoopLag
from ottod.root.lock import InstanceLock
from ottod.root.reaper import Reaper
from ottod.root.resolve import Resolver
from ottod.root.service import Service, read_status
from ottod.root.session_table import SessionTable
from ottod.root.supervisor import Supervisor
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import ZygoteClient
from ottod.settings.daemon import DaemonSettings
from ottod.settings.paths import Paths
from ottod.storage.database import Database
from ottod.storage.ring import Ring
from ottod.telemetry.log import Log
from ottod.transport.socket import Socket, bind_router

MAX_CLIENT_MESSAGE_BYTES = MAX_TASK_BYTES + MAX_ENV_BYTES + 512 * 1024
MAX_WORKER_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + HEADER_BYTES + 4096
CLIENT_QUEUE_MESSAGES = 1000
"""To one client; what they may weigh together is bounded by its credit."""
WORKER_QUEUE_MESSAGES = 256
THREADS = 4
MAX_FILES = 65_536
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Daemon:
    """One root, from boot to shutdown."""

    def __init__(self, *, settings: DaemonSettings, paths: Paths, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._paths = paths
        self._environ = environ
        self._log = Log(level=settings.logging.level, form=settings.logging.format)
        self._instance = secrets.token_hex(8)
        self._token = secrets.token_hex(32)
        self._started_at_ns = time.time_ns()
        self._started_s = time.monotonic()
        self._isolation: dict[str, str] = {}
        self._stop_grace_s = settings.sessions.stop_grace_s
        self._stopping: asyncio.Event | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Runs until it is told to stop. `ready` is called once clients can connect.

        Raises: OttoError for everything that keeps it from starting.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        self._stopping = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.shut_down, self._stop_grace_s)
        os.umask(0o077)
        raise_file_limit()
        become_subreaper()
        lock = InstanceLock.acquire(self._paths.runtime_dir / "ottod.lock")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="otto-io")
        self._database = Database.open(self._paths.state_dir / "otto.db")
        self._log.info(f"database: {self._database.recovery.describe()}")
        self._ring = Ring.open(
            self._paths.state_dir / "ring.wal",
            size_bytes=self._settings.ring.size_bytes,
            segment_bytes=self._settings.ring.segment_bytes,
            boot_id=BOOT_ID.read_text().strip(),
            min_next_offset=await self._database.newest_offset() + 1,
        )
        self._log.info(f"ring: {self._ring.recovery.describe()}")
        self._assemble(loop)
        try:
            self._zygote.start()
            await self._boot(loop, ready)
            await self._stopping.wait()
        finally:
            await self._shut_down_now()
            assert lock is not None

    def _assemble(self, loop: asyncio.AbstractEventLoop) -> None:
        settings, paths = self._settings, self._paths
        self._lag = LoopLag(loop)
        self._reaper = Reaper(loop)
        self._reaper.install()
        self._hub = Hub(
            self._ring,
            loop,
            max_subscriptions_per_client=settings.clients.max_subscriptions,
            max_credit_bytes=settings.clients.max_credit_bytes,
        )
        self._table = SessionTable(self._database.put_session_nowait)
        self._workers = WorkerGate(loop, self._table, self._hub, log=self._log.warning)
        endpoint = paths.worker_endpoint
        self._zygote = ZygoteClient(
            loop, self._reaper, worker_endpoint=endpoint, warm=settings.pool.warm, log=self._log.warning
        )
        context = RootContext(
            loop,
            settings=settings,
            table=self._table,
            hub=self._hub,
            gate=self._workers,
            zygote=self._zygote,
            database=self._database,
            threads=self._threads,
            sessions_dir=paths.sessions_dir,
            log=self._log.warning,
        )
        self._supervisor = Supervisor(
            context,
            resolver=Resolver(settings=settings, paths=paths, environ=self._environ),
            worker_endpoint=endpoint,
            private_dirs=(str(paths.runtime_dir), str(paths.state_dir)),
        )
        service = Service(
            table=self._table,
            supervisor=self._supervisor,
            hub=self._hub,
            database=self._database,
            shut_down=self.shut_down,
            status=self.status,
        )
        self._control = ControlGate(
            loop,
            self._hub,
            service.serve,
            instance=self._instance,
            pid=os.getpid(),
            token=self._token,
            max_clients=settings.clients.max_clients,
            log=self._log.warning,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 64)

    async def _boot(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        workers = self._bind(self._paths.worker_endpoint, MAX_WORKER_MESSAGE_BYTES, WORKER_QUEUE_MESSAGES)
        self._workers.attach(
            Socket(workers, loop=loop, on_message=self._workers.handle, on_drained=self._workers.drained)
        )
        buried = await self._supervisor.bury_leftovers()
        if buried:
            self._log.info(f"{buried} sessions of an earlier daemon were ended (daemon_stop)")
        self._sync_task = loop.create_task(self._sync_ring())
        write_private(self._paths.token_file, self._token)
        # A worker can be had as soon as the zygote has imported its share; the daemon answers before that.
        control = self._bind(self._paths.control_endpoint, MAX_CLIENT_MESSAGE_BYTES, CLIENT_QUEUE_MESSAGES)
        self._control.attach(Socket(control, loop=loop, on_message=self._control.handle))
        self._log.info(f"ready: version {__version__}, {self._paths.control_endpoint}")
        ready()
        self._isolation = await loop.run_in_executor(self._threads, probe)
        try:
            await self._supervisor.prune()
        except OttoError as error:
            self._log.error(f"database: {error}")

    def _bind(self, endpoint: str, max_message_bytes: int, queue: int) -> zmq.Socket[bytes]:
        try:
            return bind_router(self._context, endpoint, max_message_bytes=max_message_bytes, queue_messages=queue)
        except zmq.ZMQError as error:
            raise StorageError(
                f"cannot listen on {endpoint}: {error}",
                mend="set OTTO_RUNTIME_DIR to a directory that can be written",
            ) from error

    async def _sync_ring(self) -> None:
        """Forces the ring to disk at intervals, on a thread."""
        if self._settings.ring.sync == "none":
            return
        if self._settings.ring.sync == "always":
            await self._sync_before_delivery()
        loop = asyncio.get_running_loop()
        synced_head = 0
        while True:
            await asyncio.sleep(self._settings.ring.sync_interval_s)
            if self._ring.head_offset == synced_head:
                continue
            synced_head = self._ring.head_offset
            try:
                await loop.run_in_executor(self._threads, self._ring.sync)
            except StorageError as error:
                self._log.error(f"ring: {error}; events are kept in memory only until the daemon is restarted")
                return

    async def _sync_before_delivery(self) -> None:
        """Delivers and acknowledges nothing that is not on disk; what gathers during a sync shares the next."""
        loop = asyncio.get_running_loop()
        is_due = asyncio.Event()
        self._hub.hold_until_synced(is_due.set)
        self._workers.hold_until_synced()
        while True:
            await is_due.wait()
            is_due.clear()
            appended = self._workers.appended()
            try:
                newest = await loop.run_in_executor(self._threads, self._ring.sync)
            except StorageError as error:
                # Without a disk there is nothing that this mode may deliver; the daemon must not pretend.
                self._log.error(f"ring: {error}; stopping, because ring.sync is `always`")
                self.shut_down(0.0)
                return
            self._hub.release(newest + 1)
            self._workers.acknowledge(appended)

    def status(self) -> DaemonStatus:
        """A reading of all instruments."""
        return read_status(
            instance=self._instance,
            started_at_ns=self._started_at_ns,
            started_s=self._started_s,
            paths=self._paths,
            table=self._table,
            hub=self._hub,
            control=self._control,
            workers=self._workers,
            zygote=self._zygote,
            reaper=self._reaper,
            supervisor=self._supervisor,
            lag=self._lag,
            isolation=self._isolation,
        )

    def shut_down(self, grace_s: float) -> None:
        """Begins the shutdown; a second call changes nothing."""
        if self._stopping is not None and not self._stopping.is_set():
            self._stop_grace_s = grace_s
            self._stopping.set()

    async def _shut_down_now(self) -> None:
        self._log.info("stopping")
        try:
            await self._supervisor.stop_all(grace_s=self._stop_grace_s)
        except OttoError as error:
            self._log.error(f"stop: {error}")
        # The reply to a stop request, and the last events, must leave before the sockets close.
        await asyncio.sleep(0)
        self._control.close()
        self._supervisor.close()
        self._workers.close()
        self._zygote.close()
        await self._reaper.all_gone(timeout_s=5.0)
        self._lag.close()
        if hasattr(self, "_sync_task"):
            self._sync_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sync_task
        try:
            await self._database.flush()
            self._database.close()
        except OttoError as error:
            self._log.error(f"database: {error}")
        self._threads.shutdown(wait=True)
        self._context.destroy(linger=500)
        for path in (self._paths.control_socket, self._paths.worker_socket, self._paths.token_file):
            # The lock is still held, so these cannot be a successor's.
            path.unlink(missing_ok=True)
        try:
            self._ring.close(clean=True)
        except OttoError as error:
            self._log.error(f"ring: {error}")
        self._log.info("stopped")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A defect in one callback is logged and stays there."""
        error = context.get("exception")
        shown = error if isinstance(error, BaseException) else None
        self._log.error(f"internal error: {context.get('message')}: {error!r}", shown)


def write_private(path: Path, text: str) -> None:
    """Replaces a file that only this user may read. Raises StorageError."""
    try:
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", mend="check its directory") from error


def raise_file_limit() -> None:
    """Takes all the descriptors that this process may have: ZeroMQ aborts when it cannot accept a connection.

    Workers go back to what programs expect.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(hard, MAX_FILES) if hard != resource.RLIM_INFINITY else MAX_FILES, hard)
    )


def run_daemon(*, settings: DaemonSettings, paths: Paths, ready: Callable[[], None]) -> None:
    """Runs root in this process until it is stopped. Raises OttoError if it cannot start."""
    daemon = Daemon(settings=settings, paths=paths, environ=os.environ)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(daemon.run(ready))
