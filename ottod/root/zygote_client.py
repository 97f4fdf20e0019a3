"""Root's side of the fork server: starts it, orders workers from it, replaces it when it dies.

The zygote is exec'ed, never forked: root has ZeroMQ's threads. It gets a minimal environment, so that no key which
root knows can be read from a worker's `/proc/<pid>/environ`. Every order passes one end of a fresh socket pair,
the worker's private channel; root keeps the other.

A *lease* is a forked worker with its channel, not yet born. Root keeps a small pool of them warm.

A zygote that dies is replaced at once, one that keeps dying with a growing delay: to have come up is not enough, it
must have served for a while before its end counts as the first again.

A zygote that answers nothing for a while is looked at. One that computes, or waits for a processor, is merely slow;
one that is stopped or sleeps is killed, and the next generation takes over its orders.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from ottod.errors import OttoError, RemoteProtocolError
from ottod.isolation import bubblewrap
from ottod.isolation.system_programs import SYSTEM_PATH
from ottod.protocol.zygote import Fork, Forked, ForkFailed, ZygoteReady, zygote_replies, zygote_requests
from ottod.root.reaper import Child, Exit, Reaper
from ottod.root.vitals import is_stuck, look
from ottod.settings.interpreter import program

MAX_REPLY_BYTES = 64 * 1024
FORK_TIMEOUT_S = 60.0
"""Long enough for a zygote that hangs to be found out and replaced, on a machine that is busy."""
PATIENCE_S = 8.0
"""For an order's answer, before the zygote is looked at."""
IMPORT_PATIENCE_S = 30.0
"""The same for its first word: it imports vendors' libraries."""
EXAMINATION_S = 1.0
"""How long it is watched before it is called stuck."""
RETRY_S = 0.01
RESTART_BASE_S = 0.1
RESTART_MAX_S = 10.0
STABLE_S = 60.0
"""A generation that lived this long has worked: its end counts as the first failure."""
DEFAULT_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
KEPT_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "USER",
    "LOGNAME",
    "PYTHONPATH",
    bubblewrap.VARIABLE,
    "OTTO_FAILPOINTS",
)


class ForkError(OttoError):
    """No worker could be forked."""

    code = "start_failed"


class ZygoteGone(ForkError):
    """The zygote died before it could answer; the next generation will."""


