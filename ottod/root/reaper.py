"""Knows every child of root by pidfd, and reaps the strangers that a dead worker leaves to it.

Root is a child subreaper: a worker's orphans become root's children. Known children (zygote, workers) have a pidfd
on the loop; nothing else waits for them, so their pid cannot be recycled while it is in the table. Strangers are
reaped on SIGCHLD, after a look at their pid that does not consume it.

Programs that root runs on its threads are waited for there, and are no strangers either: `subprocess` takes the
status of a child that somebody else has reaped for 0, so that a failure would be heard as a success.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ottod.isolation.processes import ProcessId, is_alive


class Exit:
    """How a process ended: an exit status, or a signal; neither, if it was not ours to ask."""

    __slots__ = ("signal", "status")

    def __init__(self, info: os.waitid_result | None) -> None:
        if info is None:
            self.signal, self.status = "", None
            return
        killed = info.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        self.signal = signal.Signals(info.si_status).name if killed else ""
        self.status = None if killed else info.si_status


class Child:
    """A live child of root, safe to signal: its pidfd cannot mean another process."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.is_reaped = False

    def send_signal(self, signum: signal.Signals) -> None:
        """Signals the process; one that is already dead is no error."""
        if self.is_reaped:
            return  # The descriptor's number may already mean another process.
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass


class Reaper:
    """The table of known children."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: dict[int, Child] = {}
        self._expected = 0
        self._lock = threading.Lock()
        """Over the next two, and over a look at a stranger together with its reaping."""
        self._sparing = 0
        self._own: set[int] = set()
        self.strangers_reaped = 0

    def expect(self, count: int) -> None:
        """That many children more (or fewer) are on their way whose pids are not known yet: reap no stranger now."""
        self._expected += count
        if not self._expected:
            self._loop.call_soon(self._reap_strangers)

    def install(self) -> None:
        """Takes over SIGCHLD. uvloop keeps its own hands off it as long as nobody starts a subprocess through it."""
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: self._loop.call_soon_threadsafe(self._reap_strangers))

    def watch(self, pid: int, on_exit: Callable[[Exit], None]) -> Child:
        """Registers a child. `on_exit` is called once, after it has been reaped. Raises ProcessLookupError."""
        return self._watch(pid, os.pidfd_open(pid), on_exit)

    def adopt(self, process: ProcessId, on_exit: Callable[[Exit], None]) -> Child:
        """Registers a process that an earlier root started: a child of this one only if root became another program.

        Raises: ProcessLookupError if it is gone.
        """
        pidfd = os.pidfd_open(process.pid)
        if not is_alive(process):
            os.close(pidfd)
            raise ProcessLookupError(f"process {process.pid} is gone")
        return self._watch(process.pid, pidfd, on_exit)

    def _watch(self, pid: int, pidfd: int, on_exit: Callable[[Exit], None]) -> Child:
        child = Child(pid, pidfd)
        self._known[pid] = child
        self._loop.add_reader(pidfd, self._exited, child, on_exit)
        return child

    def _exited(self, child: Child, on_exit: Callable[[Exit], None]) -> None:
        try:
            info = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            info = None  # Somebody else's child: its descriptor says that it ended, and nobody how.
        else:
            if info is None:
                return
        child.is_reaped = True
        self._loop.remove_reader(child.pidfd)
        os.close(child.pidfd)
        del self._known[child.pid]
        on_exit(Exit(info))
        # A stranger may have been hidden behind this child when SIGCHLD was looked at.
        self._reap_strangers()

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """For a thread that starts programs and waits for them without `run`: meanwhile no stranger is reaped."""
        with self._lock:
            self._sparing += 1
        try:
            yield
        finally:
            with self._lock:
                self._sparing -= 1
            self._loop.call_soon_threadsafe(self._reap_strangers)

    def run(
        self, argv: Sequence[str], *, timeout_s: float, input: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a program of root's own to its end. Blocks; for a thread. Raises OSError and TimeoutExpired."""
        pipe = subprocess.PIPE
        with self.sparing():
            process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
            with self._lock:
                self._own.add(process.pid)
        try:
            with process:
                try:
                    output, errors = process.communicate(input, timeout=timeout_s)
                except BaseException:
                    process.kill()
                    raise
        finally:
            with self._lock:
                self._own.discard(process.pid)
            # A stranger may have been hidden behind this one.
            self._loop.call_soon_threadsafe(self._reap_strangers)
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def _reap_strangers(self) -> None:
        while not self._expected and self._reap_stranger():
            self.strangers_reaped += 1

    def _reap_stranger(self) -> bool:
        """Whether there was one. Whoever hides one, or keeps it from being reaped, has them looked for afterwards."""
        with self._lock:
            if self._sparing:
                return False
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None or info.si_pid in self._known or info.si_pid in self._own:
                    return False
                os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return False
        return True

    def let_go(self, child: Child) -> None:
        """Forgets a process that is to outlive this root."""
        if self._known.pop(child.pid, None) is child and not child.is_reaped:
            child.is_reaped = True
            self._loop.remove_reader(child.pidfd)
            os.close(child.pidfd)

    async def all_gone(self, *, timeout_s: float) -> None:
        """Waits until every known child has been reaped; kills those that outstay `timeout_s`."""
        deadline_s = self._loop.time() + timeout_s
        while self._known:
            if self._loop.time() > deadline_s:
                for child in self._known.values():
                    child.send_signal(signal.SIGKILL)
                deadline_s = float("inf")
            await asyncio.sleep(0.005)
