"""The contract of a tool.

A tool is a value: a frozen `Tool` with a JSON schema (from its arguments struct), permissions and an async
function. It reaches the world only through its `ToolContext`: files through `Files`, which cannot leave the
working directory, programs through `Programs`, which leaves no process behind, other sessions through `Sessions`, and
what they leave for each other through `Artifacts` and `Decisions`. All are injected by the worker, so that tools know
nothing of the layers below them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar

import msgspec

from ottod.core.redaction import Redactor, shapes_only
from ottod.errors import ToolError
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.decisions import DecisionFilter, FoundDecisions, NewEdge, NewNode, NodeChange
from ottod.protocol.model import ToolSchema
from ottod.protocol.toolio import DirEntry, Facts, Files, FileStat, LiveProgram, ProgramResult, Programs, Web
from ottod.protocol.worker_requests import AgentAnswer, AgentCard, AgentEnd, Delivery, KnownResult

__all__ = [
    "AgentAnswer",
    "AgentCard",
    "AgentEnd",
    "Args",
    "ArtifactInfo",
    "Artifacts",
    "ChildEnd",
    "Decisions",
    "Delivery",
    "DirEntry",
    "Facts",
    "FileStat",
    "Files",
    "FoundDecisions",
    "LiveProgram",
    "OpenArguments",
    "Permission",
    "Processes",
    "ProgramResult",
    "Programs",
    "Sessions",
    "Team",
    "Tool",
    "ToolContext",
    "ToolOutput",
    "inline_schema",
    "team_of",
]

P = ParamSpec("P")
T = TypeVar("T")

Permission = Literal["read", "write", "exec", "net"]


class ChildEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a child session ended. `cause` is one word or line for the model, `result` its last answer.

    `whole`: the artifact that has all of that, if it was too long and somebody wants it.
    """

    cause: str
    is_completed: bool
    result: str
    whole: str = ""


class Sessions(Protocol):
    """The sessions below the one that a tool runs in."""

    async def spawn(
        self,
        *,
        agent: str,
        task: str,
        title: str,
        model: str,
        key: str,
        is_reported: bool,
        name: str = "",
        mode: Literal["oneshot", "conversation"] = "oneshot",
        hint: str = "",
    ) -> tuple[str, str]:
        """Starts a child session; gives its id and name. The same key gives the same child, whenever it is asked.

        Without an agent the one is started that fits the task, or the `hint`, best.
        `is_reported`: nobody waits for it, so its end becomes a message. Raises ToolError.
        """
        ...

    async def recall(self, *, agent: str, task: str, model: str, key: str) -> KnownResult | None:
        """What is known of another session of that agent which was asked the same; None if it must be started."""
        ...

    async def hand_over(self, *, agent: str, reason: str, note: str, call: str, key: str) -> tuple[str, str]:
        """Starts a child that has the conversation up to this call; gives its id and name. Raises ToolError.

        The same key gives the same child.
        """
        ...

    async def wait_ended(self, child: str) -> ChildEnd:
        """Waits for the end of a child. Raises ToolError."""
        ...

    async def stop(self, child: str, reason: str) -> None:
        """Has a child and everything below it stopped."""
        ...


class Team(Protocol):
    """The sessions of the tree that a tool's session belongs to."""

    async def send(self, *, text: str, key: str, to: str = "", role: str = "") -> tuple[Delivery, ...]:
        """A message to one of them by name, id or `parent`, to all of a role, or to all (`*`).

        Done once it is in their journals; the same key is heard once. Raises ToolError.
        """
        ...

    async def ask(self, *, to: str, question: str, key: str) -> AgentAnswer:
        """The answer of one of them: the end of the turn that the question begins there. Raises ToolError.

        The same key is one question. Cancelled, it is withdrawn.
        """
        ...

    async def wait_ended(
        self, names: Sequence[str], *, mode: Literal["all", "any"], key: str
    ) -> tuple[AgentEnd, ...]:
        """Those that have ended, once all have, or any of them. Raises ToolError."""
        ...

    async def end(self, name: str) -> AgentCard:
        """Stops a child of this session; returns when it has ended. Raises ToolError."""
        ...

    async def list(self) -> tuple[AgentCard, ...]:
        """Who is there. Raises ToolError."""
        ...


class Artifacts(Protocol):
    """The artifacts of the tree of sessions that a tool runs in."""

    async def write(
        self,
        data: bytes,
        *,
        name: str,
        kind: str = "file",
        sources: Sequence[str] = (),
        key: str = "",
        is_output: bool = False,
    ) -> ArtifactInfo:
        """Keeps the next version of a name, durably; the same key gives the same artifact. Raises ToolError.

        `is_output`: it was too long to be shown, and nobody asked for it to be kept. There is less room for that.
        """
        ...

    async def read(self, artifact: str, *, version: int = 0) -> tuple[ArtifactInfo, bytes]:
        """An artifact by id or name, version 0 for the newest, and its content. Raises ToolError."""
        ...

    async def list(self, *, name: str = "", kind: str = "") -> tuple[ArtifactInfo, ...]:
        """Newest first: the newest version of each name, or all versions of one name. Raises ToolError."""
        ...


class Decisions(Protocol):
    """The decision graph of the project that a tool runs in."""

    async def log(
        self, nodes: Sequence[NewNode], edges: Sequence[NewEdge], changes: Sequence[NodeChange], *, key: str
    ) -> FoundDecisions:
        """Adds and changes, durably, all or nothing; the same key gives the same nodes. Raises ToolError."""
        ...

    async def find(self, wanted: DecisionFilter) -> FoundDecisions:
        """What fits, newest first. Raises ToolError."""
        ...


