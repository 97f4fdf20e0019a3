"""The life of the gateway: its place, its sockets, and when to go.

One gateway serves for a runtime directory at a time; who holds `gateway.lock` there does. A gateway that root started
goes with its root's orderly end (SIGTERM), outlives its root's death for a while so that scrapers hear 503 instead of
nothing, and makes way when another root has taken over: that one's gateway waits for the lock.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import stat
from pathlib import Path

import msgspec
import uvicorn

from ottod.errors import OttoError, RefusedError, StorageError
from ottod.gateway.app import build_app
from ottod.gateway.root_link import RootLink
from ottod.isolation.landlock import forbid_new_privileges
from ottod.protocol.control import Welcome
from ottod.telemetry.log import Log

LOCK_FILE = "gateway.lock"
SOCKET_FILE = "gateway.sock"
PATIENCE_S = 40.0
"""How long to wait for an earlier gateway to go; more than `ORPHAN_S`."""
POLL_S = 0.05
ORPHAN_S = 20.0
"""How long a gateway that root started goes on when no root answers."""
WATCH_S = 0.5
MAX_CONNECTIONS = 64
BACKLOG = 64
KEEP_ALIVE_S = 75
"""Longer than the usual minute between two scrapes: they share a connection."""
GRACEFUL_S = 2
MAX_HEAD_BYTES = 16 * 1024
NICENESS = 5
"""Scrapes stand behind root."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway is told. `root_pid` is the root that started it; 0 when somebody else did."""

    runtime_dir: Path
    host: str
    port: int
    socket: bool = False
    allowed_hosts: tuple[str, ...] = ()
    root_pid: int = 0
    orphan_s: float = ORPHAN_S


class Gateway:
    """One gateway process."""

    def __init__(self, options: Options, log: Log) -> None:
        self._options = options
        self._log = log
        self._stopping = asyncio.Event()
        self._instance = ""

    async def run(self) -> None:
        """Serves until told to stop, or until there is nobody to serve for. Raises OttoError if it cannot."""
        options, loop = self._options, asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            # The server below takes signals over while it runs and raises them once more when it has ended.
            signal.signal(signum, lambda _signum, _frame: loop.call_soon_threadsafe(self._stopping.set))
        forbid_new_privileges()
        os.nice(NICENESS)
        lock = await self._take_place()
        if lock is None:
            return
        try:
            sockets = self._listen()
            link = RootLink(
                loop,
                endpoint=f"ipc://{options.runtime_dir}/control.sock",
                token_file=options.runtime_dir / "control.token",
                on_welcome=self._welcomed,
                on_mismatch=self._leave,
            )
            try:
                await self._serve(link, sockets)
            finally:
                await link.close()
        finally:
            # In this order: the lock's next holder finds the way free, and its socket is not taken for this one's.
            if options.socket:
                (options.runtime_dir / SOCKET_FILE).unlink(missing_ok=True)
            os.close(lock)

    async def _take_place(self) -> int | None:
        """The lock, once an earlier gateway has let go of it; None if told to stop meanwhile. Raises OttoError."""
        path = self._options.runtime_dir / LOCK_FILE
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}", mend="is the daemon running?") from error
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while not self._stopping.is_set() and not self._is_left():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline_s:
                    break
            await asyncio.sleep(POLL_S)
        os.close(fd)
        if self._stopping.is_set() or self._is_left():
            return None
        raise RefusedError(f"another gateway serves for {path.parent} and does not go", code="already_running")

    def _is_left(self) -> bool:
        """Whether the root that started this gateway is not its parent any more."""
        return self._options.root_pid not in (0, os.getppid())

    def _listen(self) -> list[socket.socket]:
        """The sockets to serve on. Raises StorageError."""
        options = self._options
        sockets: list[socket.socket] = []
        try:
            if options.port:
                sockets.append(_listen_tcp(options.host, options.port))
                self._log.info(f"gateway: http://{_shown(options.host)}:{options.port}/metrics")
            if options.socket:
                sockets.append(_listen_unix(options.runtime_dir / SOCKET_FILE))
                self._log.info(f"gateway: /metrics on {options.runtime_dir / SOCKET_FILE}")
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return sockets

    async def _serve(self, link: RootLink, sockets: list[socket.socket]) -> None:
        config = uvicorn.Config(
            build_app(link, allowed_hosts=self._options.allowed_hosts),
            loop="none",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACEFUL_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        server = uvicorn.Server(config)
        watch = asyncio.get_running_loop().create_task(self._watch(link, server))
        try:
            await server.serve(sockets=sockets)
        finally:
            watch.cancel()
            for each in sockets:
                each.close()

    # ------------------------------------------------------------ when to go

    async def _watch(self, link: RootLink, server: uvicorn.Server) -> None:
        """Ends the server when this process has been told to go, or has nobody to serve for."""
        while not self._stopping.is_set():
            if self._options.root_pid and not link.is_present and link.silence_s > self._options.orphan_s:
                self._leave(f"no root has answered for {self._options.orphan_s:.0f} s")
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._stopping.wait()
            except TimeoutError:
                pass
        server.should_exit = True

    def _welcomed(self, welcome: Welcome) -> None:
        """Goes if this is not the root that it serves for: the other one has a gateway of its own."""
        if not self._options.root_pid:
            return
        if welcome.pid != self._options.root_pid or self._instance not in ("", welcome.instance):
            self._leave("another root has taken over")
        self._instance = welcome.instance

    def _leave(self, why: str) -> None:
        if self._options.root_pid and not self._stopping.is_set():
            self._log.info(f"gateway: {why}; stopping")
            self._stopping.set()


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        mends = {
            errno.EADDRINUSE: "something else listens there: set gateway.port in otto.yml to a free port",
            errno.EADDRNOTAVAIL: "set gateway.host in otto.yml to an address of this machine",
            errno.EACCES: "set gateway.port in otto.yml to 1024 or more",
        }
        raise StorageError(
            f"cannot listen on {_shown(host)}:{port}: {error.strerror}",
            mend=mends.get(error.errno or 0, "set gateway.host and gateway.port in otto.yml"),
        ) from error
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """Replaces what an earlier gateway left there; the lock is held, so it is nobody's."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise StorageError(f"{path} is not a socket", mend="move it away")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StorageError(f"cannot listen on {path}: {error.strerror}", mend="check the directory") from error
    except OttoError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
