"""Who is measured: every peer, how its hub is started, and what it can be asked to do."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec

HERE = Path(__file__).parent
PYTHON_HUB = "from benchmarks.peers.py.hub import main; main()"
"""Not `-m`: multiprocessing would import the hub's module anew in every session."""

RAY_HUB = "from benchmarks.peers.py.ray_hub import main; main()"

STREAMING = ("stream", "saturation", "siblings")
LIFE = ("life",)
ALL_JOBS = (*STREAMING, *LIFE)
CHECK_TIMEOUT_S = 60


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One system. In `command` and `build`, {socket}, {build} (a directory) and {sdk} (0 or 1) are filled in."""

    name: str
    title: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    """A program, or `python:MODULE`."""
    sessions_are: Literal["processes", "in the hub's process"]
    build: tuple[str, ...] = ()
    """Run once before the hub."""
    jobs: tuple[str, ...] = ALL_JOBS
    max_sessions: int = 1000
    """More are not tried: it would take minutes or more memory than the machine has."""

    @property
    def is_one_process(self) -> bool:
        """Whether a killed process takes all sessions with it."""
        return self.sessions_are != "processes"


def roster(python: str = sys.executable) -> tuple[Peer, ...]:
    """All peers; `python` is the interpreter of those that need packages which Otto does not."""

    def node(name: str, title: str, mode: str, sessions_are: Literal["processes", "in the hub's process"]) -> Peer:
        command = ("node", str(HERE / "node" / "hub.mjs"), "{socket}", mode)
        return Peer(name=name, title=title, command=command, needs=("node",), sessions_are=sessions_are)

    def python_hub(name: str, title: str, method: str, jobs: tuple[str, ...], *, by: str = sys.executable) -> Peer:
        needs = (f"python:{method}",) if method == "circus" else ()
        command = (by, "-c", PYTHON_HUB, "{socket}", method, "1", "{sdk}")
        return Peer(name=name, title=title, command=command, needs=needs, sessions_are="processes", jobs=jobs)

    beam = ("erl", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none", "-noshell", "-noinput")
    return (
        node("node", "Node, one process", "here", "in the hub's process"),
        node("node-fork", "Node, a process per session", "fork", "processes"),
        node("node-fork-low", "Node, a process per session, lowered priority", "fork-low", "processes"),
        Peer(
            name="beam",
            title="BEAM, one virtual machine",
            command=(*beam, "-pa", "{build}", "-run", "hub", "main", "{socket}"),
            needs=("erl", "erlc"),
            sessions_are="in the hub's process",
            build=("erlc", "-o", "{build}", str(HERE / "beam" / "hub.erl")),
        ),
        python_hub("forkserver", "multiprocessing, forkserver, lowered priority", "forkserver", ALL_JOBS),
        # Once they run, sessions of these are the same processes as the fork server's.
        python_hub("spawn", "multiprocessing, spawn", "spawn", LIFE),
        python_hub("circus", "circus", "circus", LIFE, by=python),
        Peer(
            name="ray",
            title="Ray, an actor per session",
            command=(python, "-c", RAY_HUB, "{socket}"),
            needs=("python:ray",),
            sessions_are="processes",
            max_sessions=50,
        ),
    )


def missing(peer: Peer) -> str:
    """What the peer needs and this machine does not have; "" when it can run."""
    for need in peer.needs:
        kind, _, module = need.partition(":")
        if kind == "python":
            if not _has_module(peer.command[0], module):
                return f"the Python package {module}"
        elif shutil.which(need) is None:
            return f"the program {need}"
    return ""


def _has_module(python: str, module: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec(module) is not None
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, timeout=CHECK_TIMEOUT_S)
    return done.returncode == 0
