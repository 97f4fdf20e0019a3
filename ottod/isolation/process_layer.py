"""The layer that every Linux gives: a process for each session, and an end that reaches all of its processes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

from ottod.isolation.layers import TRIAL_TIMEOUT_S, LayerReport
from ottod.isolation.processes import SESSION_MARKER, identify, kill_survivors, survivors

END_DEADLINE_S = 5.0

_CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
_ESCAPE = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    time.sleep(600)
os.setsid()
middle = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == middle:
    time.sleep(0.001)
sys.stdout.write("out\\n")
sys.stdout.flush()
time.sleep(600)
"""


class ProcessLayer:
    """A crash stays in its process, and the end of a session reaches every process of it."""

    name = "process"

    def probe(self) -> LayerReport:
        """Whether processes can be held by descriptor, so that no signal ever reaches a stranger."""
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            return LayerReport(
                name=self.name,
                status="missing",
                detail=f"pidfd: {error.strerror}",
                mend="Otto needs Linux 5.3 or newer",
            )
        return LayerReport(name=self.name, status="given", detail="one process a session, held by pidfd")

    def prove(self) -> LayerReport:
        """One process dies by SIGSEGV; another hides behind setsid and a double fork, and is found and ended."""
        if failure := self._crash() or self._escape():
            return LayerReport(
                name=self.name, status="missing", detail=failure, mend="report this as a defect of Otto"
            )
        detail = "a crash stayed in its process; one that ignored SIGTERM, forked twice and called setsid was ended"
        return LayerReport(name=self.name, status="given", detail=detail)

    @staticmethod
    def _crash() -> str:
        argv = [sys.executable, "-I", "-S", "-c", _CRASH]
        done = subprocess.run(argv, capture_output=True, timeout=TRIAL_TIMEOUT_S, check=False)
        return (
            "" if done.returncode == -11 else f"a process that crashes ended with {done.returncode}, not by SIGSEGV"
        )

    @staticmethod
    def _escape() -> str:
        session = trial_session()
        argv = [sys.executable, "-I", "-S", "-c", _ESCAPE]
        child = subprocess.Popen(argv, env={SESSION_MARKER: session}, stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            known = identify(child.pid)
            before = survivors(session, known=[known] if known else [])
            remaining = kill_survivors(session, deadline_s=END_DEADLINE_S, known=[known] if known else [])
        finally:
            kill_survivors(session, deadline_s=END_DEADLINE_S)
            child.communicate(timeout=TRIAL_TIMEOUT_S)
        if len(before) != 2:
            return f"{len(before)} of 2 processes were found"
        return f"processes remain: {[each.pid for each in remaining]}" if remaining else ""


def trial_session() -> str:
    """A name for a trial that is no session's: it cannot be mistaken for one, whichever daemon looks."""
    return f"trial-{secrets.token_hex(6)}"
