"""A catalogue of what can go wrong in one session, each fault real and each bounded by itself.

A fault is a session that is started beside others: a script that makes its model, its tools or its own process go
wrong, or a signal to its worker from outside. It says which cause its end must have. Nothing here trusts the caps
that are being tried: what allocates stops at 600 MiB, what forks at 300 processes, what fills a disk at 64 MiB, and
what waits is over within minutes, so that a cap that does not hold costs a test and not the machine.

Scripts are those of the scripted provider (docs/reference/scripted-provider.md). Whole upheavals, such as clients
that vanish or sessions that come and go, are in `upheavals`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto, SyncSession
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import AgentSpec, Limits, Permissions

MIB = 1 << 20
CAP_BYTES = 200 * MIB
FILE_BYTES = 16 * MIB
MAX_LEAK_BYTES, MAX_FORKS, MAX_FILE_BYTES = 600 * MIB, 300, 64 * MIB
FLOOD_HZ, FLOOD_EVENTS = 20_000, 60_000
MAX_CORES = 16
"""More spinning processes than this would meet the cap on processes first."""
BEGIN_S, END_S = 60.0, 120.0
"""How long a fault may take to happen, and its session to end, on a machine that is busy with other things."""

SETTINGS: dict[str, dict[str, Any]] = {
    "sessions": {"heartbeat_s": 1, "hung_after_s": 6},
    "providers": {"scripted": {"max_retries": 1, "idle_timeout_s": 1, "timeout_s": 7200}},
}
"""A daemon that is quicker than usual to give up on a silent model or worker, and lets siblings stream for long."""

LIMITS = Limits(memory_bytes=CAP_BYTES, pids=64, file_bytes=FILE_BYTES)

_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or shutil.which("python3") or "python3"


def _python(program: str) -> str:
    return f"{_PYTHON} -c {shlex.quote(program)}"


_LEAK = _python(
    "import time\nheld = []\n"
    f"for _ in range({MAX_LEAK_BYTES // MIB // 10}):\n  held.append(bytearray(b'x') * (10 << 20)); time.sleep(0.05)\n"
    "time.sleep(60)"
)
_SPIN = (
    f"for i in $(seq {min(os.cpu_count() or 1, MAX_CORES)}); do timeout 2 sh -c 'while :; do :; done' & done; wait"
)
_FORK = _python(
    f"import os, time\nfor _ in range({MAX_FORKS}):\n"
    "  try: child = os.fork()\n"
    "  except OSError: time.sleep(0.01); continue\n"
    "  if not child: time.sleep(60); os._exit(0)\n"
    "time.sleep(2)"
)
_FILL = f'head -c {MAX_FILE_BYTES} /dev/zero > "$TMPDIR/full"; echo "status $?, $(stat -c %s "$TMPDIR/full") bytes"'
_DEAF = (
    "trap '' HUP INT QUIT TERM USR1 USR2; (setsid sh -c \"trap '' HUP INT TERM; sleep 300\") & "
    "touch deaf; for i in $(seq 300); do sleep 1; done"
)


class FaultError(Exception):
    """A fault could not be committed, or did not go as it must; the message says what was seen."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One way to go wrong. `turns` is the script, played again and again with `loop`."""

    name: str
    what: str
    ends: frozenset[str]
    """Causes that its session may end with, as `str(cause)`; `completed` if the fault is the tool's alone."""
    turns: tuple[dict[str, Any], ...]
    loop: bool = False
    says: str = ""
    """What its result, or the message of its cause, must contain."""
    limits: Limits = LIMITS
    signal: str = ""
    """Sent to the worker once its model streams."""
    sign: str = ""
    """A file in the working directory by which a tool says that it is ready to be stopped."""

    def agent(self, workdir: Path) -> AgentSpec:
        """The agent that commits it; its script is written to the directory."""
        script = workdir / f"fault-{self.name}.yml"
        script.write_text(json.dumps({"turns": self.turns, "loop": self.loop}))
        return AgentSpec(
            name=self.name,
            model=f"scripted:{script}",
            tools=("shell",),
            limits=self.limits,
            permissions=Permissions(preset="autonomous"),
        )


def commit(fault: Fault, daemon: PrivateDaemon, otto: SyncOtto) -> SessionInfo:
    """Starts the faulty session, does to it what must be done from outside, and waits for its end.

    Raises: FaultError, OttoError.
    """
    session = otto.start(spec=fault.agent(daemon.workdir), task="go", cwd=daemon.workdir)
    if fault.signal:
        wait_until("its model streams", lambda: session.info().last_seq > 10)
        _strike(session, signal.Signals[fault.signal])
    if fault.sign:
        sign = daemon.workdir / fault.sign
        wait_until("its tool is ready", sign.exists)
        sign.unlink()
        session.stop(grace_s=0.5)
    return session.wait(timeout_s=END_S).info


def _strike(session: SyncSession, number: int) -> None:
    worker = identify(session.info().pid)
    if worker is None or not send_signal(worker, number):
        raise FaultError(f"{session.id} was gone before it could be struck")


