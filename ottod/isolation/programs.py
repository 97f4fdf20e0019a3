"""Programs for tools: confined, bounded in time and output, and gone when the call is over.

Each call has a keeper process (see `keeper`) that has every descendant of the program below it, whatever the program
does to hide them. Parallel calls have keepers of their own, so ending one never touches another. Keepers are forked
by the session's launcher (see `launcher`), which outlives them all.

The environment is what the constructor was given, plus TMPDIR and the markers; never the daemon's own.
"""

from __future__ import annotations

import asyncio
import errno
import marshal
import os
import resource
import secrets
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from ottod.errors import RefusedError, ToolError
from ottod.isolation import bubblewrap, confined_exec, landlock, processes
from ottod.isolation.launching import LauncherClient
from ottod.isolation.openat import RootDirectory
from ottod.isolation.program_paths import ProgramPaths, program_paths
from ottod.isolation.refusals import refusal
from ottod.isolation.running import Ending, RunningProgram, StartFailure
from ottod.protocol.toolio import ProgramResult

GRACE_MS = 100
"""How long what a program left running may take to end by itself."""
END_DEADLINE_S = 5.0
"""How long the keeper may take to end everything before the launcher is told to."""
SWEEP_DEADLINE_S = 8.0
"""How long the launcher may take to end what a killed keeper has left."""
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
MAX_ARGUMENT_BYTES = 128 * 1024
"""The kernel's bound on one argument or variable."""
KEEPER_DIED = -9

T = TypeVar("T")
Layer = Literal["required", "preferred", "off"]


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


