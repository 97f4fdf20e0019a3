"""Root's side of the gateway: starts it, starts it again when it dies, and gives it up when it never lives.

The gateway is one more child, exec'ed with a minimal environment, in a process group of its own. All that root knows
of it is its pid: it speaks to root as any client does, and nothing that it does or fails to do reaches root. It
notices by itself that root is gone, and makes way for the one that the next root starts.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable

from ottod.core.backoff import delay_s
from ottod.isolation.system_programs import SYSTEM_PATH
from ottod.protocol.specs import Backoff
from ottod.root.reaper import Child, Exit, Reaper
from ottod.settings.daemon import DaemonSettings
from ottod.settings.interpreter import program
from ottod.settings.paths import Paths

BACKOFF = Backoff(base_s=0.2, factor=2.0, max_s=30.0, jitter=0.2)
STABLE_S = 60.0
"""A gateway that lived this long has worked: what comes after counts as its first failure."""
MAX_FAILURES = 8
"""Failures in a row after which root gives up until it is restarted."""
MODULE = "ottod.gateway"
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
    "JOURNAL_STREAM",
)


class GatewayClient:
    """The gateway's process, or the wait for the next one. Everything happens on root's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reaper: Reaper,
        *,
        settings: DaemonSettings,
        paths: Paths,
        log: Callable[[str], None],
        backoff: Backoff = BACKOFF,
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._settings = settings
        self._paths = paths
        self._log = log
        self._backoff = backoff
        self._child: Child | None = None
        self._started_s = 0.0
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._is_closing = False
        self.deaths = 0
        self.has_given_up = False

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self._child.pid if self._child else 0

    def start(self) -> None:
        """Starts the gateway, if the settings want one. Never raises: root works without it."""
        self._retry = None
        is_wanted = self._settings.gateway.enabled and not self._is_closing and not self.has_given_up
        if not is_wanted or self._child is not None:
            return
        self._started_s = self._loop.time()
        try:
            self._child = self._spawn()
        except OSError as error:
            self._failed(f"cannot be started: {error.strerror}")

    def _spawn(self) -> Child:
        argv = gateway_command(self._settings, self._paths)
        environment = {"PATH": SYSTEM_PATH, **{k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ}}
        pid = os.posix_spawn(
            argv[0],
            argv,
            environment,
            setpgroup=0,
            setsigmask=(),
            setsigdef=DEFAULT_SIGNALS,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
            ],
        )
        try:
            return self._reaper.watch(pid, self._exited)
        except OSError:
            # It is root's child and nobody has waited for it, so the pid is still its own.
            os.kill(pid, signal.SIGKILL)
            raise

    def _exited(self, exit_: Exit) -> None:
        self._child = None
        if self._is_closing:
            return
        self.deaths += 1
        if self._loop.time() - self._started_s >= STABLE_S:
            self._failures = 0
        self._failed(f"ended ({exit_.signal or f'status {exit_.status}'})")

    def _failed(self, how: str) -> None:
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self.has_given_up = True
            self._log(
                f"gateway: {how}, for the {MAX_FAILURES}th time in a row: given up; there are no metrics over HTTP "
                "until the daemon is restarted (the lines before this one say what is wrong)"
            )
            return
        wait_s = delay_s(self._backoff, self._failures, random=random.random())
        self._log(f"gateway: {how}; starting another in {wait_s:.1f} s")
        self._retry = self._loop.call_later(wait_s, self.start)

    def close(self) -> None:
        """Tells the gateway to go; no other follows. `Reaper.all_gone` waits for its end and sees to it."""
        self._is_closing = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


def gateway_command(settings: DaemonSettings, paths: Paths) -> list[str]:
    """The program and its arguments: all that the gateway is told. There is no secret among them."""
    return [
        *program(MODULE),
        f"--root-pid={os.getpid()}",
        f"--runtime-dir={paths.runtime_dir}",
        f"--host={settings.gateway.host}",
        f"--port={settings.gateway.port}",
        *(f"--allow-host={host}" for host in settings.gateway.allowed_hosts),
        *(["--socket"] if settings.gateway.socket else []),
        f"--log-level={settings.logging.level}",
        f"--log-format={settings.logging.format}",
    ]
