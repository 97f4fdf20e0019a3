"""The contract of a tool.

A tool is a value: a frozen `Tool` with a JSON schema (from its arguments struct), permissions and an async
function. It reaches the world only through its `ToolContext`: files through `Files`, which cannot leave the
working directory, and programs through `Programs`, which leaves no process behind. Both are injected by the
worker, so that tools know nothing of the layers below them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from ottod.protocol.model import ToolSchema

Permission = Literal["read", "write", "exec", "net"]


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


class ToolContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a running tool may use. `idempotency_key` is the same when the call is repeated after a crash."""

    files: Files
    programs: Programs
    call: str
    idempotency_key: str
    timeout_s: float
    max_output_bytes: int
    progress: Callable[[str], None]
    """One line on what is going on."""
    stream: Callable[[str], None]
    """Output as it comes, for the eyes of a watcher; the result is what `run` returns."""


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool's result. `text` goes to the model; `is_error` marks a result that is a failure."""

    text: str
    is_error: bool = False
    truncated: bool = False
    exit_status: int | None = None
    data: dict[str, Any] = {}


Args = TypeVar("Args", bound=msgspec.Struct)


class Tool(msgspec.Struct, Generic[Args], frozen=True, kw_only=True):
    """A tool. `arguments` is a frozen struct with documented fields that forbids unknown ones.

    `idempotent`: running it twice with the same arguments leaves the same state as once.
    `timeout_s` is the default; the agent's limits may lower it. `describe` gives a one-line summary of a call.
    """

    name: str
    description: str
    arguments: type[Args]
    permissions: frozenset[Permission]
    idempotent: bool
    run: Callable[[Args, ToolContext], Awaitable[ToolOutput]]
    timeout_s: float = 120.0

    def schema(self) -> ToolSchema:
        """The tool as a model sees it."""
        return ToolSchema(name=self.name, description=self.description, parameters=inline_schema(self.arguments))


def inline_schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """A JSON schema with `type: object` on top and no references, as tool APIs want it."""
    (top,), components = msgspec.json.schema_components((struct,), ref_template="{name}")

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(components[node["$ref"]])
            return {k: resolve(v) for k, v in node.items() if k != "title" or not isinstance(v, str)}
        return [resolve(v) for v in node] if isinstance(node, list) else node

    schema = resolve(top)
    assert isinstance(schema, dict)
    return schema