class ConfinedPrograms:
    """`Programs` of one session. `env` is the session's environment, already reduced to its allowlist.

    Starts the launcher, so it must be made before the process confines itself; blocks for a few milliseconds.
    `has_launcher` False is for a session that runs no programs: every call is then refused.
    Raises: RefusedError if confined files are required and the host cannot give them, ToolError if the root is
    missing or the launcher cannot be started.
    """

    def __init__(
        self, *, session: str, env: Mapping[str, str], confinement: Confinement, has_launcher: bool = True
    ) -> None:
        if confinement.files == "required" and landlock.abi() == 0 and not confinement.bwrap:
            raise RefusedError(
                "the session requires confined files, and this host has neither Landlock nor bubblewrap",
                mend="install bubblewrap, add landlock to the boot parameter lsm=, or set isolation.files: preferred",
            )
        self._session = session
        try:
            self._root = RootDirectory(confinement.root)
        except OSError as error:
            raise refusal(confinement.root, error, root=confinement.root) from error
        Path(confinement.tmp_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._env = {"PATH": DEFAULT_PATH, **env}
        self._launcher: LauncherClient | None = None
        self._watch: tuple[asyncio.AbstractEventLoop, int] | None = None
        if not has_launcher:
            return
        markers = {processes.SESSION_MARKER: session}
        try:
            self._launcher = LauncherClient(launch_config(confinement, self._root.path, self._env, markers), markers)
        except OSError as error:
            self._root.close()
            raise ToolError(f"cannot start the launcher: {error.strerror}", code="not_started") from error

    @property
    def launcher_pid(self) -> int:
        """The session's launcher, which lives until `close`; 0 if there is none."""
        return self._launcher.pid if self._launcher is not None else 0

    def watch_launcher(self, on_lost: Callable[[], None]) -> None:
        """Calls `on_lost`, once, on the running loop if the launcher dies: no program can be started after that."""
        if self._launcher is None:
            return
        loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(self._launcher.pid)

        def lost() -> None:
            self.unwatch_launcher()
            on_lost()

        loop.add_reader(pidfd, lost)
        self._watch = loop, pidfd

    def unwatch_launcher(self) -> None:
        """Its end is of no interest any more. Twice is harmless."""
        if self._watch is not None:
            (loop, pidfd), self._watch = self._watch, None
            loop.remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Ends the launcher and what it still runs, and closes the root; no program can be started after that."""
        if self._launcher is not None:
            self._launcher.close()
        self._root.close()

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        max_output_bytes: int,
        cwd: str = ".",
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> ProgramResult:
        """See `Programs.run`. `cwd` is relative to the working directory, or absolute and inside it."""
        call = f"{self._session}.{secrets.token_hex(8)}"
        started_at = time.monotonic()
        program = self._start(call, list(argv), cwd, stdin, env or {}, max_output_bytes, on_output)
        ending = Ending()
        try:
            try:
                await asyncio.wait([program.exited], timeout=timeout_s)
            finally:
                # Counted from the start, so that neither output nor what the end takes can move it.
                is_over = program.exited.done()
                ending = await _uninterrupted(self._end(program, call, is_over=is_over))
            status = _status(program, argv[0])
        finally:
            program.finish()
        return ProgramResult(
            ended="exited" if is_over else "timeout",
            exit_status=status,
            output=program.output.text(),
            truncated=program.output.is_truncated,
            total_bytes=program.output.total_bytes,
            duration_ms=int((time.monotonic() - started_at) * 1000),
            leftovers=(ending.killed if is_over else 0) + len(ending.remaining_pids),
        )

    async def _end(self, program: RunningProgram, call: str, *, is_over: bool) -> Ending:
        """Returns when nothing of the call is left. On a normal end the keeper has begun by itself."""
        if not is_over:
            program.order_end()
        await asyncio.wait([program.ended], timeout=END_DEADLINE_S)
        ending = program.ended.result() if program.ended.done() else Ending()
        if ending.is_proved:
            return ending
        if self._launcher is None:
            return ending
        return await asyncio.to_thread(self._launcher.sweep, call, timeout_s=SWEEP_DEADLINE_S)

    def _start(
        self,
        call: str,
        argv: list[str],
        cwd: str,
        stdin: bytes,
        env: Mapping[str, str],
        max_output_bytes: int,
        on_output: Callable[[str], None] | None,
    ) -> RunningProgram:
        environment = {**self._env, **env, processes.SESSION_MARKER: self._session, processes.CALL_MARKER: call}
        _check_texts(argv, environment)
        if self._launcher is None:
            raise ToolError("this session runs no programs", code="not_started")
        opened: list[int] = []
        try:
            cwd_fd = self._open_directory(cwd)
            opened.append(cwd_fd)
            place = self._root.location(cwd_fd)
            environment["PWD"] = place
            order = {"argv": argv, "env": environment, "cwd": place}
            order_fd = confined_exec.in_memory("otto-order", marshal.dumps(order))
            opened.append(order_fd)
            stdin_fd = confined_exec.in_memory("otto-stdin", stdin) if stdin else os.open(os.devnull, os.O_RDONLY)
            opened.append(stdin_fd)
            output_fd, write_end = os.pipe()
            opened.append(write_end)
            control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._launcher.run(far_end.fileno(), order_fd, stdin_fd, write_end, cwd_fd)
            except OSError:
                os.close(output_fd)
                control.close()
                raise
            finally:
                far_end.close()
        except OSError as error:
            raise ToolError(f"cannot start {argv[0]}: {error.strerror or error}", code="not_started") from error
        finally:
            for fd in opened:
                os.close(fd)
        return RunningProgram(control, output_fd, max_output_bytes=max_output_bytes, on_output=on_output)

    def _open_directory(self, cwd: str) -> int:
        try:
            relative = self._root.inner(os.path.normpath(cwd)) if cwd.startswith("/") else os.path.normpath(cwd)
            return self._root.open(relative, os.O_PATH | os.O_DIRECTORY)
        except (OSError, ValueError) as error:
            known = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
            raise refusal(cwd, known, root=self._root.path) from error


def launch_config(
    confinement: Confinement, root: str, env: Mapping[str, str], markers: Mapping[str, str]
) -> dict[str, Any]:
    """What the launcher is told once: how the programs of this session are held, with a sandbox and without.

    files, network, syscalls    the layers            trial, sandbox     command lines of bubblewrap; [] without
    enclosed, plain             for programs in the sandbox and without it: env, read, write, devices, rlimits
    root, granted               what is protected     python, bootstrap  the sandbox's first process
    """
    paths = program_paths(
        root=root,
        tmp_dir=confinement.tmp_dir,
        env=env,
        read_paths=(*confinement.read_paths, str(Path(confined_exec.__file__).parent)),
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


def _status(program: RunningProgram, name: str) -> int:
    """The program's exit status; after a timeout, that of the kill. Raises ToolError if it never ran."""
    if not program.exited.done():
        return KEEPER_DIED
    failure = program.exited.exception()
    if failure is None:
        return program.exited.result()
    if not isinstance(failure, StartFailure):
        raise failure
    if failure.stage == "launcher" and program.is_started:
        return KEEPER_DIED  # The program killed its own keeper, or the system did, for memory.
    if failure.stage == "launcher":
        raise ToolError(f"the launcher failed: {program.output.text()[-500:].strip()}", code="not_started")
    if failure.stage == "network":
        raise ToolError(
            "the session requires a network of its own, which bubblewrap cannot give here; `ottoctl doctor` says why",
            code="isolation_unavailable",
        )
    if failure.stage == "syscalls":
        raise ToolError(
            "the session requires a system call filter; there is none for this machine", code="isolation_unavailable"
        )
    if failure.stage == "sandbox":
        raise ToolError(f"the sandbox could not be made: {program.output.text()[-500:].strip()}", code="not_started")
    if failure.stage == "exec" and failure.errno in (errno.ENOENT, errno.ENOTDIR):
        raise ToolError(f"no such program: {name}; it is not on the session's PATH", code="no_program")
    if failure.stage == "exec" and failure.errno == errno.EACCES:
        raise ToolError(f"{name} is not executable, or lies where this session may not read", code="no_program")
    if failure.stage == "exec" and failure.errno == errno.E2BIG:
        raise ToolError("the arguments are too long; put them into a file", code="too_large")
    raise ToolError(f"cannot start {name}: {failure}", code="not_started")


def _check_texts(argv: list[str], environment: Mapping[str, str]) -> None:
    if not argv or not argv[0]:
        raise ToolError("no program was named", code="no_program")
    texts = [*argv, *environment, *environment.values()]
    if any("\0" in text for text in texts) or any("=" in name for name in environment):
        raise ToolError("arguments and variables cannot contain NUL bytes", code="bad_argument")
    try:
        longest = max(len(os.fsencode(text)) for text in texts)
    except UnicodeEncodeError as error:
        raise ToolError("the arguments are not valid text", code="bad_argument") from error
    if longest >= MAX_ARGUMENT_BYTES:
        raise ToolError(f"an argument exceeds {MAX_ARGUMENT_BYTES} bytes; put it into a file", code="too_large")


async def _uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Awaits to the end, then lets a cancellation that came meanwhile take effect."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