class InThread(Protocol):
    """Runs what blocks in a thread, as `asyncio.to_thread` does."""

    async def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


IDEMPOTENCY_VARIABLE = "OTTO_IDEMPOTENCY_KEY"
"""What names a call to the programs that it starts: the same when it is repeated after a crash, else never again."""
IDEMPOTENCY_HEADER = "Idempotency-Key"
"""The same for servers."""


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    """A background process as a tool sees it. `lost`: an earlier incarnation's, which died with that."""

    name: str
    command: str
    state: Literal["running", "exited", "stopped", "lost"]
    exit_status: int | None = None
    output_bytes: int = 0


class ProcessLog(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a process's output. The next piece begins at `cursor`; `missed_bytes` before it are gone."""

    text: str
    cursor: int
    missed_bytes: int = 0


class Processes(Protocol):
    """The session's background processes: they run across calls, and die with the session."""

    async def start(self, *, name: str, command: str, cwd: str) -> ProcessView:
        """Starts a command line. Raises ToolError: the name is taken, there are too many, it cannot be started."""
        ...

    async def stop(self, name: str) -> ProcessView:
        """Ends one with all it started. Raises ToolError if there is none of that name."""
        ...

    def logs(self, name: str, *, cursor: int | None, max_bytes: int) -> ProcessLog:
        """Its output from a cursor on, without one the newest. Raises ToolError."""
        ...

    async def wait_news(self, name: str, *, cursor: int | None, timeout_s: float) -> None:
        """Returns when the process has ended, when there is output behind the cursor, or when the time is over."""
        ...

    def list(self) -> tuple[ProcessView, ...]:
        """All of them, the oldest first."""
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
    in_thread: InThread = asyncio.to_thread
    """For whatever waits for files. A call that is given up leaves its threads behind."""
    sessions: Sessions | None = None
    """None where a tool runs outside of any session."""
    team: Team | None = None
    """None as above."""
    artifacts: Artifacts | None = None
    """None as above."""
    decisions: Decisions | None = None
    """None as above."""
    processes: Processes | None = None
    """None as above."""
    web: Web | None = None
    """None where nothing can be reached."""
    checkpoint: Callable[[str], Awaitable[int]] | None = None
    """Notes a checkpoint of that name in the conversation, durably, and gives the turn. None outside of a session."""
    session: str = ""
    agent: str = ""
    git_author: str = ""
    """`Name <address>`, if the agent says whose its commits are."""
    redactor: Redactor = shapes_only()
    """Takes secrets out of what is going to be cut; of the result they are taken out in any case."""

    @property
    def key_env(self) -> dict[str, str]:
        """The call's idempotency key, for the environment of a program."""
        return {IDEMPOTENCY_VARIABLE: self.idempotency_key}


def team_of(context: ToolContext) -> Team:
    """Raises ToolError where a tool runs outside of any session."""
    if context.team is None:
        raise ToolError("there are no other agents here", code="no_sessions")
    return context.team


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool's result. `text` goes to the model; `is_error` marks a result that is a failure.

    `untrusted` is content that comes from outside, `untrusted_source` says from where: the worker puts it below
    `text`, between marks that the content cannot know. Nothing from outside belongs into `text` or the source.
    """

    text: str
    untrusted: str = ""
    untrusted_source: str = ""
    is_error: bool = False
    truncated: bool = False
    exit_status: int | None = None
    data: dict[str, Any] = {}
    ends_turn: bool = False
    """The model is not asked again: the result is the turn's, and a failure the turn's failure."""


class OpenArguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a tool that brings a schema of its own: any object; whoever runs the tool checks it."""

    values: dict[str, Any]


Args = TypeVar("Args", bound=msgspec.Struct)


class Tool(msgspec.Struct, Generic[Args], frozen=True, kw_only=True):
    """A tool. `arguments` is a frozen struct with documented fields that forbids unknown ones.

    `parameters` is a schema that came with the tool from outside, an object's and without references; `arguments` is
    then `OpenArguments`.

    `idempotent`: running it twice with the same arguments leaves the same state as once. `repeats` says it of a call,
    by its arguments, where not all calls of the tool are alike.

    `timeout_s` is the default; the agent's limits may lower it, unless the tool only `waits`: for others, who have
    limits of their own. Of one session at most `max_concurrent` calls run at a time; more of them wait their turn.
    `touches` says what a call is about to touch, for permission rules; a tool without it is
    judged by its name and permissions, and any rule that asks or denies by path, command or host meets it.
    """

    name: str
    description: str
    arguments: type[Args]
    permissions: frozenset[Permission]
    idempotent: bool
    run: Callable[[Args, ToolContext], Awaitable[ToolOutput]]
    timeout_s: float = 120.0
    waits: bool = False
    max_concurrent: int | None = None
    touches: Callable[[Args], Facts | None] | None = None
    repeats: Callable[[Args], bool] | None = None
    parameters: dict[str, Any] | None = None

    def schema(self) -> ToolSchema:
        """The tool as a model sees it."""
        parameters = inline_schema(self.arguments) if self.parameters is None else self.parameters
        return ToolSchema(name=self.name, description=self.description, parameters=parameters)


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
