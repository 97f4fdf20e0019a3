"""How the programs of one session are held: what its worker says once, and its launcher is told.

An order to the launcher says nothing of this, so that a worker in the wrong hands cannot widen anything.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ottod.isolation import bubblewrap, confined_exec
from ottod.isolation.program_paths import ProgramPaths, program_paths

GRACE_MS = 100
"""How long what a program left running may take to end by itself."""

Layer = Literal["required", "preferred", "off"]


class NamedProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program that the launcher is told of at its start, so that an order can give it more than others have.

    `env` is its whole environment, `has_network` the host's network whatever the layer says.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    has_network: bool = False


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """Where programs work and what holds them. Paths are absolute; `rlimits` by name without RLIMIT_, e.g. FSIZE.

    `tmp_dir` is the session's own and writable; `denied_paths` (Otto's directories) are never visible. `files`,
    `network` and `syscalls` are the layers of `protocol.specs.Isolation`. `pids` bounds the processes of one call,
    where a sandbox can count them apart from the user's others.
    """

    root: str
    tmp_dir: str
    read_paths: tuple[str, ...] = ()
    write_paths: tuple[str, ...] = ()
    denied_paths: tuple[str, ...] = ()
    files: Layer = "preferred"
    network: Layer = "preferred"
    syscalls: Layer = "preferred"
    bwrap: str = ""
    """The bubblewrap program; empty to do without."""
    pids: int | None = None
    rlimits: dict[str, int] = {}
    named: tuple[NamedProgram, ...] = ()


def launch_config(
    confinement: Confinement, root: str, env: Mapping[str, str], markers: Mapping[str, str]
) -> dict[str, Any]:
    """What the launcher is told once: how the programs of this session are held, with a sandbox and without.

    files, network, syscalls    the layers            trial, sandbox     command lines of bubblewrap; [] without
    enclosed, plain             for programs in the sandbox and without it: env, read, write, devices, rlimits
    root, granted               what is protected     python, bootstrap  the sandbox's first process
    named                       programs that an order can ask for by name: argv, env, network
    """
    paths = program_paths(
        root=root,
        tmp_dir=confinement.tmp_dir,
        env=env,
        # Our own code: what becomes a program, and what runs tools that are Python files.
        read_paths=(*confinement.read_paths, str(Path(confined_exec.__file__).parents[1])),
        write_paths=confinement.write_paths,
        denied_paths=confinement.denied_paths,
    )
    limits = {"CORE": 0, **confinement.rlimits}
    rlimits = [(getattr(resource, f"RLIMIT_{name}"), value) for name, value in limits.items()]
    is_open = confinement.files == "off"
    tmp = confinement.tmp_dir if is_open else bubblewrap.TMP
    enclosed = {
        "env": _temporary(tmp, env),
        "read": (*paths.trees_read, "/proc", "/dev"),
        "write": (*paths.trees_write, tmp, "/dev/shm"),
        "devices": paths.devices,
        # A user namespace counts its own processes; outside of one the limit would count all of the user's.
        "rlimits": [*rlimits, *([(resource.RLIMIT_NPROC, confinement.pids)] if confinement.pids else [])],
    }
    plain = {
        "env": _temporary(confinement.tmp_dir, env),
        "read": paths.read,
        "write": paths.write,
        "devices": paths.devices,
        "rlimits": rlimits,
    }
    return {
        "files": confinement.files,
        "network": confinement.network,
        "syscalls": confinement.syscalls,
        **_sandbox(confinement, paths, env),
        "enclosed": enclosed,
        "plain": plain,
        "root": root,
        "granted": [os.path.realpath(path) for path in confinement.write_paths],
        "named": {
            each.name: {"argv": list(each.argv), "env": {**env, **each.env}, "network": each.has_network}
            for each in confinement.named
        },
        "markers": dict(markers),
        "grace_ms": GRACE_MS,
        "python": os.path.realpath(sys.executable),
        "bootstrap": confined_exec.BOOTSTRAP.format(str(Path(confined_exec.__file__).parent)),
    }


def _sandbox(confinement: Confinement, paths: ProgramPaths, env: Mapping[str, str]) -> dict[str, list[str]]:
    if not confinement.bwrap:
        return {"trial": [], "sandbox": []}
    has_network = confinement.network == "off"
    if confinement.files == "off":
        sandbox = bubblewrap.open_arguments(
            confinement.bwrap,
            masked=confinement.denied_paths,
            tmp_dir=confinement.tmp_dir,
            has_network=has_network,
        )
    else:
        home = env.get("HOME", "")
        sandbox = bubblewrap.arguments(
            confinement.bwrap,
            paths=paths,
            tmp_dir=confinement.tmp_dir,
            home=os.path.normpath(home) if home.startswith("/") else "",
            has_network=has_network,
        )
    return {"trial": bubblewrap.trial_arguments(confinement.bwrap, has_network=has_network), "sandbox": sandbox}


def _temporary(directory: str, env: Mapping[str, str]) -> dict[str, str]:
    cache = {} if "XDG_CACHE_HOME" in env else {"XDG_CACHE_HOME": f"{directory}/cache"}
    return {**cache, **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), directory)}
