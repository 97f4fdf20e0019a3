"""The synchronous twin: the same names, blocking, iterators for streams.

It runs on the calling thread, on a blocking poll of the socket: no thread, no event loop. Use one per thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Mapping
from types import TracebackType

from ottoctl.blocking import BlockingConnection
from ottoctl.daemon import can_start, start_daemon
from ottoctl.dialogue import OutcomeUnknownError
from ottoctl.endpoint import resolve_endpoint
from ottoctl.feed import DEFAULT_CREDIT_BYTES, Batch, Feed, SessionEvent, ends_session, gap_event
from ottoctl.outage import OnOutage, unheard
from ottoctl.policy import DEFAULT_RECONNECT_S, DEFAULT_TIMEOUT_S, INTERRUPT_ANSWER_S, STOP_ANSWER_S
from ottoctl.replacement import UPGRADE_LOOK_S, UPGRADE_S, not_upgraded, upgraded
from ottoctl.results import (
    CostKey,
    Mode,
    RunResult,
    Scope,
    approve_request,
    check_text,
    checked_content,
    decisions_request,
    deny_request,
    expect,
    explain_request,
    fork_request,
    journal_entries,
    list_request,
    resume_request,
    run_result,
    start_request,
    update_notes_request,
    workflow_request,
)
from ottod.errors import UnreachableError
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.control import Welcome
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.definitions import DefinitionKind, KeptDefinition
from ottod.protocol.events import Gap, SessionState
from ottod.protocol.journal import JournalEntry
from ottod.protocol.policy import StandingGrant
from ottod.protocol.requests import (
    CheckpointSession,
    ForgetDecisions,
    ForgetResearch,
    GetArtifact,
    GetCost,
    GetDefinition,
    GetMetrics,
    GetSession,
    GetStatus,
    InterruptSession,
    KillSession,
    ListApprovals,
    ListArtifacts,
    ListAudit,
    ListDefinitions,
    ListGrants,
    ListProviders,
    ListResearch,
    ListSessions,
    PauseSession,
    ReadArtifact,
    ReadJournal,
    ReloadDaemon,
    RemoveSession,
    RevokeGrant,
    RollBackSession,
    SendInput,
    StartSession,
    StopDaemon,
    StopSession,
    UnparkSession,
    UnpauseSession,
    UpgradeDaemon,
    WaitSession,
)
from ottod.protocol.results import (
    ApprovalList,
    ApprovalResult,
    ArtifactFound,
    ArtifactList,
    ArtifactPart,
    AuditEntry,
    AuditList,
    CostReport,
    CostRow,
    DaemonStatus,
    DecisionsFound,
    DefinitionFound,
    DefinitionList,
    Done,
    GrantList,
    JournalPage,
    MetricFamily,
    MetricsReport,
    PolicyExplanation,
    ProviderLineInfo,
    ProviderList,
    ReloadResult,
    ResearchEntry,
    ResearchList,
    Result,
    SessionInfo,
    SessionList,
    SessionStartedResult,
    StopResult,
    WaitingApproval,
)
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import WorkflowSpec


class SyncSession:
    """One session; see `Session`, whose methods these are."""

    def __init__(self, connection: BlockingConnection, session: str, *, from_offset: int = 0) -> None:
        self._connection = connection
        self.id = session
        self.from_offset = from_offset

    def __repr__(self) -> str:
        return f"<SyncSession {self.id}>"

    def info(self) -> SessionInfo:
        """The session as the daemon sees it now."""
        return expect(SessionInfo, self._connection.call(GetSession(session=self.id)))

    def send(self, text: str, *, steer: bool = False) -> None:
        """Says something to the session, for its next turn, or with `steer` for the one that runs."""
        self._connection.call(SendInput(session=self.id, text=check_text("the message", text), steer=steer))

    def interrupt(self, *, reason: str = "") -> None:
        """Cancels the turn that runs; the session stays and waits. See `Session.interrupt`."""
        body = InterruptSession(session=self.id, reason=check_text("the reason", reason))
        self._connection.call(body, timeout_s=INTERRUPT_ANSWER_S)

    def pause(self, *, reason: str = "", below: bool = False) -> None:
        """Lets no model call and no tool call begin until `unpause`; see `Session.pause`."""
        self._connection.call(PauseSession(session=self.id, reason=check_text("the reason", reason), below=below))

    def unpause(self, *, below: bool = False) -> None:
        """Lets a paused session go on."""
        self._connection.call(UnpauseSession(session=self.id, below=below))

    def checkpoint(self, name: str = "") -> None:
        """Notes a point that `fork` can begin at."""
        self._connection.call(CheckpointSession(session=self.id, name=check_text("the name", name)))

    def rollback(self, turns: int = 1) -> None:
        """Lets a session that waits for input forget its last turns; see `Session.rollback`."""
        self._connection.call(RollBackSession(session=self.id, turns=turns))

    def resume(self, task: str = "", *, mode: Mode | None = None, fresh_budget: bool = False) -> SyncSession:
        """Goes on with a session that has ended, is parked or paused; see `Session.resume`."""
        body = resume_request(self.info(), task, mode=mode, fresh_budget=fresh_budget)
        return self._started(self._connection.call(body))

    def fork(
        self,
        task: str = "",
        *,
        turn: int | None = None,
        checkpoint: str = "",
        mode: Mode | None = None,
        title: str = "",
    ) -> SyncSession:
        """A new session with this one's conversation as it was; see `Session.fork`."""
        body = fork_request(self.id, task, turn=turn, checkpoint=checkpoint, mode=mode, title=title)
        return self._started(self._connection.call(body))

    def update_notes(self, *, model: str = "") -> SyncSession:
        """Starts a session that learns from this one's run; see `Session.update_notes`."""
        return self._started(self._connection.call(update_notes_request(self.id, model=model)))

    def _started(self, answer: Result) -> SyncSession:
        started = expect(SessionStartedResult, answer)
        return SyncSession(self._connection, started.session, from_offset=started.from_offset)

    def journal(self) -> list[JournalEntry]:
        """The session's whole journal, oldest entry first."""
        pages = [expect(JournalPage, self._connection.call(ReadJournal(session=self.id)))]
        while pages[-1].next is not None:
            body = ReadJournal(session=self.id, first=pages[-1].next, at=pages[-1].next_at)
            pages.append(expect(JournalPage, self._connection.call(body)))
        return journal_entries(pages)

    def wait(self, *, idle: bool = False, timeout_s: float | None = None) -> RunResult:
        """Waits until the session has ended, or with `idle` until it waits for input."""
        body = WaitSession(session=self.id, idle=idle)
        answer = self._connection.call(body, timeout_s=timeout_s, forever=timeout_s is None)
        return run_result(expect(SessionInfo, answer))

    def result(self) -> str:
        """Waits for the end; the agent's final text."""
        return self.wait().result

    def stop(self, grace_s: float | None = None, *, reason: str = "") -> StopResult:
        """Stops the session and returns the proof."""
        body = StopSession(session=self.id, grace_s=grace_s, reason=reason)
        limit_s = None if grace_s is None else grace_s + STOP_ANSWER_S
        return expect(StopResult, self._connection.call(body, timeout_s=limit_s, forever=limit_s is None))

    def kill(self, *, reason: str = "") -> StopResult:
        """Stops the session without grace."""
        body = KillSession(session=self.id, reason=reason)
        return expect(StopResult, self._connection.call(body, timeout_s=STOP_ANSWER_S))

    def unpark(self) -> None:
        """Gives a parked session its next incarnation; see `Session.unpark`."""
        self._connection.call(UnparkSession(session=self.id))

    def remove(self) -> None:
        """Forgets the session, which must have ended, and deletes its files."""
        self._connection.call(RemoveSession(session=self.id))

    def events(
        self,
        from_offset: int | None = 0,
        *,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
    ) -> Generator[SessionEvent, None, None]:
        """The session's events until it ends; see `Session.events`."""
        feed = self._open_feed(from_offset, follow, credit_bytes)
        try:
            while (item := self._connection.next(feed)) is not None:
                if isinstance(item, Gap):
                    yield gap_event(item)
                    continue
                events = item.events()
                yield from events
                if ends_session(item, events):
                    return
        finally:
            self._connection.close_feed(feed)

    def batches(
        self,
        from_offset: int | None = 0,
        *,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
    ) -> Generator[Batch | Gap, None, None]:
        """The same as raw records; see `Session.batches`."""
        feed = self._open_feed(from_offset, follow, credit_bytes)
        try:
            while (item := self._connection.next(feed)) is not None:
                yield item
        finally:
            self._connection.close_feed(feed)

    def _open_feed(self, from_offset: int | None, follow: bool, credit_bytes: int) -> Feed:
        info = self.info()
        self.id = info.session
        feed = Feed(
            session=info.session,
            from_offset=info.last_offset + 1 if from_offset is None else from_offset,
            follow=follow and info.state != "ended",
            credit_bytes=credit_bytes,
        )
        self._connection.open_feed(feed)
        return feed


