"""Sessions that stream quietly beside a fault, and what an outside subscriber notices of it in their events.

Each sibling emits at a fixed rate. Latency is counted from the moment at which an event was *due* (see `providers/
scripted`), so a sibling that is held up shows it, to the moment at which the event is in the subscriber's hands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from benchmarks.stream import streaming_agent
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import OttoError

TEXT_BYTES = 64
START_S = 120.0
PREAMBLE_EVENTS = 10
"""More than a session says before its model's first word."""
STREAM_S = 3000.0
"""How long siblings would stream if nobody ended them; the daemon's settings must let a model call take so long."""
SILENCE_S = 60.0
"""How long a sibling may say nothing before it is called silent."""


class SiblingsError(Exception):
    """The siblings are not what they should be; the message says how."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch, of all siblings together. `lost`, `doubled` and `gaps` count from the start of the siblings."""

    measured: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    lost: int
    doubled: int
    gaps: int
    silent: tuple[str, ...]
    first_of_last_ns: int
    """When the sibling that was heard of last in this window was first heard of in it; monotonic."""

    @property
    def is_whole(self) -> bool:
        """Nothing missing, nothing twice, nobody silent."""
        return not (self.lost or self.doubled or self.gaps or self.silent)

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.1f}, p99 {self.p99_ms:.1f}, max {self.max_ms:.1f} ms of {self.measured}"


class Siblings:
    """`count` sessions at `rate_hz` and their subscriber. A context manager: all are gone when it is left.

    They are top-level sessions, or children of `parent`.
    """

    def __init__(
        self,
        daemon: PrivateDaemon,
        otto: SyncOtto,
        *,
        count: int,
        rate_hz: float,
        silence_s: float = SILENCE_S,
        parent: str = "",
    ) -> None:
        self._daemon = daemon
        self._otto = otto
        self.count = count
        self.rate_hz = rate_hz
        self._silence_s = silence_s
        self._parent = parent
        self._reader: subprocess.Popen[str] | None = None
        self.sessions: list[SyncSession] = []

    def __enter__(self) -> Siblings:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        head = self._otto.status().ring_head
        self._reader = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.sibling_reader",
                self._daemon.endpoint,
                str(head),
                str(self._silence_s),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            # Its own end of the daemon is here: what the daemon knows of places, it must know too.
            env={**os.environ, **self._daemon.env},
        )
        if self._line() != "ready":
            raise SiblingsError("the subscriber did not come up")
        workdir = self._daemon.workdir
        events = int(STREAM_S * self.rate_hz)
        agent = streaming_agent(workdir, events=events, rate_hz=self.rate_hz, text_bytes=TEXT_BYTES)
        self.sessions = [
            self._otto.start(spec=agent, task="stream", cwd=workdir, parent=self._parent) for _ in range(self.count)
        ]
        self.wait_streaming()

    def wait_streaming(self) -> None:
        """Waits until every sibling has emitted something new. Raises SiblingsError."""
        deadline_s = time.monotonic() + START_S
        marks = {info.session: max(info.last_seq, PREAMBLE_EVENTS) for info in self._infos()}
        while still := [info.session for info in self._infos() if info.last_seq <= marks[info.session]]:
            if time.monotonic() > deadline_s:
                raise SiblingsError(f"{len(still)} of {self.count} siblings do not stream after {START_S:g} s")
            time.sleep(0.02)

    def _infos(self) -> list[Any]:
        ours = {session.id for session in self.sessions}
        return [info for info in self._otto.list(all=True, limit=10_000) if info.session in ours]

    def window(self, start_ns: int, end_ns: int) -> Window:
        """The measurement of a stretch that is over, or nearly."""
        assert self._reader is not None and self._reader.stdin is not None
        print(start_ns, end_ns, *(session.id for session in self.sessions), file=self._reader.stdin, flush=True)
        return msgspec.convert(json.loads(self._line()), Window)

    def disturbed(self) -> list[str]:
        """What is wrong with any sibling itself: empty if all run on in the process that they were started in."""
        return [
            f"{info.session}: {info.state}, incarnation {info.incarnation}, {info.restarts} restarts, {info.cause}"
            for info in self._infos()
            if info.state != "running" or info.incarnation != 1 or info.restarts
        ]

    def _line(self) -> str:
        assert self._reader is not None and self._reader.stdout is not None
        line = self._reader.stdout.readline().strip()
        if not line:
            raise SiblingsError("the subscriber is gone")
        return line

    def close(self) -> None:
        """Ends the siblings and their subscriber."""
        for session in self.sessions:
            with suppress(OttoError):
                session.kill()
        if self._reader is not None:
            for pipe in (self._reader.stdin, self._reader.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()
            self._reader.kill()
            self._reader.wait()


def calm(seconds: float) -> tuple[int, int]:
    """A stretch in which nothing is done; its bounds in monotonic nanoseconds."""
    start_ns = time.monotonic_ns()
    time.sleep(seconds)
    return start_ns, time.monotonic_ns()
