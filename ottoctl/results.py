"""What the library hands out, and how a start is put together: shared by both clients, pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from ottoctl.environment import given_environment, shared_environment
from ottoctl.exits import status_of_cause
from ottod.errors import UNDECODABLE, OttoError, RemoteProtocolError, StorageError
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.cause import Cause
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.events import SessionState
from ottod.protocol.journal import JournalEntry
from ottod.protocol.requests import (
    MAX_TASK_BYTES,
    ExplainPolicy,
    ForkSession,
    ListSessions,
    QueryDecisions,
    ResolveApproval,
    ResumeSession,
    StartSession,
    UpdateNotes,
    WorkflowStart,
)
from ottod.protocol.results import JournalPage, Result, SessionInfo
from ottod.protocol.specs import AgentSpec
from ottod.protocol.usage import Usage
from ottod.protocol.workflows import WorkflowSpec

Mode = Literal["oneshot", "conversation"]
Scope = Literal["once", "session", "agent"]
CostKey = Literal["agent", "model", "session", "day"]

R = TypeVar("R")

_entry_decoder: msgspec.msgpack.Decoder[JournalEntry] = msgspec.msgpack.Decoder(JournalEntry)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a session ended. `cause` is None for a session that is parked: it has not ended, and does not go on."""

    session: str
    agent: str
    model: str
    state: str
    cause: Cause | None
    result: str
    usage: Usage
    turns: int
    duration_s: float
    info: SessionInfo

    @property
    def data(self) -> Any:
        """The answer of an agent with an `output_schema`, as data; None if there is none, or if it was cut."""
        return answer_of(self.info)

    @property
    def ok(self) -> bool:
        """The task was completed."""
        return self.cause is not None and self.cause.kind == "completed"

    @property
    def exit_status(self) -> int:
        """The status with which `ottoctl run` would exit."""
        return status_of_cause(self.cause)


def answer_of(info: SessionInfo) -> Any:
    """The data that a result is, if its agent's schema made it data; None otherwise."""
    if not info.is_json:
        return None
    try:
        return msgspec.json.decode(info.result.encode())
    except (*UNDECODABLE, UnicodeEncodeError):
        return None


def info_record(info: SessionInfo) -> dict[str, Any]:
    """A session as JSON shows it, with its answer as data where it is data."""
    record: dict[str, Any] = msgspec.to_builtins(info)
    if info.is_json:
        record["data"] = answer_of(info)
    return record


def run_result(info: SessionInfo) -> RunResult:
    """The result of a session that has ended or is parked."""
    begun = info.started_at_ns or info.created_at_ns
    return RunResult(
        session=info.session,
        agent=info.agent,
        model=info.model,
        state=info.state,
        cause=info.cause,
        result=info.result,
        usage=info.usage,
        turns=info.turn,
        duration_s=max(0, info.ended_at_ns - begun) / 1e9 if info.ended_at_ns and begun else 0.0,
        info=info,
    )


def expect(kind: type[R], result: Result) -> R:
    """The result, if the daemon answered with the right kind. Raises RemoteProtocolError."""
    if not isinstance(result, kind):
        raise RemoteProtocolError(f"the daemon answered with {type(result).__name__}, not {kind.__name__}")
    return result


def check_text(what: str, text: str) -> str:
    """Raises OttoError for a text that no message can carry."""
    size_bytes = len(text.encode(errors="surrogatepass"))
    if size_bytes > MAX_TASK_BYTES:
        raise OttoError(
            f"{what} has {size_bytes} bytes; at most {MAX_TASK_BYTES} are possible",
            mend="put the text into a file and name the file",
            code="usage",
        )
    return text.encode(errors="replace").decode()


def _absolute(cwd: str | os.PathLike[str] | None) -> str:
    """The working directory as the daemon needs it. Raises OttoError if the current one is gone."""
    try:
        return os.path.abspath(cwd if cwd is not None else ".")
    except FileNotFoundError as error:
        raise OttoError(
            "the current directory does not exist any more", mend="cd to one that does, or use --cwd", code="bad_cwd"
        ) from error


