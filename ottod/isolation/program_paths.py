"""What confined programs may read and write: the system, the toolchains on the session's PATH, and their own places.

The answer is given twice: as paths for a Landlock ruleset, and as trees for a mount namespace (see `bubblewrap`).

The home directory is not readable as such. A toolchain that lives in it is: for an entry `<prefix>/bin` of PATH the
libraries beside it, for `<prefix>/shims` the prefix. Secrets that lie among them are taken out again, as are Otto's
own directories: a forbidden place inside an allowed one splits the allowed one into its other children.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from ottod.settings.regular_file import read_regular

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu", "/snap"),
    *("/run/systemd/resolve", "/run/current-system"),
)
KERNEL = ("/proc", "/sys")
"""Readable under Landlock. A sandbox has a /proc of its own and no /sys at all."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts")
SHARED_MEMORY = "/dev/shm"
"""Semaphores and shared memory of POSIX live here: multiprocessing does not work without it."""
BESIDE_BIN = ("lib", "lib64", "libexec", "share", "include")
GIT_SETTINGS = (".gitconfig", ".config/git/config", ".config/git/ignore", ".config/git/attributes")
BESIDE_TOOLCHAIN = {
    ".cargo/bin": ("../registry", "../git", "../config", "../config.toml", "../env", "../../.rustup"),
    ".volta/bin": ("../tools",),
    "go/bin": ("../pkg",),
}
"""Toolchains whose files do not lie in `lib`: end of the PATH entry → paths relative to it."""
IN_LOCAL_SHARE = ("uv", "pipx", "mise", "pnpm", "man", "bash-completion")
"""`~/.local/share` is everybody's, keyrings included; of it only these hold programs."""
SECRETS_OF_ROOT = (
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssl/private",
    "/etc/ssh",
    "/etc/docker",
    "/etc/kubernetes",
    "/etc/wireguard",
    "/etc/NetworkManager/system-connections",
)
"""Mode bits protect these from everybody but root, so they matter only when the daemon is root's."""
MAX_LINKS = 40
"""Symlinks in one path, as in the kernel."""
MAX_VENV_BYTES = 64 * 1024
"""Of a `pyvenv.cfg`, which has a handful of lines."""
MAX_SPLIT = 2000
"""Children of one directory that holds a forbidden place; beyond, the whole directory is left out."""


class ProgramPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths for a Landlock ruleset. `write` implies reading.

    `trees_read` and `trees_write` say the same without `masked`, which lies inside them, and without what a sandbox
    brings itself; `links` are the symlinks (path, target) on the way to them.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]
    trees_read: tuple[str, ...] = ()
    trees_write: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


def program_paths(
    *,
    root: str,
    tmp_dir: str,
    env: Mapping[str, str],
    read_paths: Sequence[str] = (),
    write_paths: Sequence[str] = (),
    denied_paths: Sequence[str] = (),
) -> ProgramPaths:
    """The paths for programs that work in `root`, with this environment's PATH and HOME.

    `denied_paths` are never allowed, whatever else says so; only `tmp_dir`, which is the session's own, may lie in
    one. Reads the file system.
    """
    home = os.path.realpath(env["HOME"]) if env.get("HOME", "").startswith("/") else ""
    denied = [os.path.realpath(path) for path in denied_paths]
    if os.geteuid() == 0:
        denied += SECRETS_OF_ROOT
    # A prefix that is a home directory, or contains it, is no toolchain but everything the user has.
    toolchains = [
        path
        for path in (*_interpreter(), *_toolchains(env.get("PATH", ""), home))
        if path != "/" and not (home and _is_beneath(home, path))
    ]
    settings = [f"{home}/{name}" for name in GIT_SETTINGS] if home else []
    wanted = [*SYSTEM, *toolchains, *settings, *_venv_base(root), *read_paths]
    writable = [root, *write_paths]
    trees_write = _trees(writable, denied)
    trees_read = _trees((path for path in wanted if not _is_within(path, trees_write)), denied)
    return ProgramPaths(
        read=tuple(dict.fromkeys(part for path in (*wanted, *KERNEL) for part in without(path, denied))),
        write=(
            *dict.fromkeys(part for path in (*writable, SHARED_MEMORY) for part in without(path, denied)),
            tmp_dir,
        ),
        devices=tuple(DEVICES),
        trees_read=trees_read,
        trees_write=trees_write,
        masked=tuple(bad for bad in denied if os.path.lexists(bad) and _is_within(bad, (*trees_read, *trees_write))),
        links=tuple(dict.fromkeys(link for path in (*wanted, *writable) for link in links_on(path))),
    )


