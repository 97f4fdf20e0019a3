"""How a tool meets the world: files of the working directory, programs that leave nothing behind, and the web.

These are the protocols between the tools and the isolation below them, with the values they exchange. Neither
side imports the other; the worker puts them together. `Facts` is what a call says of itself beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is about to touch, as far as its arguments tell: what permission rules speak about.

    Paths are relative to the working directory or absolute, not yet normalised. `trees` are directories that are read
    with everything below them. `commands` are command lines for a shell, `programs` argument lists (an empty first
    word: one that cannot be named), `hosts` names or addresses without port, `agents` other agents by name or
    address (empty: all). `cwd` is where commands run. `deed` is what is done at the hosts, if it is more than to
    look: permission to look is none for that. `keeps`: it writes what is at no path, such as an artifact. What is not
    named here the call does not touch; a tool that cannot say gives no facts at all.
    """

    reads: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    programs: tuple[tuple[str, ...], ...] = ()
    hosts: tuple[str, ...] = ()
    deed: str = ""
    agents: tuple[str, ...] = ()
    cwd: str = "."
    keeps: bool = False


class FileStat(msgspec.Struct, frozen=True, kw_only=True):
    """What `Files.stat` tells. `size_bytes` is 0 for a directory."""

    kind: Literal["file", "dir", "symlink", "other"]
    size_bytes: int
    mtime_ns: int
    mode: int


class DirEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a directory, by name."""

    name: str
    kind: Literal["file", "dir", "symlink", "other"]


class Files(Protocol):
    """The working directory and nothing else. Paths are relative to it, or absolute and inside it.

    All methods block and are meant for a thread; all raise ToolError with one line for the model: no such file,
    outside the working directory, not a regular file, too large.
    """

    @property
    def root(self) -> str:
        """The working directory, absolute."""
        ...

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """The whole file. Refuses files above `max_bytes`, devices, fifos and sockets."""
        ...

    def write(self, path: str, data: bytes, *, make_parents: bool = True) -> bool:
        """Replaces or creates the file atomically and keeps its mode. True if it is new."""
        ...

    def change(self, path: str, transform: Callable[[bytes], bytes], *, max_bytes: int) -> None:
        """Reads, transforms and replaces the file as one step: no other change of it through `Files` comes between.

        `transform` may run again if something else wrote the file meanwhile; what it raises is passed on.
        """
        ...

    def stat(self, path: str) -> FileStat:
        """Does not follow a final symlink."""
        ...

    def list(self, path: str) -> list[DirEntry]:
        """Sorted by name."""
        ...

    def relative(self, path: str) -> str:
        """The path relative to the root, normalised, `.` for the root itself."""
        ...


class ProgramResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a program. `output` is stdout and stderr as they came, the middle cut out beyond the bound.

    `ended` tells how: by itself (`exit_status`, or minus the signal number), by its wall-clock time, or cancelled.
    `leftovers` counts descendants that outlived it and were killed.
    """

    ended: Literal["exited", "timeout"]
    exit_status: int
    output: str
    truncated: bool
    total_bytes: int
    duration_ms: int
    leftovers: int = 0


class LiveProgram(Protocol):
    """A program that runs across calls. Whoever has it must close it; it dies with the session in any case."""

    @property
    def exit_status(self) -> int | None:
        """How it ended, or minus the signal number; None while it runs."""
        ...

    async def wait_ended(self) -> None:
        """Returns when it has ended, and with it whatever it started."""
        ...

    async def read(self) -> bytes:
        """The next piece of its output; empty at the end. What is not read fills a pipe, and then it waits."""
        ...

    async def read_errors(self) -> bytes:
        """The same of its standard error."""
        ...

    async def write(self, data: bytes) -> None:
        """To its standard input. Raises OSError when it takes no more."""
        ...

    def close_input(self) -> None:
        """The end of its standard input."""
        ...

    async def aclose(self) -> bool:
        """Ends it and all that it started. True if that is proved. A second call changes nothing."""
        ...


class Programs(Protocol):
    """Runs programs confined to the working directory, with the session's environment."""

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
        """Runs to the end, to the timeout (which output does not extend), or to cancellation of the task.

        Whatever happens no process of it is left: descendants that made their own session are found and killed.
        `env` is added to the session's environment. Raises ToolError if the program cannot be started.
        """
        ...

    async def start(
        self,
        argv: Sequence[str] = (),
        *,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        named: str = "",
        has_input: bool = False,
    ) -> LiveProgram:
        """Starts a program that runs across calls, confined as any other; returns once it runs.

        `named` instead of arguments: one that the session was given when it began, with an environment of its own.
        `has_input`: it reads what is written to it; otherwise its standard input is empty. Raises ToolError.
        """
        ...


class WebRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Header names and values are ASCII; `host` and what frames a body are not among them."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    follows: bool = True
    """Whether redirects are followed; if not, they are the answer."""


class WebResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, after redirects. `url` is where it came from at last, `body` is decoded, perhaps cut.

    `headers` are few: those that say what the body is, and where else to look; names in lower case.
    """

    url: str
    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    is_cut: bool = False
    redirects: int = 0


class Web(Protocol):
    """Hosts that the agent may reach, and no others."""

    async def fetch(self, request: WebRequest, *, timeout_s: float) -> WebResponse:
        """Makes a request and follows redirects, all within `timeout_s`, whatever keeps coming.

        Nothing is sent along that the request does not say: no cookies, no credentials, no proxy. Raises ToolError:
        `bad_url`, `host_denied`, `address_denied`, `rate_limited`, `unreachable`, `timeout`, `bad_response`.
        """
        ...