def list_request(
    *, all: bool, states: Iterable[SessionState], tree: str, limit: int, agent: str, name: str
) -> ListSessions:
    """The question for sessions."""
    return ListSessions(
        all=all,
        states=tuple(states),
        tree=tree,
        limit=limit,
        agents=(agent,) if agent else (),
        names=(name,) if name else (),
    )


def workflow_request(
    workflow: str = "",
    task: str = "",
    *,
    spec: WorkflowSpec | None = None,
    inputs: Mapping[str, bytes | str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    model: str = "",
    env: Mapping[str, str] | None = None,
    title: str = "",
    name: str = "",
    parent: str = "",
    headless: bool = False,
    key: str = "",
) -> StartSession:
    """The start of a workflow, with the same defaults."""
    if bool(workflow) == (spec is not None):
        raise OttoError("give either a workflow's name or a spec", code="usage")
    given = {n: v.encode(errors="replace") if isinstance(v, str) else v for n, v in (inputs or {}).items()}
    return StartSession(
        workflow=WorkflowStart(name=workflow, spec=spec, inputs=given),
        task=check_text("the task", task),
        cwd=_absolute(cwd),
        model=model,
        env=shared_environment(os.environ) if env is None else given_environment(env),
        title=title,
        name=name,
        parent=parent,
        run_mode="headless" if headless else "interactive",
        key=key or os.urandom(16).hex(),
    )


def start_request(
    agent: str = "",
    task: str = "",
    *,
    spec: AgentSpec | None = None,
    cwd: str | os.PathLike[str] | None = None,
    model: str = "",
    mode: Mode = "oneshot",
    env: Mapping[str, str] | None = None,
    title: str = "",
    name: str = "",
    parent: str = "",
    headless: bool = False,
    key: str = "",
) -> StartSession:
    """A start with its defaults: this process's directory and environment, and a key of its own.

    Without an agent and a spec the daemon gives the task to the agent that fits it best. The key makes the request
    safe to repeat, should the daemon vanish before it answers.
    """
    if agent and spec is not None:
        raise OttoError("give either an agent's name or a spec", code="usage")
    if not agent and spec is None and not task.strip():
        raise OttoError("give an agent's name, a spec, or a task that says whom it is for", code="usage")
    return StartSession(
        agent=agent,
        spec=spec,
        task=check_text("the task", task),
        # Not resolve(): a path through a symlink stays the path that the user knows.
        cwd=_absolute(cwd),
        env=shared_environment(os.environ) if env is None else given_environment(env),
        model=model,
        title=title,
        name=name,
        parent=parent,
        mode=mode,
        run_mode="headless" if headless else "interactive",
        key=key or os.urandom(16).hex(),
    )


def resume_request(
    info: SessionInfo, task: str, *, mode: Mode | None = None, fresh_budget: bool = False
) -> ResumeSession:
    """The order to go on with a session. With an ended one, which begins another, a key makes it safe to repeat; a
    live one would be let go on, and told its task, twice."""
    return ResumeSession(
        session=info.session,
        task=check_text("the task", task),
        mode=mode or "",
        key=os.urandom(16).hex() if info.state == "ended" else "",
        fresh_budget=fresh_budget,
    )


def update_notes_request(session: str, *, model: str = "") -> UpdateNotes:
    """The order to learn from a session; its key makes it safe to repeat."""
    return UpdateNotes(session=session, model=model, key=os.urandom(16).hex())


def fork_request(
    session: str,
    task: str,
    *,
    turn: int | None = None,
    checkpoint: str = "",
    mode: Mode | None = None,
    title: str = "",
) -> ForkSession:
    """The order to start a session from another one's past."""
    if turn is not None and checkpoint:
        raise OttoError("give either a turn or a checkpoint", code="usage")
    return ForkSession(
        session=session,
        turn=turn,
        checkpoint=check_text("the checkpoint", checkpoint),
        task=check_text("the task", task),
        mode=mode or "",
        title=title,
        key=os.urandom(16).hex(),
    )


def approve_request(
    approval: str, *, session: str = "", scope: Scope = "once", reason: str = "", expires_s: float | None = None
) -> ResolveApproval:
    """The answer that lets a call go on: once, as long as its session lives, or for all sessions of its agent."""
    return ResolveApproval(
        session=session,
        approval=approval,
        decision="approved",
        scope=scope,
        reason=check_text("the reason", reason),
        expires_s=expires_s,
    )


def deny_request(approval: str, *, session: str = "", reason: str = "", for_session: bool = False) -> ResolveApproval:
    """The answer that refuses a call; the model is told `reason`."""
    return ResolveApproval(
        session=session,
        approval=approval,
        decision="denied",
        scope="session" if for_session else "once",
        reason=check_text("the reason", reason),
    )


def checked_content(artifact: ArtifactInfo, content: bytes) -> bytes:
    """An artifact's content, if it is that. Raises StorageError."""
    import hashlib

    if hashlib.sha256(content).hexdigest() != artifact.digest:
        raise StorageError(f"{artifact.artifact} is damaged: its content does not have its digest")
    return content


def journal_entries(pages: Iterable[JournalPage]) -> list[JournalEntry]:
    """The entries of a journal from its pages, in order. Raises RemoteProtocolError for what cannot be one."""
    entries: list[JournalEntry] = []
    begun = b""
    for page in pages:
        for n, piece in enumerate(page.entries):
            begun += piece
            if page.next_at and n == len(page.entries) - 1:
                break
            try:
                entries.append(_entry_decoder.decode(begun))
            except UNDECODABLE as error:
                raise RemoteProtocolError(f"a journal entry of a kind that is not known here: {error}") from error
            begun = b""
    return entries


def decisions_request(wanted: DecisionFilter | None) -> QueryDecisions:
    """The question for nodes of the decision graph; without anything that says where, of the directory we are in."""
    wanted = wanted or DecisionFilter()
    if not (wanted.project or wanted.tree or wanted.session or wanted.node):
        wanted = msgspec.structs.replace(wanted, project=".")
    if wanted.project:
        wanted = msgspec.structs.replace(wanted, project=os.path.abspath(os.path.expanduser(wanted.project)))
    return QueryDecisions(filter=wanted)


def explain_request(
    agent: str,
    tool: str,
    arguments: Mapping[str, object] | str | None = None,
    *,
    spec: AgentSpec | None = None,
    session: str = "",
    cwd: str | os.PathLike[str] | None = None,
    headless: bool = False,
) -> ExplainPolicy:
    """The question what would become of a call. Arguments are a mapping, or JSON text as a model writes it."""
    if sum((bool(agent), spec is not None, bool(session))) != 1:
        raise OttoError("give an agent's name, a spec or a session", code="usage")
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
    return ExplainPolicy(
        agent=agent,
        spec=spec,
        session=session,
        tool=tool,
        arguments=check_text("the arguments", text),
        cwd=_absolute(cwd),
        run_mode="headless" if headless else "interactive",
    )


def event_record(event: Any) -> dict[str, Any]:
    """A SessionEvent as one flat JSON-able record: its place, then the event with its `type`."""
    from ottod.protocol.events import Unknown

    inner = event.event
    if isinstance(inner, Unknown):
        body: dict[str, Any] = {"type": inner.type, **inner.fields}
    else:
        body = msgspec.to_builtins(inner)
    return {
        "offset": event.offset,
        "session": event.session,
        "seq": event.seq,
        "at_ns": event.at_ns,
        "lane": event.lane,
        "event": body,
    }
