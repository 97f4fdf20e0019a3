"""The trial program of the layers around tools: it is run as a tool's program is, and tries to break out.

It is started by `ConfinedPrograms`, as a session's shell is, in a project of its own with a directory beside it, and
prints what it could do. Blocks for some hundred milliseconds; needs a thread without a running loop.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from ottod.errors import UNDECODABLE, OttoError
from ottod.isolation import bubblewrap
from ottod.isolation.layers import TRIAL_TIMEOUT_S
from ottod.isolation.process_layer import trial_session
from ottod.isolation.programs import ConfinedPrograms, Confinement

MAX_OUTPUT_BYTES = 64 * 1024

_TRY_ALL = r"""
import ctypes, json, os, socket, sys
outside, port, root_pid = sys.argv[1], int(sys.argv[2]), sys.argv[3]
found = {"variables": sorted(os.environ)}
def attempt(name, action):
    try:
        action()
        found[name] = ""
    except OSError as error:
        found[name] = error.strerror or str(error)
def unshare():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(0x10000000)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
attempt("write_outside", lambda: open(outside + "/new", "w").close())
attempt("read_outside", lambda: open(outside + "/secret").read())
attempt("write_inside", lambda: open("inside", "w").close())
attempt("connect", lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close())
attempt("see_daemon", lambda: os.stat("/proc/" + root_pid))
attempt("see_cgroups", lambda: os.listdir("/sys/fs/cgroup"))
attempt("unshare", unshare)
with open("/proc/self/status") as status:
    for line in status:
        name, _, value = line.partition(":")
        if name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd"):
            found[name] = value.strip()
print(json.dumps(found))
"""


def attempts() -> dict[str, Any]:
    """What a confined program could do: each attempt's error, empty if it succeeded. Raises OttoError."""
    place = Path(tempfile.mkdtemp(prefix="otto-trial-"))
    try:
        for name in ("project", "outside"):
            (place / name).mkdir()
        (place / "outside/secret").write_text("a secret\n")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            return _attempts(place, str(listener.getsockname()[1]))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _attempts(place: Path, port: str) -> dict[str, Any]:
    confinement = Confinement(
        root=str(place / "project"),
        tmp_dir=str(place / "tmp"),
        read_paths=(sys.prefix, sys.base_prefix),
        bwrap=bubblewrap.find(),
    )
    programs = ConfinedPrograms(session=trial_session(), env={}, confinement=confinement)
    argv = [sys.executable, "-I", "-S", "-c", _TRY_ALL, str(place / "outside"), port, str(os.getpid())]
    try:
        with asyncio.Runner() as runner:
            done = runner.run(programs.run(argv, timeout_s=TRIAL_TIMEOUT_S, max_output_bytes=MAX_OUTPUT_BYTES))
    finally:
        programs.close()
    try:
        found = msgspec.json.decode(done.output.strip().splitlines()[-1])
    except (IndexError, *UNDECODABLE) as error:
        raise OttoError(
            f"the trial gave no answer: {done.ended} {done.exit_status} {done.output[-200:]!r}"
        ) from error
    assert isinstance(found, dict)
    return found