def wait_until(what: str, probe: Callable[[], bool]) -> None:
    """Polls. Raises FaultError."""
    deadline_s = time.monotonic() + BEGIN_S
    while not probe():
        if time.monotonic() > deadline_s:
            raise FaultError(f"{what}: not within {BEGIN_S:g} s")
        time.sleep(0.01)


def _tool(command: str, **arguments: object) -> tuple[dict[str, Any], ...]:
    """A turn that runs the command, and one that says what came of it."""
    call = {"name": "shell", "arguments": {"command": command.replace("$", "$$"), **arguments}}
    return {"tools": [call]}, {"text": "It said: ${last_tool_result}"}


_STREAM = {"stream": {"events": 100_000, "rate_hz": 50}}
_TEXT = "a text that is longer than what one piece of a stream holds, by far"
_COMPLETED, _FAILED = frozenset({"completed"}), frozenset({"failed"})

CATALOGUE = (
    Fault(
        name="tool-leaks",
        what="a tool allocates without end",
        ends=frozenset({"memory"}),
        turns=_tool(_LEAK),
    ),
    Fault(
        name="worker-leaks",
        what="the session's own process allocates without end",
        ends=frozenset({"memory"}),
        turns=({"leak_bytes": 50 * MIB, "tools": [{"name": "shell", "arguments": {"command": "sleep 0.5"}}]},),
        loop=True,
        limits=msgspec.structs.replace(LIMITS, max_steps=MAX_LEAK_BYTES // (50 * MIB)),
    ),
    Fault(name="tool-spins", what="a tool spins on every core", ends=_COMPLETED, turns=_tool(_SPIN)),
    Fault(
        name="worker-spins",
        what="the session's own loop spins",
        ends=frozenset({"hung"}),
        turns=({"text": _TEXT, "spin": 300, "after_chunks": 1},),
    ),
    Fault(
        name="tool-segfaults",
        what="a tool dies of a real SIGSEGV",
        ends=_COMPLETED,
        turns=_tool("exec " + _python("import ctypes; ctypes.string_at(0)")),
        says="killed by signal 11",
    ),
    Fault(
        name="worker-segfaults",
        what="the session's process dies of SIGSEGV",
        ends=frozenset({"crashed(SIGSEGV)"}),
        turns=(_STREAM,),
        signal="SIGSEGV",
    ),
    Fault(
        name="tool-forks",
        what="a tool forks without end",
        # The kernel refuses the fork and the tool lives with it, or a look finds too many and ends the session.
        ends=frozenset({"completed", "crashed(SIGKILL)"}),
        turns=_tool(_FORK),
    ),
    Fault(
        name="tool-fills-disk", what="a tool fills the disk", ends=_COMPLETED, turns=_tool(_FILL), says="status 153"
    ),
    Fault(
        name="tool-floods-output",
        what="a tool prints without end",
        ends=_COMPLETED,
        turns=_tool("yes", timeout_s=2),
        says="bytes not shown",
    ),
    Fault(
        name="model-floods",
        what=f"a model streams {FLOOD_HZ:,} events/s",
        ends=_COMPLETED,
        turns=({"stream": {"events": FLOOD_EVENTS, "rate_hz": FLOOD_HZ}},),
    ),
    Fault(
        name="tool-ignores-signals",
        what="a tool ignores every signal and is stopped",
        ends=frozenset({"cancelled"}),
        turns=_tool(_DEAF),
        sign="deaf",
    ),
    Fault(
        name="worker-freezes",
        what="the session's process is stopped by SIGSTOP",
        ends=frozenset({"hung"}),
        turns=(_STREAM,),
        signal="SIGSTOP",
    ),
    Fault(
        name="tool-raises",
        what="an unhandled exception in a tool",
        ends=_COMPLETED,
        turns=_tool(_python("raise RuntimeError('unforeseen')")),
        says="RuntimeError: unforeseen",
    ),
    Fault(
        name="provider-raises",
        what="an unhandled exception in a provider",
        ends=_FAILED,
        # More than any machine has: a MemoryError at once, and not one page of it.
        turns=({"leak_bytes": 1 << 62},),
        says="MemoryError",
    ),
    Fault(
        name="provider-hangs",
        what="a provider falls silent in the middle of an answer",
        ends=_FAILED,
        turns=({"text": _TEXT, "stall": 600, "after_chunks": 1},),
    ),
    Fault(
        name="provider-cuts",
        what="a provider breaks off in the middle of an answer",
        ends=_FAILED,
        turns=({"text": _TEXT, "cut": 1},),
    ),
    Fault(
        name="provider-stammers",
        what="a provider sends what is no message",
        ends=_FAILED,
        turns=({"text": _TEXT, "malformed": True},),
    ),
    Fault(
        name="provider-refuses",
        what="a provider cannot be reached",
        ends=_FAILED,
        turns=({"error": {"status": 0}},),
    ),
)
