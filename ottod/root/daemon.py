"""Assembles root and runs it: boot in an order that loses nothing, shutdown in the reverse one.

Boot: lock, directories, ring, database, zygote, what an earlier root left behind; then the sockets, workers' first.
Only then is the daemon ready, and only then does the control socket exist. Shutdown: sessions, subscribers, zygote,
database, ring. The lock goes last of all, with the process.

Root can go without its sessions: they are told nothing, keep working, and the next root adopts them. So does an
upgrade: this process becomes the new program, with the same pid and the same lock, and adopts what it has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop
import zmq

from ottod import __version__
from ottod.core.trace_ids import parse_traceparent, trace_id
from ottod.errors import OttoError, RefusedError, StorageError
from ottod.isolation.cgroup_base import UNIT_VARIABLE
from ottod.isolation.enclosure import Enclosures
from ottod.isolation.probe import probe
from ottod.isolation.processes import become_subreaper
from ottod.protocol.records import HEADER_BYTES, MAX_PAYLOAD_BYTES
from ottod.protocol.requests import MAX_ENV_BYTES, MAX_TASK_BYTES, RequestBody
from ottod.protocol.results import DaemonStatus, MetricsReport, ReloadResult
from ottod.root.context import RootContext
from ottod.root.control_gate import ControlGate
from ottod.root.departure import Departure, exit_status, refuse_to_leave
from ottod.root.entrance import INLINE_CHARS, redacted_request, size_of
from ottod.root.gateway_client import GatewayClient
from ottod.root.hub import Hub
from ottod.root.lag import LoopLag
from ottod.root.lock import InstanceLock
from ottod.root.metrics import collect, read_process
from ottod.root.platform import Platform
from ottod.root.process import raise_file_limit, write_private
from ottod.root.reaper import Reaper
from ottod.root.reload import compare, load_settings, merge, try_program
from ottod.root.resolve import Resolver
from ottod.root.ring_sync import RingSync
from ottod.root.service import Service, read_status
from ottod.root.session_table import SessionTable
from ottod.root.supervisor import Supervisor
from ottod.root.vault import Vault, open_vault, tracing_of
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import ZygoteClient
from ottod.settings.daemon import DaemonSettings
from ottod.settings.interpreter import program
from ottod.settings.keys import preloaded_adapters
from ottod.settings.paths import Paths
from ottod.settings.units import plural
from ottod.storage.database import Database
from ottod.storage.ring import Ring
from ottod.telemetry.instruments import Instruments
from ottod.telemetry.log import Log, is_journal
from ottod.telemetry.model_instruments import ModelInstruments
from ottod.telemetry.notify import Notifier, Pulse, status_line
from ottod.transport.socket import Socket, bind_router

MAX_CLIENT_MESSAGE_BYTES = MAX_TASK_BYTES + MAX_ENV_BYTES + 512 * 1024
MAX_WORKER_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + HEADER_BYTES + 4096
CLIENT_QUEUE_MESSAGES = 1000
"""To one client; what they may weigh together is bounded by its credit."""
WORKER_QUEUE_MESSAGES = 256
THREADS = 8
THREADS_GRACE_S = 5.0
"""For what threads still do when all else has ended. A file system that does not answer keeps one for ever."""
STOP_MARGIN_S = 30.0
"""Beyond the sessions' grace, before the service manager may lose patience."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOCK_VARIABLE = "OTTOD_LOCK_FD"
"""What a root that becomes another program leaves it in the environment."""


