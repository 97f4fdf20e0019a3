"""The daemon's place in the run: its root dies and comes back, and everybody's lines with it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import zmq

from ottod.isolation.processes import ProcessId, identify, is_alive, send_signal
from ottod.settings.daemon import DaemonSettings
from tests.chaos.census import Census
from tests.chaos.deeds import Deeds
from tests.chaos.findings import Findings
from tests.chaos.line import Line
from tests.chaos.population import MAX_RESTARTS, PERIOD_S
from tests.daemon.harness import RealDaemon

HUNG_AFTER_S = 20.0
ORPHAN_GRACE_S = 120.0
RING_BYTES = 8 * 1024 * 1024
"""Small, so that late readers meet gaps."""
SETTINGS: dict[str, dict[str, object]] = {
    "ring": {"size_bytes": RING_BYTES, "segment_bytes": 128 * 1024},
    "sessions": {
        "orphan_grace_s": ORPHAN_GRACE_S,
        "hung_after_s": HUNG_AFTER_S,
        "start_timeout_s": 60,
        "retain_ended": 100_000,
        "worker_priority": "idle",
    },
    "supervision": {"max_restarts": MAX_RESTARTS, "period_s": PERIOD_S},
}
DEFAULTS = DaemonSettings()


class Host:
    """Owns the daemon and the lines to it. `is_up` says whether root could answer now."""

    def __init__(self, daemon: RealDaemon, findings: Findings, census: Census, deeds: Deeds) -> None:
        self.daemon = daemon
        self._findings = findings
        self._census = census
        self._deeds = deeds
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._lines: list[Line] = []
        self._restart_at_s: float | None = None
        self._down_since_s = 0.0
        self.is_frozen = False
        self.zygote_pid = 0
        self.lives = 0
        self.ready_s: list[float] = []
        """How long each new root took from its start until it answered."""
        self.on_up: Callable[[], None] = lambda: None

    def line(self, name: str, *, is_lasting: bool = False) -> Line:
        """A line to the daemon. A lasting one is dialled anew for every root."""
        line = Line(self._context, self.daemon.endpoint, name)
        if is_lasting:
            self._lines.append(line)
        return line

    @property
    def instance(self) -> str:
        """The root that the lines are connected to."""
        return self._lines[0].instance if self._lines else ""

    @property
    def is_up(self) -> bool:
        return self._restart_at_s is None and not self.is_frozen

    @property
    def is_there(self) -> bool:
        """Root exists, frozen perhaps."""
        return self._restart_at_s is None

    def start(self) -> None:
        """A new root, as a service manager would start it; returns when it answers."""
        began_s = time.monotonic()
        self.daemon.start()
        self.ready_s.append(time.monotonic() - began_s)
        self.lives += 1
        self._restart_at_s = None
        self._findings.note(f"root {self.daemon.pid} is ready after {self.ready_s[-1]:.2f} s")
        self._census.add_other(self.daemon.pid)
        for line in self._lines:
            line.dial()
        self.on_up()

    def kill(self, delay_s: float) -> None:
        """kill -9 of root; the next one is started after `delay_s`."""
        self._deeds.root_troubles_ns.append(time.time_ns())
        self.daemon.kill()
        # It looks at the daemon's processes first: what root begins meanwhile it begins before its death.
        self._deeds.root_deaths_ns.append(time.time_ns())
        self.is_frozen = False
        self.zygote_pid = 0
        self._restart_at_s = time.monotonic() + delay_s
        for line in self._lines:
            line.hang_up()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._deeds.root_troubles_ns.append(time.time_ns())
        self.is_frozen = True
        self.daemon.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]

    def thaw(self) -> None:
        """SIGCONT, if it is still this root that is frozen."""
        if self.is_frozen and self.daemon.process is not None:
            self._deeds.root_troubles_ns.append(time.time_ns())
            self.daemon.process.send_signal(signal.SIGCONT)
            self.is_frozen = False

    def tick(self) -> None:
        """Starts the next root when it is time, and notices one that died of something else."""
        if self._restart_at_s is not None:
            if time.monotonic() >= self._restart_at_s:
                self.start()
        elif self.daemon.process is not None and (status := self.daemon.process.poll()) is not None:
            self._findings.violated(
                "answers", f"root ended by itself with status {status}: {self.daemon.log[-2000:]}"
            )
            self.kill(0.0)

    def zygote(self) -> ProcessId | None:
        """The zygote, if it is known and alive."""
        process = identify(self.zygote_pid) if self.zygote_pid else None
        return process if process is not None and is_alive(process) else None

    def close(self) -> None:
        """Ends all lines."""
        self.thaw()
        for line in self._lines:
            line.hang_up()
        self._context.destroy(linger=0)


def signal_to(process: ProcessId, number: int) -> bool:
    """Signals exactly this process; False if it is gone or not ours."""
    try:
        return send_signal(process, number)
    except PermissionError:
        return False
