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
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ottod.core.redaction import Redactor
from ottod.errors import RefusedError, ToolError
from ottod.isolation import confined_exec, landlock, processes
from ottod.isolation.launch_config import Confinement, launch_config
from ottod.isolation.launching import LauncherClient
from ottod.isolation.live_program import LivePipes, LiveProgram
from ottod.isolation.openat import RootDirectory
from ottod.isolation.refusals import refusal
from ottod.isolation.running import Ending, KeptProgram, RunningProgram, StartFailure, finished
from ottod.protocol.toolio import ProgramResult

__all__ = ["ConfinedPrograms", "Confinement"]

END_DEADLINE_S = 5.0
"""How long the keeper may take to end everything before the launcher is told to."""
SWEEP_DEADLINE_S = 8.0
"""How long the launcher may take to end what a killed keeper has left."""
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
MAX_ARGUMENT_BYTES = 128 * 1024
"""The kernel's bound on one argument or variable."""
KEEPER_DIED = -9

T = TypeVar("T")


class ConfinedPrograms:
    """`Programs` of one session. `env` is the session's environment, already reduced to its allowlist.

    `redactor` takes secrets out where the middle of an output is cut out.
    Starts the launcher, so it must be made before the process confines itself; blocks for a few milliseconds.
    `has_launcher` False is for a session that runs no programs: every call is then refused.
    Raises: RefusedError if confined files are required and the host cannot give them, ToolError if the root is
    missing or the launcher cannot be started.
    """

    def __init__(
        self,
        *,
        session: str,
        env: Mapping[str, str],
        confinement: Confinement,
        has_launcher: bool = True,
        redactor: Redactor | None = None,
    ) -> None:
        if confinement.files == "required" and landlock.abi() == 0 and not confinement.bwrap:
            raise RefusedError(
                "the session requires confined files, and this host has neither Landlock nor bubblewrap",
                mend="install bubblewrap, add landlock to the boot parameter lsm=, or set isolation.files: preferred",
            )
        self._session = session
        self._redactor = redactor
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
                ending = await finished(self._end(program, call, is_over=is_over))
            status = _status(program, argv[0])
        finally:
            program.finish()
        output = program.output
        return ProgramResult(
            ended="exited" if is_over else "timeout",
            exit_status=status,
            output=await asyncio.to_thread(output.text) if output.is_truncated else output.text(),
            truncated=program.output.is_truncated,
            total_bytes=program.output.total_bytes,
            duration_ms=int((time.monotonic() - started_at) * 1000),
            leftovers=(ending.killed if is_over else 0) + len(ending.remaining_pids),
        )

    async def start(
        self,
        argv: Sequence[str] = (),
        *,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        named: str = "",
        has_input: bool = False,
    ) -> LiveProgram:
        """See `Programs.start`. Raises ToolError."""
        call = f"{self._session}.{secrets.token_hex(8)}"
        name = argv[0] if argv else named
        stdin, output, errors, *theirs = _live_streams(name, has_input=has_input)
        pipes = LivePipes(stdin=stdin, output=output, errors=errors)
        try:
            control = self._order(call, list(argv), cwd, env or {}, theirs, named=named)
        except ToolError:
            pipes.close_all()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        program = LiveProgram(
            control,
            pipes,
            refusal=lambda failure: _start_error(failure, name, ""),
            sweep=lambda: self._end(program, call, is_over=True),
        )
        try:
            await program.wait_started()
        except BaseException:
            await finished(program.aclose())
            raise
        return program

    async def _end(self, program: KeptProgram, call: str, *, is_over: bool) -> Ending:
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
        streams = _streams(argv[0] if argv else "", stdin)
        output_fd, theirs = streams[0], streams[1:]
        try:
            control = self._order(call, argv, cwd, env, theirs)
        except ToolError:
            os.close(output_fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return RunningProgram(
            control,
            output_fd,
            max_output_bytes=max_output_bytes,
            on_output=on_output,
            redactor=self._redactor,
        )

    def _order(
        self,
        call: str,
        argv: list[str],
        cwd: str,
        env: Mapping[str, str],
        streams: Sequence[int],
        *,
        named: str = "",
    ) -> socket.socket:
        """Orders one program and gives our end of its control socket. `streams`: stdin, output and, if apart, errors.

        Raises ToolError.
        """
        environment = {**self._env, **env, processes.SESSION_MARKER: self._session, processes.CALL_MARKER: call}
        _check_texts(argv or [named], environment)
        if self._launcher is None:
            raise ToolError("this session runs no programs", code="not_started")
        opened: list[int] = []
        try:
            cwd_fd = self._open_directory(cwd)
            opened.append(cwd_fd)
            place = self._root.location(cwd_fd)
            environment["PWD"] = place
            order = {"argv": argv, "env": environment, "cwd": place, "named": named}
            order_fd = confined_exec.in_memory("otto-order", marshal.dumps(order))
            opened.append(order_fd)
            control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with far_end:
                try:
                    self._launcher.run(far_end.fileno(), order_fd, cwd_fd, streams)
                except OSError:
                    control.close()
                    raise
        except OSError as error:
            name = argv[0] if argv else named
            raise ToolError(f"cannot start {name}: {error.strerror or error}", code="not_started") from error
        finally:
            for fd in opened:
                os.close(fd)
        return control

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
    if isinstance(failure, StartFailure) and failure.stage == "launcher" and program.is_started:
        return KEEPER_DIED  # The program killed its own keeper, or the system did, for memory.
    raise _start_error(failure, name, program.output.text()[-500:].strip())


def _start_error(failure: BaseException, name: str, said: str) -> ToolError:
    """Why a program was not started, in words; `said` is what was printed meanwhile."""
    if not isinstance(failure, StartFailure):
        raise failure
    if failure.stage == "launcher":
        return ToolError(f"the launcher failed: {said}", code="not_started")
    if failure.stage == "network":
        return ToolError(
            "the session requires a network of its own, which bubblewrap cannot give here; `ottoctl doctor` says why",
            code="isolation_unavailable",
        )
    if failure.stage == "syscalls":
        return ToolError(
            "the session requires a system call filter; there is none for this machine", code="isolation_unavailable"
        )
    if failure.stage == "sandbox":
        return ToolError(f"the sandbox could not be made: {said}", code="not_started")
    if failure.stage == "exec" and failure.errno in (errno.ENOENT, errno.ENOTDIR):
        return ToolError(f"no such program: {name}; it is not on the session's PATH", code="no_program")
    if failure.stage == "exec" and failure.errno == errno.EACCES:
        return ToolError(f"{name} is not executable, or lies where this session may not read", code="no_program")
    if failure.stage == "exec" and failure.errno == errno.E2BIG:
        return ToolError("the arguments are too long; put them into a file", code="too_large")
    return ToolError(f"cannot start {name}: {failure}", code="not_started")


def _streams(name: str, stdin: bytes) -> tuple[int, int, int]:
    """Our end of the output; the program's ends of standard input and output. Raises ToolError."""
    opened: list[int] = []
    try:
        opened.append(confined_exec.in_memory("otto-stdin", stdin) if stdin else os.open(os.devnull, os.O_RDONLY))
        output, output_end = os.pipe()
    except OSError as error:
        raise _no_streams(name, opened, error) from error
    return output, opened[0], output_end


def _live_streams(name: str, *, has_input: bool) -> tuple[int, int, int, int, int, int]:
    """Our ends of standard input (-1 for none), output and errors; then the program's. Raises ToolError."""
    opened: list[int] = []
    try:
        for _ in range(3 if has_input else 2):
            opened += os.pipe()
        if not has_input:
            return -1, opened[0], opened[2], os.open(os.devnull, os.O_RDONLY), opened[1], opened[3]
    except OSError as error:
        raise _no_streams(name, opened, error) from error
    output, output_end, errors, errors_end, stdin_end, stdin = opened
    return stdin, output, errors, stdin_end, output_end, errors_end


def _no_streams(name: str, opened: list[int], error: OSError) -> ToolError:
    for fd in opened:
        os.close(fd)
    return ToolError(f"cannot start {name}: {error.strerror}", code="not_started")


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
