"""A peer's hub and its subscriber, started, spoken to, and gone without a trace at the end."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from benchmarks.peers.roster import Peer

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 120.0
QUIT_TIMEOUT_S = 20.0
LAST_WORDS_BYTES = 2000

MARK = "OTTO_PEER"
"""The variable that a hub and everything it starts carry in their environment, with the hub's directory."""


class PeerError(Exception):
    """A peer did not do its part; the message holds its own last words."""


class Lines:
    """Lines of text from a file descriptor, each with a deadline."""

    def __init__(self, fd: int, whose: str) -> None:
        self._fd, self._whose = fd, whose
        self._rest = b""

    def next(self, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Raises: PeerError when none came in time, or none can come any more."""
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
                raise PeerError(f"{self._whose}: no answer within {timeout_s:g} s")
            try:
                chunk = os.read(self._fd, 65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise PeerError(f"{self._whose}: gone")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class PeerHub:
    """A hub with its sessions. With `sdk`, Python sessions load what an agent needs."""

    def __init__(self, peer: Peer, *, sdk: bool = False) -> None:
        self.peer = peer
        self._place = Path(tempfile.mkdtemp(prefix="peer-"))
        self.socket_path = str(self._place / "hub")
        self._log_path = self._place / "log"
        self._fill = {"{socket}": self.socket_path, "{build}": str(self._place), "{sdk}": "1" if sdk else "0"}
        self._process: subprocess.Popen[bytes] | None = None
        self._control = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> PeerHub:
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

    def _filled(self, command: tuple[str, ...]) -> list[str]:
        return [self._fill.get(part, part) for part in command]

    def _start(self) -> None:
        # Ray reports to its makers unless told not to.
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", MARK: str(self._place)}
        with self._log_path.open("ab") as log:
            if self.peer.build:
                subprocess.run(self._filled(self.peer.build), check=True, stdout=log, stderr=log, timeout=60)
            self._process = subprocess.Popen(
                self._filled(self.peer.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self._place,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._control.connect(self.socket_path)
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    raise PeerError(f"{self.peer.name}: its hub did not start:\n{self.last_words()}") from None
                time.sleep(0.005)
        self._reports = Lines(self._control.fileno(), self.peer.name)
        self.order("control")

    @property
    def pid(self) -> int:
        assert self._process is not None, "the hub was not started"
        return self._process.pid

    def last_words(self) -> str:
        """The end of what the hub and its sessions have printed."""
        return self._log_path.read_text(errors="replace")[-LAST_WORDS_BYTES:]

    def order(self, line: str) -> None:
        """One order; see `wire`."""
        self._control.sendall(f"{line}\n".encode())

    def report(self, word: str) -> tuple[int, int]:
        """The next report, which must be of that kind: (session, pid)."""
        try:
            said, number, pid = self._reports.next().split()
        except PeerError as error:
            raise PeerError(f"{error}\n{self.last_words()}") from None
        if said != word:
            raise PeerError(f"{self.peer.name}: said {said} {number}, not {word}")
        return int(number), int(pid)

    def spawn(self, first: int, count: int) -> dict[int, int]:
        """Starts sessions and waits until all are ready: their pids."""
        self.order(f"spawn {first} {count}")
        return dict(self.report("ready") for _ in range(count))

    def _members(self) -> list[psutil.Process]:
        """What belongs to the hub's session: also who has overwritten the place where its environment was."""
        return [p for p in psutil.process_iter() if p.pid != self.pid and _session_of(p) == self.pid]

    def close(self) -> None:
        """Asks the hub to end, and ends whatever it leaves behind."""
        if self._process is not None:
            # Asked before the hub is reaped: until then nobody else can have its number.
            members = self._members()
            try:
                self.order("quit")
                self._process.wait(QUIT_TIMEOUT_S)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
            left = list({*members, *marked(MARK, str(self._place))})
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
            psutil.wait_procs(left, timeout=QUIT_TIMEOUT_S)
        self._control.close()
        shutil.rmtree(self._place, ignore_errors=True)


def _session_of(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return -1


def marked(name: str, value: str) -> list[psutil.Process]:
    """All processes that carry this variable, whoever their parent is by now.

    psutil remembers their start times: a pid that has been given to somebody else is never signalled.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


class PeerReader:
    """The subscriber's process; see `reader`."""

    def __init__(self, socket_path: str, *, from_offset: int = -1) -> None:
        arguments = ["benchmarks.peers.reader", socket_path, str(from_offset)]
        self._start(arguments)

    def _start(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self._process.stdout is not None
        self._said = Lines(self._process.stdout.fileno(), "the subscriber")
        try:
            self._expect("ready")
        except BaseException:
            self.close()
            raise

    def _expect(self, word: str) -> None:
        said = self._said.next()
        if said != word:
            raise PeerError(f"the subscriber said {said!r}, not {word!r}")

    def tell(self, line: str) -> None:
        """One line to the subscriber."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def report(self, expected: int, windows: list[tuple[int, int]]) -> dict[str, Any]:
        """Waits until all expected events are there, or no more come; what it measured."""
        self.tell(f"expect {expected}")
        self._expect("done")
        self.tell(" ".join(f"{start_ns} {end_ns}" for start_ns, end_ns in windows))
        report: dict[str, Any] = json.loads(self._said.next())
        return report

    def close(self) -> None:
        """Ends the subscriber, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> PeerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
