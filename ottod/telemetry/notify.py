"""Tells the service manager how the daemon fares: sd_notify(3), without a library.

systemd gives a unit of Type=notify a datagram socket (NOTIFY_SOCKET: a path, or `@name` for an abstract one) and,
with WatchdogSec=, how often it wants to hear from it (WATCHDOG_USEC, meant for WATCHDOG_PID only). A message is lines
of `NAME=value`. Without a manager everything here is silent and costs nothing.

`Pulse` sends the watchdog's sign of life from a timer of root's own loop. No thread sends it: a loop that no longer
turns must fall silent, or the watchdog would guard nothing.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping

MAX_STATUS_CHARS = 400
MAX_USEC_DIGITS = 18
STATUS_S = 10.0
"""How often the status line is told anew where there is no watchdog."""
WATCHDOG_SHARE = 3
"""Signs of life in each watchdog interval: two may be late before the manager acts."""


class Notifier:
    """The manager's socket; nothing is there when `address` is empty."""

    def __init__(self, address: str = "", *, watchdog_s: float | None = None) -> None:
        self._address = b"\0" + address[1:].encode() if address.startswith("@") else address.encode()
        self.watchdog_s = watchdog_s if address else None

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, pid: int) -> Notifier:
        """What the manager left in the environment. What does not make sense counts as absent."""
        address = environ.get("NOTIFY_SOCKET", "")
        return cls(address if address[:1] in ("/", "@") else "", watchdog_s=_watchdog_s(environ, pid))

    @property
    def is_watched(self) -> bool:
        """Whether there is a manager that listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> bool:
        """Clients can connect; also the end of a reload."""
        return self._send("READY=1", status=status)

    def reloading(self) -> bool:
        """The configuration is being read anew; `ready` says when that is done."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "", *, within_s: float = 0.0) -> bool:
        """The shutdown has begun. `within_s` asks for that long, if it is more than the unit's TimeoutStopSec."""
        extension = (f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}",) if within_s > 0 else ()
        return self._send("STOPPING=1", *extension, status=status)

    def alive(self, status: str = "") -> bool:
        """The watchdog's sign of life, with a new status line if there is one."""
        return self._send(*(("WATCHDOG=1",) if self.watchdog_s else ()), status=status)

    def _send(self, *assignments: str, status: str = "") -> bool:
        """Whether the manager has it. A manager that does not read is not waited for: the next message says more."""
        lines = [*assignments, *((f"STATUS={_one_line(status)}",) if status else ())]
        if not self._address or not lines:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except (OSError, ValueError):
            return False
        return True


class Pulse:
    """Root's sign of life, from its loop, with what `status` says at that moment."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notifier: Notifier, status: Callable[[], str]) -> None:
        self._loop = loop
        self._notifier = notifier
        self._status = status
        self.period_s = min(STATUS_S, notifier.watchdog_s / WATCHDOG_SHARE) if notifier.watchdog_s else STATUS_S
        self._handle: asyncio.TimerHandle | None = None
        if notifier.is_watched:
            self._beat()

    def _beat(self) -> None:
        # Armed first: a status that cannot be told must not end the signs of life.
        self._handle = self._loop.call_later(self.period_s, self._beat)
        self._notifier.alive(self._status())

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


def status_line(sessions: Mapping[str, int]) -> str:
    """What `systemctl status` shows: how many sessions there are in each state."""
    live = {state: count for state, count in sorted(sessions.items()) if count and state != "ended"}
    return "sessions: " + (", ".join(f"{count} {state}" for state, count in live.items()) or "none")


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    usec = environ.get("WATCHDOG_USEC", "")
    if not (usec.isascii() and usec.isdigit() and len(usec) <= MAX_USEC_DIGITS):
        return None
    return int(usec) / 1e6 or None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS_CHARS]