class Daemon:
    """One root, from boot to shutdown."""

    def __init__(self, *, settings: DaemonSettings, paths: Paths, environ: Mapping[str, str], vault: Vault) -> None:
        self._settings = settings
        self._paths = paths
        self._environ = environ
        self._vault = vault
        self._sessions_unit = environ.get(UNIT_VARIABLE, "")
        self._log = Log(level=settings.logging.level, form=settings.logging.format, journal=is_journal(environ))
        self._log.redact = lambda text: vault.redactor.text(text)
        self._notifier = Notifier.from_env(environ, pid=os.getpid())
        self._pulse: Pulse | None = None
        self._instance = secrets.token_hex(8)
        self._token = secrets.token_hex(32)
        self._started_at_ns = time.time_ns()
        self._started_s = time.monotonic()
        self.has_held_threads = False
        """At the end: whether a thread still waits, for which the interpreter would wait in turn."""
        self._stop_grace_s = settings.sessions.stop_grace_s
        self._departure: Departure = "leave"
        """Until somebody says otherwise: a root that cannot start, or breaks, takes nobody with it."""
        self._stopping: asyncio.Event | None = None
        self._early: list[Callable[[], None]] | None = []
        """What signals asked for before root was assembled, each once; None after that."""
        self._instruments = Instruments()
        self._model_instruments = ModelInstruments()

    async def run(self, ready: Callable[[], None]) -> Departure:
        """Runs until it is told to go; says how. `ready` is called once clients can connect.

        Raises: OttoError for everything that keeps it from starting.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        self._stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, self._signalled, self._terminated)
        loop.add_signal_handler(signal.SIGINT, self.shut_down, self._stop_grace_s)
        loop.add_signal_handler(signal.SIGHUP, self._signalled, self._hung_up)
        os.umask(0o077)
        raise_file_limit()
        become_subreaper()
        inherited = os.environ.pop(LOCK_VARIABLE, "")
        self._lock = InstanceLock.acquire(self._paths.runtime_dir / "ottod.lock", inherited=inherited)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="otto-io")
        # Apart from the others: burials that take seconds must not hold up acknowledgements.
        self._sync_thread = ThreadPoolExecutor(1, thread_name_prefix="otto-sync")
        self._database = Database.open(self._paths.state_dir / "otto.db")
        recovery = self._database.recovery
        (self._log.error if recovery.moved_aside else self._log.info)(f"database: {recovery.describe()}")
        self._ring = Ring.open(
            self._paths.state_dir / "ring.wal",
            size_bytes=self._settings.ring.size_bytes,
            segment_bytes=self._settings.ring.segment_bytes,
            boot_id=BOOT_ID.read_text().strip(),
            min_next_offset=await self._database.newest_offset() + 1,
        )
        self._log.info(f"ring: {self._ring.recovery.describe()}")
        self._enclosures = Enclosures.find(environ=self._environ)
        self._enclosures.settle()
        self._log.info(f"enclosures: {self._enclosures.kind} {self._enclosures.place or self._enclosures.reason}")
        self._database.audit_entries = self._settings.permissions.audit_entries
        self._assemble(loop)
        early, self._early = self._early or [], None
        for act in early:
            act()
        try:
            self._zygote.start()
            await self._boot(loop, ready)
            await self._stopping.wait()
        finally:
            await self._depart()
        return self._departure

    def _assemble(self, loop: asyncio.AbstractEventLoop) -> None:
        settings, paths = self._settings, self._paths
        self._lag = LoopLag(loop)
        self._reaper = Reaper(loop)
        self._reaper.install()
        self._platform = Platform(self._probe)
        self._hub = Hub(
            self._ring,
            loop,
            max_subscriptions_per_client=settings.clients.max_subscriptions,
            max_credit_bytes=settings.clients.max_credit_bytes,
        )
        self._table = SessionTable(self._database.put_session_nowait)
        self._workers = WorkerGate(loop, self._table, self._hub, log=self._log.warning)
        self._workers.on_fsyncs = self._instruments.journal_fsyncs
        self._workers.on_event = self._model_instruments.observe
        self._workers.on_warning = self._instruments.warned
        endpoint = paths.worker_endpoint
        self._zygote = ZygoteClient(
            loop,
            self._reaper,
            worker_endpoint=endpoint,
            warm=settings.pool.warm,
            preload=preloaded_adapters(settings, self._environ),
            log=self._log.warning,
        )
        self._gateway = GatewayClient(loop, self._reaper, settings=settings, paths=paths, log=self._log.warning)
        self._root = RootContext(
            loop,
            settings=settings,
            table=self._table,
            hub=self._hub,
            gate=self._workers,
            zygote=self._zygote,
            database=self._database,
            threads=self._threads,
            sessions_dir=paths.sessions_dir,
            enclosures=self._enclosures,
            instruments=self._instruments,
            log=self._log.warning,
        )
        self._root.secrets = lambda: self._vault.secrets
        self._tracing = tracing_of(settings, self._vault, self._log)
        self._root.tracing = lambda: self._tracing
        self._log.trace_of = self._trace_of
        self._resolver = Resolver(settings=settings, paths=paths, vault=self._vault, platform=self._platform)
        self._supervisor = Supervisor(
            self._root,
            resolver=self._resolver,
            reaper=self._reaper,
            worker_endpoint=endpoint,
            private_dirs=(str(paths.runtime_dir), str(paths.state_dir)),
        )
        service = Service(
            table=self._table, supervisor=self._supervisor, hub=self._hub, database=self._database, daemon=self
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
        service.name_of = self._control.name_of
        service.redacted = self._redacted
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 64)

    def _probe(self) -> dict[str, str]:
        # What the layers try are programs of their own, and how these end is what they report.
        with self._reaper.sparing():
            return probe(self._enclosures)

    def _trace_of(self, session_id: str) -> str:
        """The trace that a session belongs to, for the log; empty without traces."""
        session = self._table.get(session_id) if self._tracing is not None else None
        if session is None:
            return ""
        above = parse_traceparent(session.plan.traceparent) if session.plan is not None else None
        return f"{above[0] if above is not None else trace_id(session_id):032x}"

    async def _redacted(self, body: RequestBody) -> RequestBody:
        """What a client says, before anybody keeps it."""
        redactor = self._vault.redactor
        if size_of(body) <= INLINE_CHARS:
            return redacted_request(body, redactor)
        return await self._root.in_thread(redacted_request, body, redactor)

    async def _boot(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        # Signs of life from the start: taking over many sessions may take longer than a watchdog waits.
        self._pulse = Pulse(loop, self._notifier, self._status_line)
        await self._supervisor.artifacts.open()
        # A worker that comes before its session is known would be sent away.
        await self._supervisor.take_over()
        workers = self._bind(self._paths.worker_endpoint, MAX_WORKER_MESSAGE_BYTES, WORKER_QUEUE_MESSAGES)
        self._workers.attach(
            Socket(workers, loop=loop, on_message=self._workers.handle, on_drained=self._workers.drained)
        )
        inherited = await self._supervisor.listening()
        if inherited.total:
            self._log.info(f"sessions of an earlier daemon: {inherited.describe()}")
        sync = RingSync(
            self._ring,
            settings=self._settings,
            hub=self._hub,
            workers=self._workers,
            threads=self._sync_thread,
            instruments=self._instruments,
            log=self._log,
            on_broken=lambda: self._go("break", 0.0),
        )
        self._sync_task = loop.create_task(sync.run())
        write_private(self._paths.token_file, self._token)
        # A worker can be had as soon as the zygote has imported its share; the daemon answers before that.
        control = self._bind(self._paths.control_endpoint, MAX_CLIENT_MESSAGE_BYTES, CLIENT_QUEUE_MESSAGES)
        self._control.attach(Socket(control, loop=loop, on_message=self._control.handle))
        self._log.info(f"ready: version {__version__}, {self._paths.control_endpoint}")
        ready()
        self._notifier.ready(self._status_line())
        self._gateway.start()
        # A directory that does not answer must not keep root from hearing that it is to go.
        self._root.spawn(self._tidy_up())
        await loop.run_in_executor(self._threads, self._platform.report)

    async def _tidy_up(self) -> None:
        """What an earlier root left that nobody needs."""
        try:
            await self._supervisor.prune()
            await self._supervisor.artifacts.sweep()
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

    # ------------------------------------------------------------ readings

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
            isolation=self._platform.known,
        )

    async def metrics(self) -> MetricsReport:
        """All metrics."""
        process = await self._root.in_thread(read_process)
        return collect(
            instruments=self._instruments,
            models=self._model_instruments,
            process=process,
            started_at_ns=self._started_at_ns,
            table=self._table,
            hub=self._hub,
            subscriptions=self._hub.subscriptions,
            control=self._control,
            workers=self._workers,
            zygote=self._zygote,
            reaper=self._reaper,
            lag=self._lag,
            database=self._database.stats(),
            gateway=self._gateway,
            permits=self._supervisor.permits,
            mail=self._supervisor.mail,
            providers=self._supervisor.providers,
            isolation=self._platform.known,
        )

    def _status_line(self) -> str:
        return status_line(self._table.counts())

    # ------------------------------------------------------------ changes

    async def reload(self) -> ReloadResult:
        """Reads the configuration again. Raises ConfigError, and nothing has changed."""
        new = await self._root.in_thread(load_settings, self._paths)
        changes = compare(self._settings, new)
        self._settings = merge(self._settings, new)
        await self._root.in_thread(open_vault, self._vault, self._settings, self._log)
        self._tracing = await self._root.in_thread(tracing_of, self._settings, self._vault, self._log)
        self._root.settings = self._settings
        self._resolver.settings = self._settings
        self._database.audit_entries = self._settings.permissions.audit_entries
        self._supervisor.providers.configure(self._settings)
        self._zygote.warm_target = self._settings.pool.warm
        self._log.level = self._settings.logging.level
        self._log.info(f"configuration read again: {', '.join(changes.changed) or 'nothing has changed'}")
        if changes.needs_restart:
            self._log.warning(f"waits for a restart: {', '.join(changes.needs_restart)}")
        return changes

    def _hung_up(self) -> None:
        self._root.spawn(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        self._notifier.reloading()
        try:
            await self.reload()
        except OttoError as error:
            self._log.error(f"configuration: {error}; what held so far still does")
        self._notifier.ready(self._status_line())

    async def upgrade(self) -> None:
        """Begins to become the program that is installed now. Raises RefusedError if that cannot run."""
        new = await self._root.in_thread(load_settings, self._paths)
        if (waiting := compare(self._settings, new).needs_restart) and any(n.startswith("ring.") for n in waiting):
            raise RefusedError(
                f"{', '.join(waiting)} changed, and the ring on disk cannot follow",
                code="bad_upgrade",
                mend="write the old values again, or stop the daemon and put ring.wal aside",
            )
        check = await self._root.in_thread(try_program, self._reaper)
        if check:
            raise RefusedError(
                f"the installed program cannot run: {check}", code="bad_upgrade", mend="install it anew"
            )
        self._go("upgrade", 0.0)

    def shut_down(self, grace_s: float, *, keep_sessions: bool = False) -> None:
        """Begins the shutdown; a second call changes nothing. Raises RefusedError."""
        if keep_sessions:
            refuse_to_leave(self._sessions_unit, can_be_restarted=self._enclosures.outlives_daemon)
        self._go("leave" if keep_sessions else "stop", grace_s)

    def _signalled(self, act: Callable[[], None]) -> None:
        """Acts on a signal as soon as there is what it concerns: opening the database may take its time."""
        if self._early is None:
            act()
        elif act not in self._early:
            self._early.append(act)

    def _terminated(self) -> None:
        """SIGTERM. Where sessions live in a unit of their own, their fate is the service manager's to decide."""
        self._go("leave" if self._enclosures.outlives_daemon else "stop", self._stop_grace_s)

    def _go(self, departure: Departure, grace_s: float) -> None:
        if self._stopping is not None and not self._stopping.is_set():
            self._departure, self._stop_grace_s = departure, grace_s
            self._stopping.set()

    # ------------------------------------------------------------ the end

    async def _depart(self) -> None:
        self._log.info("stopping" if self._departure == "stop" else f"leaving ({self._departure})")
        if self._departure == "upgrade":
            self._notifier.reloading()
        else:
            self._notifier.stopping("stopping", within_s=self._stop_grace_s + STOP_MARGIN_S)
        if self._pulse is not None:
            self._pulse.close()
        try:
            if self._departure == "stop":
                await self._supervisor.stop_all(grace_s=self._stop_grace_s)
            else:
                left = await self._supervisor.leave_alone()
                self._log.info(f"{plural(left, 'session')} left to the next daemon")
        except OttoError as error:
            self._log.error(f"stop: {error}")
        # The reply to a stop request, and the last events, must leave before the sockets close.
        await asyncio.sleep(0)
        await self._close()
        self._log.info("stopped" if self._departure == "stop" else "left")

    async def _close(self) -> None:
        self._control.close(is_final=self._departure == "stop")
        self._supervisor.close()
        self._workers.close()
        self._zygote.close()
        self._gateway.close()
        for session in self._table.live:
            lease = session.incarnation.lease if session.incarnation is not None else None
            if lease is not None and lease.child is not None:
                self._reaper.let_go(lease.child)
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
        self._end_threads()
        self._sync_thread.shutdown(wait=True)
        self._context.destroy(linger=500)
        for path in (self._paths.control_socket, self._paths.worker_socket, self._paths.token_file):
            # The lock is still held, so these cannot be a successor's.
            with contextlib.suppress(OSError):
                path.unlink()
        self._enclosures.close()
        try:
            self._ring.close(clean=True)
        except OttoError as error:
            self._log.error(f"ring: {error}")

    def _end_threads(self) -> None:
        ending = threading.Thread(target=self._threads.shutdown, name="otto-io-end", daemon=True)
        ending.start()
        ending.join(THREADS_GRACE_S)
        self.has_held_threads = ending.is_alive()
        if self.has_held_threads:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._log.error(f"a file system did not answer a thread for {THREADS_GRACE_S:.0f} s: it is left behind")

    def become_successor(self) -> None:
        """After an upgrade's departure: this process becomes the installed program. Does not return."""
        os.environ[LOCK_VARIABLE] = self._lock.hand_on()
        self._vault.hand_on()
        argv = program("ottod", "run")
        os.execv(argv[0], argv)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A defect in one callback is logged and stays there."""
        error = context.get("exception")
        shown = error if isinstance(error, BaseException) else None
        self._log.error(f"internal error: {context.get('message')}: {error!r}", shown)


def run_daemon(*, settings: DaemonSettings, paths: Paths, ready: Callable[[], None]) -> int:
    """Runs root in this process until it goes; its exit status. Raises OttoError if it cannot start."""
    # First of all: whoever looks into this process's environment from now on finds no key.
    vault = Vault(settings, os.environ)
    open_vault(vault, settings, Log(level=settings.logging.level, form=settings.logging.format))
    daemon = Daemon(settings=settings, paths=paths, environ=os.environ, vault=vault)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        departure = runner.run(daemon.run(ready))
    if departure == "upgrade":
        daemon.become_successor()
    status = exit_status(departure, unit=os.environ.get(UNIT_VARIABLE, ""))
    if daemon.has_held_threads:
        os._exit(status)
    return status
