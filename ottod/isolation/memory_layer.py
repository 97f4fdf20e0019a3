"""The layer of caps: memory, processes and processor time of a session, by cgroup or by watchdog.

The proof opens an enclosure as for a session, lets a tree in it allocate past the cap and another fork past the
limit, and wants to see that the culprits and nobody else end, that the reading names the reason, and that the
enclosure is empty afterwards. A bystander outside must live through it. Under the watchdog this process does what
root does once a second: it looks, and it kills.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from ottod.isolation.caps import Caps, Enclosure, IsolationError, Reading
from ottod.isolation.cgroup_base import MEND
from ottod.isolation.enclosure import Enclosures
from ottod.isolation.layers import TRIAL_TIMEOUT_S, LayerReport
from ottod.isolation.process_layer import trial_session
from ottod.isolation.processes import SESSION_MARKER

CAP_BYTES = 64 * 1024 * 1024
CAP_PIDS = 16
EXCESS = 4
"""The trial asks for this many times its cap, and no more: on a host without any protection it must do no harm."""
KILL_DEADLINE_S = 5.0
LOOK_S = 0.05

_ALLOCATE = """
import mmap, os, sys, time
size_bytes, parts = int(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
for _ in range(parts - 1):
    if os.fork() == 0:
        break
memory = mmap.mmap(-1, size_bytes // parts)
for start in range(0, len(memory), mmap.PAGESIZE):
    memory[start] = 1
time.sleep(600)
"""
_FORK = """
import os, sys, time
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    try:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    except BlockingIOError:
        break
time.sleep(600)
"""
Judge = Callable[[Enclosure, Reading], bool]


class MemoryLayer:
    """Caps on a session's whole tree."""

    name = "memory"

    def __init__(self, enclosures: Enclosures, *, timeout_s: float = TRIAL_TIMEOUT_S) -> None:
        self._enclosures = enclosures
        self._timeout_s = timeout_s

    def probe(self) -> LayerReport:
        """Which kind of enclosure this host gives."""
        found = self._enclosures
        if found.kind == "cgroup":
            place = f"cgroup leaves in {found.place}/sessions"
            if found.reason:
                return LayerReport(name=self.name, status="given", detail=f"{place} ({found.reason})")
            return LayerReport(name=self.name, status="given", detail=place)
        detail = f"a watchdog looks at each tree of processes, the kernel holds no cap: {found.reason}"
        return LayerReport(name=self.name, status="partly", detail=detail, mend=MEND)

    def prove(self) -> LayerReport:
        """Allocates past a cap and forks past a limit."""
        argv = [sys.executable, "-I", "-S", "-c"]
        hog = [*argv, _ALLOCATE, str(EXCESS * CAP_BYTES), str(EXCESS)]
        failure = self._breach("memory", hog, _is_out_of_memory)
        if not failure:
            bomb = [*argv, _FORK, str(EXCESS * CAP_PIDS)]
            failure = self._breach("pids", bomb, lambda _, seen: seen.pid_refusals > 0 or seen.is_over_pids)
        found = self.probe()
        if failure:
            return LayerReport(name=self.name, status="missing", detail=failure, mend=found.mend)
        done = f"a tree over {CAP_BYTES >> 20} MiB and one over {CAP_PIDS} tasks were ended, and nothing else"
        return LayerReport(name=self.name, status=found.status, detail=f"{done}; {found.detail}", mend=found.mend)

    def _breach(self, what: str, argv: list[str], is_caught: Judge) -> str:
        """Empty if the breach was caught and ended cleanly, else what went wrong."""
        session = trial_session()
        bystander = _start(["/bin/sh", "-c", "read _"], f"{session}-bystander")
        try:
            enclosure = self._enclosures.open(session, Caps(memory_bytes=CAP_BYTES, pids=CAP_PIDS))
            try:
                failure = _breach(enclosure, argv, is_caught, timeout_s=self._timeout_s)
            finally:
                remaining = enclosure.kill(deadline_s=KILL_DEADLINE_S)
                enclosure.close()
            if remaining:
                failure = f"processes remain: {[each.pid for each in remaining]}"
            if bystander.poll() is not None:
                failure = failure or "a process outside died with it"
        except (IsolationError, OSError) as error:
            failure = str(error)
        finally:
            bystander.communicate(timeout=TRIAL_TIMEOUT_S)
        return f"{what}: {failure}" if failure else ""


def _is_out_of_memory(enclosure: Enclosure, seen: Reading) -> bool:
    """The watchdog's word, or the kernel's deed: it kills the whole group, not the biggest of its processes."""
    return seen.is_over_memory or (seen.memory_kills > 0 and not enclosure.members())


def _breach(enclosure: Enclosure, argv: list[str], is_caught: Judge, *, timeout_s: float) -> str:
    culprit = _start(argv, enclosure.session)
    try:
        enclosure.admit(culprit.pid)
        if not enclosure.holds(culprit.pid):
            return "the process that was moved in is not inside"
        assert culprit.stdin is not None
        culprit.stdin.write(b"go\n")
        culprit.stdin.flush()
        give_up_at = time.monotonic() + timeout_s
        while not is_caught(enclosure, enclosure.read()):
            if time.monotonic() > give_up_at:
                return f"the cap did not hold: {enclosure.read()}"
            time.sleep(LOOK_S)
        return ""
    finally:
        culprit.kill()
        culprit.communicate(timeout=TRIAL_TIMEOUT_S)


def _start(argv: list[str], session: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={SESSION_MARKER: session},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