class SyncOtto:
    """A connection to the daemon; see `Otto`, whose methods these are."""

    def __init__(self, connection: BlockingConnection, *, started_daemon: bool = False) -> None:
        self.connection = connection
        self.started_daemon = started_daemon

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        autostart: bool = False,
        client: str = "python",
        on_outage: OnOutage = unheard,
    ) -> SyncOtto:
        """Connects; see `Otto.connect`. Raises UnreachableError."""
        where = resolve_endpoint(endpoint)

        def dial() -> BlockingConnection:
            connection = BlockingConnection.open(where, timeout_s=timeout_s, reconnect_s=reconnect_s, client=client)
            connection.on_outage = on_outage
            return connection

        try:
            return cls(dial())
        except UnreachableError:
            if not autostart or not can_start(where):
                raise
        is_mine = start_daemon()
        return cls(dial(), started_daemon=is_mine)

    def __enter__(self) -> SyncOtto:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnects. Sessions go on."""
        self.connection.close()

    @property
    def daemon(self) -> Welcome:
        """What the daemon said of itself in its welcome."""
        welcome = self.connection.welcome
        assert welcome is not None
        return welcome

    def start(
        self,
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
    ) -> SyncSession:
        """Starts a session; see `Otto.start`."""
        return self.start_with(
            start_request(
                agent,
                task,
                spec=spec,
                cwd=cwd,
                model=model,
                mode=mode,
                env=env,
                title=title,
                name=name,
                parent=parent,
                headless=headless,
                key=key,
            )
        )

    def start_workflow(
        self,
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
        headless: bool = False,
    ) -> SyncSession:
        """See `Otto.start_workflow`."""
        request = workflow_request(
            workflow,
            task,
            spec=spec,
            inputs=inputs,
            cwd=cwd,
            model=model,
            env=env,
            title=title,
            name=name,
            headless=headless,
        )
        return self.start_with(request)

    def run_workflow(
        self,
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
        headless: bool = False,
    ) -> RunResult:
        """Starts a workflow and waits for its end."""
        session = self.start_workflow(
            workflow,
            task,
            spec=spec,
            inputs=inputs,
            cwd=cwd,
            model=model,
            env=env,
            title=title,
            name=name,
            headless=headless,
        )
        return session.wait()

    def start_with(self, request: StartSession) -> SyncSession:
        """Starts a session from a request that is already put together."""
        started = expect(SessionStartedResult, self.connection.call(request))
        return SyncSession(self.connection, started.session, from_offset=started.from_offset)

    def run(
        self,
        agent: str = "",
        task: str = "",
        *,
        spec: AgentSpec | None = None,
        cwd: str | os.PathLike[str] | None = None,
        model: str = "",
        env: Mapping[str, str] | None = None,
        title: str = "",
        name: str = "",
        parent: str = "",
        headless: bool = False,
        key: str = "",
    ) -> RunResult:
        """Starts a session and waits for its end."""
        return self.start(
            agent,
            task,
            spec=spec,
            cwd=cwd,
            model=model,
            env=env,
            title=title,
            name=name,
            parent=parent,
            headless=headless,
            key=key,
        ).wait()

    def session(self, prefix: str) -> SyncSession:
        """The session with this id, or the only one whose id begins so."""
        info = expect(SessionInfo, self.connection.call(GetSession(session=prefix)))
        return SyncSession(self.connection, info.session, from_offset=info.first_offset)

    def list(
        self,
        *,
        all: bool = False,
        states: Iterable[SessionState] = (),
        tree: str = "",
        limit: int = 1000,
        agent: str = "",
        name: str = "",
    ) -> tuple[SessionInfo, ...]:
        """Live sessions, and with `all` the ended ones too, newest first; see `Otto.list`."""
        body = list_request(all=all, states=states, tree=tree, limit=limit, agent=agent, name=name)
        return self.list_with(body).sessions

    def list_with(self, request: ListSessions) -> SessionList:
        """The same from a request, with the word whether the limit cut the list."""
        return expect(SessionList, self.connection.call(request))

    def approvals(self, *, session: str = "") -> tuple[WaitingApproval, ...]:
        """The tool calls that wait for somebody's permission, oldest first; see `Otto.approvals`."""
        return expect(ApprovalList, self.connection.call(ListApprovals(session=session))).approvals

    def approve(
        self,
        approval: str,
        *,
        session: str = "",
        scope: Scope = "once",
        for_session: bool = False,
        reason: str = "",
        expires_s: float | None = None,
    ) -> ApprovalResult:
        """Lets a tool call go on; see `Otto.approve`."""
        body = approve_request(
            approval, session=session, scope="session" if for_session else scope, reason=reason, expires_s=expires_s
        )
        return expect(ApprovalResult, self.connection.call(body))

    def deny(
        self, approval: str, *, session: str = "", reason: str = "", for_session: bool = False
    ) -> ApprovalResult:
        """Refuses a tool call; see `Otto.deny`."""
        body = deny_request(approval, session=session, reason=reason, for_session=for_session)
        return expect(ApprovalResult, self.connection.call(body))

    def cost(self, by: CostKey = "agent", *, since_ns: int = 0) -> tuple[CostRow, ...]:
        """What model calls have cost since then; see `Otto.cost`."""
        return expect(CostReport, self.connection.call(GetCost(by=by, since_ns=since_ns))).rows

    def artifacts(
        self, *, session: str = "", name: str = "", kind: str = "", all_versions: bool = False, limit: int = 1000
    ) -> tuple[ArtifactInfo, ...]:
        """The artifacts that sessions have kept; see `Otto.artifacts`."""
        body = ListArtifacts(session=session, name=name, kind=kind, all_versions=all_versions, limit=limit)
        return expect(ArtifactList, self.connection.call(body)).artifacts

    def artifact(self, artifact: str, *, session: str = "", version: int = 0) -> ArtifactInfo:
        """One artifact; see `Otto.artifact`."""
        body = GetArtifact(artifact=artifact, session=session, version=version)
        return expect(ArtifactFound, self.connection.call(body)).artifact

    def read_artifact(self, artifact: ArtifactInfo) -> bytes:
        """An artifact's content; see `Otto.read_artifact`."""
        content = bytearray()
        while len(content) < artifact.size_bytes:
            body = ReadArtifact(artifact=artifact.artifact, offset=len(content))
            part = expect(ArtifactPart, self.connection.call(body))
            if not part.data:
                break
            content += part.data
        return checked_content(artifact, bytes(content))

    def decisions(self, wanted: DecisionFilter | None = None) -> DecisionsFound:
        """Nodes of the decision graph; see `Otto.decisions`."""
        return expect(DecisionsFound, self.connection.call(decisions_request(wanted)))

    def forget_decisions(self, project: str | os.PathLike[str]) -> int:
        """Forgets a project's graph; see `Otto.forget_decisions`."""
        return int(expect(Done, self.connection.call(ForgetDecisions(project=os.path.abspath(project)))).detail)

    def research(self, agent: str = "", *, limit: int = 100) -> tuple[ResearchEntry, ...]:
        """Results that are kept for those who ask the same; see `Otto.research`."""
        return expect(ResearchList, self.connection.call(ListResearch(agent=agent, limit=limit))).entries

    def forget_research(self, agent: str = "") -> int:
        """Forgets them, of one agent or all; gives how many there were."""
        return int(expect(Done, self.connection.call(ForgetResearch(agent=agent))).detail)

    def definitions(self, kind: DefinitionKind, name: str = "") -> tuple[KeptDefinition, ...]:
        """The versions of an agent or a workflow that sessions refer to; see `Otto.definitions`."""
        return expect(DefinitionList, self.connection.call(ListDefinitions(kind=kind, name=name))).definitions

    def definition(self, kind: DefinitionKind, name: str, digest: str) -> DefinitionFound:
        """One of them; see `Otto.definition`."""
        return expect(DefinitionFound, self.connection.call(GetDefinition(kind=kind, name=name, digest=digest)))

    def grants(self, *, agent: str = "") -> tuple[StandingGrant, ...]:
        """Permission that stands for agents, oldest first; with `agent` only of that name."""
        return expect(GrantList, self.connection.call(ListGrants(agent=agent))).grants

    def revoke(self, grant: str, *, reason: str = "") -> str:
        """Ends permission that stands; gives its id. Raises RefusedError: `no_such_grant`, `ambiguous_grant`."""
        return expect(Done, self.connection.call(RevokeGrant(grant=grant, reason=reason))).detail

    def audit(self, *, session: str = "", limit: int = 200) -> tuple[AuditEntry, ...]:
        """The newest decisions and answers about tool calls, oldest first; with `session` only those of it."""
        return expect(AuditList, self.connection.call(ListAudit(session=session, limit=limit))).entries

    def explain(
        self,
        agent: str,
        tool: str,
        arguments: Mapping[str, object] | str | None = None,
        *,
        spec: AgentSpec | None = None,
        session: str = "",
        cwd: str | os.PathLike[str] | None = None,
        headless: bool = False,
    ) -> PolicyExplanation:
        """What would become of a tool call, and why; see `Otto.explain`."""
        body = explain_request(agent, tool, arguments, spec=spec, session=session, cwd=cwd, headless=headless)
        return expect(PolicyExplanation, self.connection.call(body))

    def events(
        self,
        from_offset: int | None = None,
        *,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
    ) -> Generator[SessionEvent, None, None]:
        """The events of all sessions; see `Otto.events`."""
        feed = Feed(from_offset=from_offset, follow=follow, credit_bytes=credit_bytes)
        self.connection.open_feed(feed)
        try:
            while (item := self.connection.next(feed)) is not None:
                if isinstance(item, Gap):
                    yield gap_event(item)
                else:
                    yield from item.events()
        finally:
            self.connection.close_feed(feed)

    def status(self) -> DaemonStatus:
        """A reading of the daemon's instruments."""
        return expect(DaemonStatus, self.connection.call(GetStatus()))

    def metrics(self) -> tuple[MetricFamily, ...]:
        """The daemon's metrics, as Prometheus would read them."""
        return expect(MetricsReport, self.connection.call(GetMetrics())).families

    def providers(self) -> tuple[ProviderLineInfo, ...]:
        """The model providers that were asked for anything; see `Otto.providers`."""
        return expect(ProviderList, self.connection.call(ListProviders())).providers

    def reload_daemon(self) -> ReloadResult:
        """Lets the daemon read its configuration again; see `Otto.reload_daemon`."""
        return expect(ReloadResult, self.connection.call(ReloadDaemon()))

    def upgrade_daemon(self, *, timeout_s: float = UPGRADE_S) -> DaemonStatus:
        """Replaces the daemon's code under its sessions; see `Otto.upgrade_daemon`."""
        before, deadline_s = self.daemon, time.monotonic() + timeout_s
        try:
            self.connection.call(UpgradeDaemon(), timeout_s=timeout_s)
        except OutcomeUnknownError:
            pass  # It may have gone before its answer had: what answers next will tell.
        while True:
            try:
                found = upgraded(before, self.status())
            except UnreachableError as error:
                if time.monotonic() > deadline_s:
                    raise not_upgraded(before, timeout_s) from error
                found = None
            if found is not None:
                return found
            if time.monotonic() > deadline_s:
                raise not_upgraded(before, timeout_s)
            time.sleep(UPGRADE_LOOK_S)

    def stop_daemon(self, grace_s: float = 10.0, *, keep_sessions: bool = False) -> None:
        """Stops the daemon; see `Otto.stop_daemon`."""
        body = StopDaemon(grace_s=grace_s, keep_sessions=keep_sessions)
        self.connection.call(body, timeout_s=grace_s + STOP_ANSWER_S)