def worker_paths(
    *,
    root: str,
    session_dir: str,
    read_paths: Sequence[str],
    write_paths: Sequence[str],
    denied_paths: Sequence[str],
) -> tuple[list[str], list[str], list[str]]:
    """What a worker itself may read, write, and use as devices. Of `denied_paths` only its `session_dir` is open."""
    denied = [os.path.realpath(path) for path in denied_paths]
    if os.geteuid() == 0:
        denied += SECRETS_OF_ROOT
    wanted = (*SYSTEM, *KERNEL, *_interpreter(), *read_paths)
    read = [part for path in wanted if path != "/" for part in without(path, denied)]
    write = [part for path in (root, *write_paths) for part in without(path, denied)]
    return list(dict.fromkeys(read)), [*dict.fromkeys(write), session_dir], [*DEVICES]


def _trees(paths: Iterable[str], denied: Sequence[str]) -> tuple[str, ...]:
    """The real paths that exist and are not themselves denied, outermost only."""
    real = {os.path.realpath(path) for path in paths}
    known = {path for path in real if os.path.lexists(path) and not _is_within(path, denied)}
    return tuple(path for path in sorted(known) if not _is_within(path, known - {path}))


def _is_within(path: str, directories: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(_is_beneath(real, directory) for directory in directories)


def links_on(path: str) -> list[tuple[str, str]]:
    """The symlinks that a path runs through, itself included, each with its target as it is written there."""
    found: list[tuple[str, str]] = []
    rest = [part for part in path.split("/") if part]
    here = ""
    while rest and len(found) < MAX_LINKS:
        name = rest.pop(0)
        here = os.path.dirname(here) if name == ".." else f"{here}/{name}" if name != "." else here
        try:
            target = os.readlink(here or "/")
        except OSError:
            continue
        found.append((here, target))
        rest = [part for part in target.split("/") if part] + rest
        here = "" if target.startswith("/") else os.path.dirname(here)
    return found


def without(path: str, denied: Iterable[str]) -> list[str]:
    """The path, or the parts of it that are neither in a denied place nor contain one. Nothing if it is missing."""
    real = os.path.realpath(path)
    if any(_is_beneath(real, bad) for bad in denied):
        return []
    inside = [bad for bad in denied if _is_beneath(bad, real)]
    if not inside:
        return [real] if os.path.lexists(real) else []
    try:
        children = sorted(entry.path for entry in os.scandir(real) if not entry.is_symlink())
    except OSError:
        return []
    if len(children) > MAX_SPLIT:
        return []
    return [part for child in children for part in without(child, inside)]


def _is_beneath(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _interpreter() -> Iterator[str]:
    """The running Python, so that tools of our own can be started in confinement."""
    yield sys.base_prefix
    yield sys.prefix


def _toolchains(search_path: str, home: str) -> Iterator[str]:
    for entry in search_path.split(":"):
        if not entry.startswith("/"):
            continue
        directory = Path(os.path.normpath(entry))
        yield str(directory)
        if directory.name == "shims":
            yield str(directory.parent)
        for ending, beside in BESIDE_TOOLCHAIN.items():
            if str(directory).endswith("/" + ending):
                yield from (os.path.normpath(directory / path) for path in beside)
        if directory.name in ("bin", "sbin") and os.path.isdir(directory.parent / "lib"):
            for name in BESIDE_BIN:
                beside_bin = directory.parent / name
                if home and str(beside_bin) == f"{home}/.local/share":
                    yield from (str(beside_bin / program) for program in IN_LOCAL_SHARE)
                else:
                    yield str(beside_bin)


def _venv_base(root: str) -> Iterator[str]:
    """The interpreter that the project's `.venv` was made from.

    The project says where that is, so it is believed only if a Python installation is really there, and then only
    for the directories that make one up.
    """
    try:
        data = read_regular(Path(root) / ".venv" / "pyvenv.cfg", max_bytes=MAX_VENV_BYTES, follows_links=True)
    except OSError:
        return
    for line in data.decode("utf-8", "replace").splitlines()[:50]:
        key, _, value = line.partition("=")
        if key.strip() != "home" or not value.strip().startswith("/"):
            continue
        try:
            prefix = Path(os.path.realpath(value.strip())).parent
            is_python = any(prefix.glob("lib/python3.*/os.py")) and any(prefix.glob("bin/python3*"))
        except (OSError, ValueError):
            continue  # Not a name that a directory can have, or one that cannot be looked into.
        if is_python:
            yield from (str(prefix / name) for name in ("bin", "lib", "include"))