class Lease:
    """A worker's process. `channel` is root's end of its private channel; a worker that was adopted has none."""

    def __init__(self, pid: int, channel: socket.socket | None, generation: int) -> None:
        self.pid = pid
        self.channel = channel
        self.generation = generation
        self.child: Child | None = None
        self.on_exit: Callable[[Exit], None] | None = None
        self.exited: Exit | None = None

    def adopt(self, on_exit: Callable[[Exit], None]) -> None:
        """Hands exits over to the session. If the worker is already dead, `on_exit` is called at once."""
        self.on_exit = on_exit
        if self.exited is not None:
            on_exit(self.exited)

    def close(self) -> None:
        """Closes the channel. An unborn worker takes that for the order to go."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def handle_exit(self, exit_: Exit) -> None:
        """Called by the reaper."""
        self.exited = exit_
        if self.on_exit is not None:
            self.on_exit(exit_)


def execute(argv: list[str], environment: dict[str, str]) -> int:
    """Starts the program, with its signals as they are by default. The pid."""
    return os.posix_spawn(argv[0], argv, environment, setpgroup=0, setsigmask=(), setsigdef=DEFAULT_SIGNALS)


class ZygoteClient:
    """The current zygote generation and the pool of warm workers. `execute` starts its program, and gives the pid."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reaper: Reaper,
        *,
        worker_endpoint: str,
        warm: int,
        preload: tuple[str, ...],
        log: Callable[[str], None],
        patience_s: float = PATIENCE_S,
        execute: Callable[[list[str], dict[str, str]], int] = execute,
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._worker_endpoint = worker_endpoint
        self.warm_target = warm
        self._preload = preload
        self._log = log
        self._patience_s = patience_s
        self._execute = execute
        self._started_s = 0.0
        self._examination: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._child: Child | None = None
        self._tickets: dict[int, tuple[asyncio.Future[Lease], socket.socket]] = {}
        self._next_ticket = 1
        self._warm: deque[Lease] = deque()
        self._warming = 0
        self._ready: asyncio.Future[None] = loop.create_future()
        self._is_closing = False
        self._failures = 0
        self.generation = 0
        self.import_ms = 0.0
        self.deaths = 0

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    @property
    def warm_count(self) -> int:
        return len(self._warm)

    def start(self) -> None:
        """Executes a new generation. It is usable once `wait_ready` returns."""
        self.generation += 1
        if self._ready.done():
            self._ready = self._loop.create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # Vendors' libraries start programs as well, by name.
        environment = {"PATH": SYSTEM_PATH, **{k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ}}
        argv = [
            *program("ottod.zygote"),
            str(theirs.fileno()),
            str(self.generation),
            self._worker_endpoint,
            "ottod.worker.main",
            *self._preload,
        ]
        os.set_inheritable(theirs.fileno(), True)
        self._started_s = self._loop.time()
        pid = self._execute(argv, environment)
        theirs.close()
        self._socket = ours
        self._child = self._reaper.watch(pid, self._exited)
        self._loop.add_reader(ours.fileno(), self._readable)
        self._loop.call_later(IMPORT_PATIENCE_S, self._look_after, self._child, None)

    async def wait_ready(self) -> None:
        """Waits until the current generation has imported everything."""
        await asyncio.shield(self._ready)

    # ------------------------------------------------------------ leases

    async def lease(self) -> Lease:
        """A worker: warm if there is one, forked now otherwise. Raises ForkError."""
        self._loop.call_soon(self._refill_soon)
        while self._warm:
            lease = self._warm.popleft()
            if lease.exited is None and lease.generation == self.generation:
                return lease
            lease.close()
        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                while True:
                    try:
                        return await self._fork()
                    except ZygoteGone:
                        await asyncio.sleep(RETRY_S)
        except TimeoutError:
            raise ForkError(f"the zygote forked no worker within {FORK_TIMEOUT_S:.0f} s{self._why}") from None

    @property
    def _why(self) -> str:
        """What may be the reason that there is no worker; a daemon's log says how each has ended."""
        return f": it has died {self._failures} times in a row, see the daemon's log" if self._failures > 1 else ""

    async def _fork(self) -> Lease:
        await self.wait_ready()
        if self._socket is None:
            raise ZygoteGone("the zygote has just died")
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise ForkError(
                f"no channel for a worker: {error.strerror}", mend="raise the limit of open files"
            ) from error
        ours.setblocking(False)
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        future: asyncio.Future[Lease] = self._loop.create_future()
        try:
            socket.send_fds(self._socket, [zygote_requests.encode(Fork(ticket=ticket))], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise ZygoteGone(f"the zygote does not take orders: {error.strerror}") from error
        finally:
            theirs.close()
        self._tickets[ticket] = (future, ours)
        self._loop.call_later(self._patience_s, self._look_after, self._child, ticket)
        # Until its pid is known the worker must not be taken for a stranger and reaped: its pid would be free again.
        self._reaper.expect(1)
        return await future

    def _refill_soon(self) -> None:
        missing = self.warm_target - len(self._warm) - self._warming
        for _ in range(0 if self._is_closing else missing):
            self._warming += 1
            # A refill waits for a quiet moment: the session that emptied the pool goes first.
            self._loop.call_later(0.02, self._start_refill)

    def _start_refill(self) -> None:
        task = self._loop.create_task(self._refill_one())
        task.add_done_callback(self._refilled)

    async def _refill_one(self) -> Lease:
        async with asyncio.timeout(FORK_TIMEOUT_S):
            return await self._fork()

    def _refilled(self, task: asyncio.Task[Lease]) -> None:
        self._warming -= 1
        if task.cancelled() or task.exception() is not None:
            return
        lease = task.result()
        if self._is_closing or lease.generation != self.generation:
            lease.close()
        else:
            self._warm.append(lease)

    # ------------------------------------------------------------ silence

    def _look_after(self, child: Child | None, ticket: int | None) -> None:
        """Looks at a zygote that has not carried out an order in time, or, without a ticket, has not come up."""
        is_silent = ticket in self._tickets if ticket is not None else not self._ready.done()
        if not is_silent or child is None or child is not self._child or self._is_closing:
            return
        if self._examination is None or self._examination.done():
            self._examination = self._loop.create_task(self._examine(child, ticket))

    async def _examine(self, child: Child, ticket: int | None) -> None:
        """Kills it if it is stuck. Whoever waits for a worker gets the next generation's."""
        before = await self._loop.run_in_executor(None, lambda: look(child.pid, now_s=time.monotonic()))
        await asyncio.sleep(EXAMINATION_S)
        after = await self._loop.run_in_executor(None, lambda: look(child.pid, now_s=time.monotonic()))
        is_silent = ticket in self._tickets if ticket is not None else not self._ready.done()
        if not is_silent or child is not self._child or self._is_closing:
            return
        if before is not None and after is not None and not is_stuck(before, after):
            self._loop.call_later(self._patience_s, self._look_after, child, ticket)
            return
        self._log(f"zygote generation {self.generation} does not answer; killed")
        child.send_signal(signal.SIGKILL)

    # ------------------------------------------------------------ the socket

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket.fileno())
            return
        try:
            reply = zygote_replies.decode(data)
        except RemoteProtocolError as error:
            self._log(f"zygote: {error}")
            return
        match reply:
            case ZygoteReady():
                self.import_ms = reply.import_ms
                if not self._ready.done():
                    self._ready.set_result(None)
                self._refill_soon()
            case Forked():
                self._forked(reply)
            case ForkFailed():
                future, ours = self._tickets.pop(reply.ticket)
                self._reaper.expect(-1)
                ours.close()
                if not future.done():
                    future.set_exception(ForkError(f"fork failed: {reply.message}"))

    def _forked(self, reply: Forked) -> None:
        future, ours = self._tickets.pop(reply.ticket)
        lease = Lease(reply.pid, ours, self.generation)
        # Root is the worker's parent and has reaped nobody unknown meanwhile, so the pid is still the worker's.
        try:
            lease.child = self._reaper.watch(reply.pid, lease.handle_exit)
        except OSError as error:
            ours.close()
            if not future.done():
                future.set_exception(ForkError(f"worker {reply.pid} cannot be watched: {error.strerror}"))
            return
        finally:
            self._reaper.expect(-1)
        if future.done():
            # Nobody waits any more; closing the channel tells the worker to go.
            ours.close()
            return
        future.set_result(lease)

    def _exited(self, exit_: Exit) -> None:
        self._child = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for future, ours in self._tickets.values():
            ours.close()
            if not future.done():
                future.set_exception(ZygoteGone("the zygote died during the fork"))
        self._reaper.expect(-len(self._tickets))
        self._tickets.clear()
        while self._warm:
            self._warm.popleft().close()
        if self._is_closing:
            return
        self.deaths += 1
        is_first = self._loop.time() - self._started_s >= STABLE_S
        self._failures = 1 if is_first else self._failures + 1
        delay_s = min(RESTART_MAX_S, RESTART_BASE_S * 2 ** (self._failures - 1)) if self._failures > 1 else 0.0
        how = exit_.signal or f"status {exit_.status}"
        self._log(f"zygote generation {self.generation} ended ({how}); starting another in {delay_s:.1f} s")
        if self._ready.done():
            self._ready = self._loop.create_future()
        self._loop.call_later(delay_s, self._restart)

    def _restart(self) -> None:
        if self._is_closing:
            return
        try:
            self.start()
        except OSError as error:
            self._log(f"zygote: cannot be started: {error.strerror}; trying again in {RESTART_MAX_S:.0f} s")
            self._loop.call_later(RESTART_MAX_S, self._restart)

    def close(self) -> None:
        """Ends the zygote and the warm workers: closing their sockets is the order to go."""
        self._is_closing = True
        if self._examination is not None:
            self._examination.cancel()
        while self._warm:
            self._warm.popleft().close()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._child is not None and not self._ready.done():
            # It is still importing, for seconds perhaps, and sees nothing of its socket before that is done.
            self._child.send_signal(signal.SIGKILL)
