"""Programs for tools: confined, bounded in time and output, and gone when the call is over.

Each call has a keeper process (see `confined_exec`) that has every descendant of the program below it, whatever the
program does to hide them. Parallel calls have keepers of their own, so ending one never touches another. Should a
program manage to kill its keeper, its processes are found by the call's marker in their environment instead.

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
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from ottod.errors import RefusedError, ToolError
from ottod.isolation import landlock, processes
from ottod.isolation.openat import RootDirectory
from ottod.isolation.program_paths import program_paths
from ottod.isolation.refusals import refusal
from ottod.isolation.running import Ending, RunningProgram, StartFailure
from ottod.protocol.toolio import ProgramResult

LAUNCHER = str(Path(__file__).with_name("confined_exec.py"))
GRACE_MS = 100
"""How long what a program left running may take to end by itself."""
END_DEADLINE_S = 5.0
"""How long the keeper may take to end everything before it is ended itself."""
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
MAX_ARGUMENT_BYTES = 128 * 1024
"""The kernel's bound on one argument or variable."""
KEEPER_DIED = -9

T = TypeVar("T")


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """Where programs work and what holds them. Paths are absolute; `rlimits` by name without RLIMIT_, e.g. FSIZE.

    `tmp_dir` is the session's own and writable; `denied_paths` (Otto's directories) are never visible.
    """

    root: str
    tmp_dir: str
    read_paths: tuple[str, ...] = ()
    write_paths: tuple[str, ...] = ()
    denied_paths: tuple[str, ...] = ()
    landlock: Literal["required", "preferred", "off"] = "preferred"
    rlimits: dict[str, int] = {}


class ConfinedPrograms:
    """`Programs` of one session. `env` is the session's environment, already reduced to its allowlist.

    Raises: RefusedError if Landlock is required and the kernel has none, ToolError if the root is missing.
    """

    def __init__(self, *, session: str, env: Mapping[str, str], confinement: Confinement) -> None:
        if confinement.landlock == "required" and landlock.abi() == 0:
            raise RefusedError(
                "the session requires confined files, and this kernel has no Landlock",
                mend="boot a kernel from 5.13 on with landlock among its lsm=, or set isolation.files: preferred",
            )
        self._session = session
        self._confinement = confinement
        try:
            self._root = RootDirectory(confinement.root)
        except OSError as error:
            raise refusal(confinement.root, error, root=confinement.root) from error
        Path(confinement.tmp_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._env = {
            "PATH": DEFAULT_PATH,
            "XDG_CACHE_HOME": f"{confinement.tmp_dir}/cache",
            **env,
            **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), confinement.tmp_dir),
        }
        paths = program_paths(
            root=self._root.path,
            tmp_dir=confinement.tmp_dir,
            env=self._env,
            read_paths=confinement.read_paths,
            write_paths=confinement.write_paths,
            denied_paths=confinement.denied_paths,
        )
        rlimits = {"CORE": 0, **confinement.rlimits}
        self._launch: dict[str, Any] = {
            "read": paths.read,
            "write": paths.write,
            "devices": paths.devices,
            "landlock": confinement.landlock,
            "rlimits": [(getattr(resource, f"RLIMIT_{name}"), value) for name, value in rlimits.items()],
            "grace_ms": GRACE_MS,
        }

    def close(self) -> None:
        """Closes the root; no program can be started after that."""
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
        remaining = await asyncio.to_thread(processes.kill_call, call, deadline_s=END_DEADLINE_S)
        return Ending(killed=max(1, ending.killed), remaining_pids=tuple(each.pid for each in remaining))

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
        markers = {processes.SESSION_MARKER: self._session, processes.CALL_MARKER: call}
        environment = {**self._env, **env, **markers}
        _check_texts(argv, environment)
        opened: list[int] = []
        try:
            cwd_fd = self._open_directory(cwd)
            opened.append(cwd_fd)
            environment["PWD"] = self._root.location(cwd_fd)
            config = {**self._launch, "argv": argv, "env": environment, "cwd_fd": cwd_fd}
            config_fd = _in_memory("otto-launch", marshal.dumps(config))
            opened.append(config_fd)
            stdin_fd = _in_memory("otto-stdin", stdin) if stdin else os.open(os.devnull, os.O_RDONLY)
            opened.append(stdin_fd)
            output_fd, write_end = os.pipe()
            opened.append(write_end)
            control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", LAUNCHER, str(far_end.fileno()), str(config_fd)],
                    stdin=stdin_fd,
                    stdout=write_end,
                    stderr=write_end,
                    env=markers,
                    pass_fds=(far_end.fileno(), config_fd, cwd_fd),
                    start_new_session=True,
                )
            except OSError:
                os.close(output_fd)
                control.close()
                raise
            finally:
                far_end.close()
        except OSError as error:
            raise ToolError(f"cannot start {argv[0]}: {error.strerror}", code="not_started") from error
        finally:
            for fd in opened:
                os.close(fd)
        return RunningProgram(keeper, control, output_fd, max_output_bytes=max_output_bytes, on_output=on_output)

    def _open_directory(self, cwd: str) -> int:
        try:
            relative = self._root.inner(os.path.normpath(cwd)) if cwd.startswith("/") else os.path.normpath(cwd)
            return self._root.open(relative, os.O_PATH | os.O_DIRECTORY)
        except (OSError, ValueError) as error:
            known = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
            raise refusal(cwd, known, root=self._root.path) from error


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


def _in_memory(name: str, data: bytes) -> int:
    """An anonymous file with this content, read from its beginning: a pipe could block the writer."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


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
