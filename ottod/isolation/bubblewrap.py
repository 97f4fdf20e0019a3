"""The sandbox of a tool process: a file system, a process table and a network of its own, made by bubblewrap.

What the arguments say, outermost first:

    namespaces    user, pid, ipc, uts, cgroup, mount, and net unless the session has the host's network
    /             a tmpfs, read-only in the end, with nothing in it but what follows
    /usr /etc …   the system and the toolchains, read-only; symlinks on the way to them are made again
    /proc         of the new pid namespace;  /dev: null, zero, random, tty, a pty of its own;  no /sys, no /run
    /tmp          the session's own directory
    project       the working directory and granted paths, writable
    masks         an empty tmpfs, or /dev/null, over what lies inside and is nobody's business
    protected     see `protected`; added by the launcher, because it may differ from call to call

The home directory exists and is empty but for what was granted; Otto's runtime and state directories do not exist.
No capability is left, and the sandbox dies with the keeper that started it.

Source: bwrap(1), ADR 0010.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ottod.isolation.program_paths import ProgramPaths
from ottod.isolation.system_programs import system_program

PROGRAM = "bwrap"
VARIABLE = "OTTO_BWRAP"
TRIAL_TIMEOUT_S = 5.0
INSIDE = "inside"
TMP = "/tmp"
NAMESPACES = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
CONDUCT = ("--die-with-parent", "--as-pid-1", "--cap-drop", "ALL")
OWN = ("/proc", "/dev", "/sys", TMP)
"""Mounted by the sandbox itself, so nothing of the host's is bound over them as such; places inside /tmp may be."""


def find() -> str:
    """The program, where the system keeps programs or by the absolute path in OTTO_BWRAP; empty if there is none."""
    chosen = os.environ.get(VARIABLE, "")
    return chosen if os.path.isabs(chosen) else system_program(PROGRAM)


def absence() -> str:
    """That there is none, and what would mend it. One that is only on the PATH may be an agent's."""
    other = shutil.which(PROGRAM)
    if other is None or not os.path.isabs(other):
        return "bubblewrap is not installed; install the package bubblewrap"
    advice = f"install the package bubblewrap, or start the daemon with {VARIABLE}={other} if no agent can write it"
    return f"{other} is not where the system keeps programs; {advice}"


def arguments(program: str, *, paths: ProgramPaths, tmp_dir: str, home: str, has_network: bool) -> list[str]:
    """The command line up to `--chdir`, for programs that may touch these paths and no others."""
    mounts: list[tuple[str, list[str]]] = [
        ("/proc", ["--proc", "/proc"]),
        ("/dev", ["--dev", "/dev"]),
        (TMP, ["--bind", tmp_dir, TMP]),
    ]
    if "/" in (*paths.trees_read, *paths.trees_write):
        mounts.append(("/sys", ["--tmpfs", "/sys", "--remount-ro", "/sys"]))
    mounts += [(path, ["--ro-bind", path, path]) for path in paths.trees_read if path not in OWN]
    mounts += [(path, ["--bind", path, path]) for path in paths.trees_write if path not in OWN]
    mounts += [(path, _mask(path)) for path in paths.masked]
    bound = (*paths.trees_read, *paths.trees_write)
    mounts += [(path, ["--symlink", target, path]) for path, target in paths.links if not _is_inside(path, bound)]
    # A place inside another must come after it, or it would be hidden by it.
    mounts.sort(key=lambda mount: _depth(mount[0]))
    return [
        program,
        *NAMESPACES,
        *(() if has_network else ("--unshare-net",)),
        *CONDUCT,
        *(word for _, words in mounts for word in words),
        *(["--dir", home] if home and not _is_inside(home, bound) else []),
        "--remount-ro",
        "/",
    ]


def open_arguments(program: str, *, masked: tuple[str, ...], tmp_dir: str, has_network: bool) -> list[str]:
    """The same for a session without confined files: the host's file system, but for Otto's own directories."""
    network = () if has_network else ("--unshare-net",)
    words = [program, *NAMESPACES, *network, *CONDUCT, "--dev-bind", "/", "/", "--proc", "/proc"]
    for path in masked:
        if os.path.isdir(path):
            inside = ["--bind", tmp_dir, tmp_dir] if _is_inside(tmp_dir, (path,)) else []
            words += ["--tmpfs", path, *inside, "--remount-ro", path]
    return words


def trial_arguments(program: str, *, has_network: bool) -> list[str]:
    """The same namespaces around a program that does nothing."""
    true = os.path.realpath(system_program("true") or "/bin/true")
    network = () if has_network else ("--unshare-net",)
    return [program, *NAMESPACES, *network, *CONDUCT, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", true]


def trial(*, has_network: bool = False, program: str | None = None) -> str:
    """Makes a sandbox for a moment: empty if that works, else why not and what would mend it, in one line."""
    program = find() if program is None else program
    if not program:
        return absence()
    # Success is a word from inside: a status of 0 alone may be another program's.
    argv = [*trial_arguments(program, has_network=has_network)[:-1], "/bin/sh", "-c", f"echo {INSIDE}"]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
            env={},
        )
    except subprocess.TimeoutExpired:
        return f"{program} gives no answer within {TRIAL_TIMEOUT_S:.0f} s"
    except OSError as error:
        return f"{program}: {error.strerror}"
    if done.returncode == 0 and done.stdout.strip() == INSIDE:
        return ""
    lines = done.stderr.strip().splitlines()
    return f"{lines[-1] if lines else f'{program} ended with status {done.returncode}'}; {namespace_mend()}"


def namespace_mend(proc: str = "/proc") -> str:
    """What most likely keeps user namespaces from being made here, as advice."""
    if _read(f"{proc}/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts user namespaces: install a profile that lets bwrap make them (Ubuntu 24.04: "
            "the package apparmor-profiles has it, as bwrap-userns-restrict), or set "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _read(f"{proc}/sys/kernel/unprivileged_userns_clone") == "0":
        return "set sysctl kernel.unprivileged_userns_clone=1"
    if _read(f"{proc}/sys/user/max_user_namespaces") == "0":
        return "set sysctl user.max_user_namespaces=10000"
    return "a container or its seccomp profile may forbid namespaces; run Otto outside of it, or allow them"


def _mask(path: str) -> list[str]:
    return ["--tmpfs", path, "--remount-ro", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path]


def _depth(path: str) -> int:
    return path.rstrip("/").count("/")


def _is_inside(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in directories)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
