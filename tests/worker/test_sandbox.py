"""A worker that has confined itself: what it can still do, and what not, in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ottod.isolation import bubblewrap, landlock, processes

needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
REPOSITORY = Path(__file__).parents[2]

_WORKER = r"""
import asyncio, json, os, signal, socket, sys, threading
from pathlib import Path
from ottod.errors import OttoError
from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.specs import AgentSpec, Isolation, ModelTarget
from ottod.protocol.birth import Birth
from ottod.worker.sandbox import confine_worker, programs_for

base, cgroup = Path(sys.argv[1]), sys.argv[2]
given = json.loads(sys.argv[3])
isolation = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
birth = Birth(
    session=sys.argv[4], incarnation=1, secret=b"", next_seq=1, endpoint="",
    spec=AgentSpec(name="a", tools=("shell",), isolation=Isolation(**isolation)),
    models=(ModelTarget(provider="p", adapter="scripted", model=str(base / "script.json")),),
    cwd=str(base / "project"), env={"PATH": os.environ["PATH"], "HOME": str(base / "home")},
    session_dir=str(base / "state/sessions/own"), private_dirs=(str(base / "run"), str(base / "state")),
)
found = {}
def attempt(name, action):
    try:
        found[name] = action()
    except (OSError, OttoError) as error:
        found[name] = type(error).__name__

async def main():
    await asyncio.to_thread(threading.get_ident)  # A thread of the pool that is older than the confinement.
    programs = programs_for(birth)
    found["weakness"] = confine_worker(birth)
    def write(path): path.write_text("x"); return "written"
    def read(path): path.read_text(); return "read"
    def connect():
        with socket.socket(socket.AF_UNIX) as client: client.connect(str(base / "run/worker.sock"))
        return "connected"
    attempt("project", lambda: write(base / "project/file"))
    attempt("own session", lambda: write(base / "state/sessions/own/journal"))
    attempt("own tmp", lambda: write(Path(os.environ["TMPDIR"]) / "x"))
    attempt("other session", lambda: write(base / "state/sessions/other/journal"))
    attempt("read other session", lambda: read(base / "state/sessions/other/journal"))
    attempt("database", lambda: write(base / "state/otto.db"))
    attempt("token", lambda: read(base / "run/control.token"))
    attempt("new in run", lambda: write(base / "run/new"))
    attempt("home", lambda: read(base / "home/private"))
    attempt("script", lambda: read(base / "script.json"))
    attempt("granted", lambda: read(base / "granted/file"))
    attempt("cgroup", lambda: write(Path(cgroup)))
    code = sys.modules["ottod.worker.sandbox"].__file__
    attempt("code", lambda: read(Path(code)))
    attempt("write code", lambda: os.close(os.open(code, os.O_WRONLY)) or "written")
    attempt("connect", connect)
    attempt("signal", lambda: os.kill(os.getppid(), 0) or "sent")
    attempt("resolve", lambda: bool(socket.getaddrinfo("localhost", 80)))
    attempt("certificates", lambda: __import__("ssl").create_default_context() and "loaded")
    async def in_thread(path):
        try:
            return await asyncio.to_thread(write, path)
        except OSError as error:
            return type(error).__name__
    found["thread outside"] = await in_thread(base / "state/otto.db")
    found["thread inside"] = await in_thread(base / "project/thread")
    files = BeneathFiles(birth.cwd, hidden=birth.private_dirs)
    attempt("tool file", lambda: files.write("made/by/tool", b"x") and "written")
    script = "echo made > by-program; ls -d /sys; cat " + str(base / "run/control.token") + "; echo $TMPDIR"
    try:
        result = await programs.run(["/bin/sh", "-c", script], timeout_s=30, max_output_bytes=1000)
        found["program"] = result.output.splitlines()[-1] + (" seen" if "secret-token" in result.output else "")
        found["enclosed"] = "/sys\n" not in result.output
        endless = ["/bin/sh", "-c", "setsid sleep 600 & sleep 600"]
        result = await programs.run(endless, timeout_s=0.5, max_output_bytes=10)
        found["timeout"] = result.ended
    except OttoError as error:
        found["program"] = str(error)
    programs.close()
    print(json.dumps(found))

asyncio.run(main())
"""


def work(tmp_path: Path, isolation: dict[str, Any], *, session: str = "") -> dict[str, Any]:
    """What a confined worker of this isolation could do."""
    for name in ("project", "home", "granted", "run", "state/sessions/own/tmp", "state/sessions/other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("home/private", "granted/file", "script.json", "state/otto.db", "state/sessions/other/journal"):
        (tmp_path / name).write_text("x")
    (tmp_path / "run/control.token").write_text("secret-token")
    session = session or f"s-{os.urandom(5).hex()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run/worker.sock"))
        listener.listen()
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, str(tmp_path), cgroup_file(), json.dumps(isolation), session],
            capture_output=True,
            timeout=120,
            check=False,
            cwd=REPOSITORY,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert processes.survivors(session) == []
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cgroup_file() -> str:
    """The file by which a process moves itself to another control group, wherever it is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2"):
            return f"{before.split()[4]}/cgroup.procs"
    return "/sys/fs/cgroup/cgroup.procs"


@needs_landlock
def test_a_confined_worker_keeps_to_its_own(tmp_path: Path) -> None:
    """It works in its project and session, and reaches nobody else's files, processes or control group."""
    found = work(tmp_path, {"read_paths": [str(tmp_path / "granted")]})
    assert found["weakness"] == ""
    for name in ("project", "own session", "own tmp", "tool file", "thread inside"):
        assert found[name] == "written", name
    for name in ("script", "granted", "code"):
        assert found[name] == "read", name
    refused = (
        *("other session", "read other session", "database", "token", "new in run", "home"),
        *("write code", "thread outside"),
    )
    assert {name: found[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    assert found["cgroup"] in ("PermissionError", "FileNotFoundError")


@needs_landlock
def test_a_confined_worker_can_do_its_work(tmp_path: Path) -> None:
    """It connects to root's socket, resolves names, loads certificates, runs programs in a sandbox and ends them."""
    found = work(tmp_path, {})
    assert found["connect"] == "connected" and found["resolve"] is True and found["certificates"] == "loaded"
    assert found["timeout"] == "timeout"
    if landlock.abi() >= 6:
        assert found["signal"] == "PermissionError"
    if not bubblewrap.trial():
        assert found["enclosed"] and found["program"] == "/tmp"
    assert (tmp_path / "project/by-program").read_text() == "made\n"
    assert sorted(path.name for path in (tmp_path / "project").iterdir()) == ["by-program", "file", "made", "thread"]


@needs_landlock
def test_open_files_of_tools_do_not_open_the_worker(tmp_path: Path) -> None:
    """`isolation.files: off` is about programs; the worker itself still reaches nothing of the daemon's."""
    found = work(tmp_path, {"files": "off"})
    assert found["database"] == found["token"] == found["other session"] == "PermissionError"
    if not bubblewrap.trial():
        # Without a mount namespace nothing hides a file from a program that is not confined at all.
        assert " seen" not in found["program"]
