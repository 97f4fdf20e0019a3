"""The asynchronous client: `async with Otto.connect() as otto: …`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from types import TracebackType

from ottoctl.connection import Connection
from ottoctl.daemon import can_start, start_daemon
from ottoctl.dialogue import OutcomeUnknownError
from ottoctl.endpoint import resolve_endpoint
from ottoctl.feed import DEFAULT_CREDIT_BYTES, Feed, SessionEvent, gap_event
from ottoctl.outage import OnOutage, unheard
from ottoctl.policy import DEFAULT_RECONNECT_S, DEFAULT_TIMEOUT_S, STOP_ANSWER_S
from ottoctl.replacement import UPGRADE_LOOK_S, UPGRADE_S, not_upgraded, upgraded
from ottoctl.results import (
    CostKey,
    Mode,
    RunResult,
    Scope,
    approve_request,
    checked_content,
    decisions_request,
    deny_request,
    expect,
    explain_request,
    list_request,
    start_request,
    workflow_request,
)
from ottoctl.session import Session
from ottoctl.sync import SyncOtto
from ottod.errors import UnreachableError
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.control import Welcome
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.definitions import DefinitionKind, KeptDefinition
from ottod.protocol.events import Gap, SessionState
from ottod.protocol.policy import StandingGrant
from ottod.protocol.requests import (
    ForgetDecisions,
    ForgetResearch,
    GetArtifact,
    GetCost,
    GetDefinition,
    GetMetrics,
    GetSession,
    GetStatus,
    ListApprovals,
    ListArtifacts,
    ListAudit,
    ListDefinitions,
    ListGrants,
    ListProviders,
    ListResearch,
    ReadArtifact,
    ReloadDaemon,
    RevokeGrant,
    StartSession,
    StopDaemon,
    UpgradeDaemon,
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
    MetricFamily,
    MetricsReport,
    PolicyExplanation,
    ProviderLineInfo,
    ProviderList,
    ReloadResult,
    ResearchEntry,
    ResearchList,
    SessionInfo,
    SessionList,
    SessionStartedResult,
    WaitingApproval,
)
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import WorkflowSpec


class Otto:
    """A connection to the daemon. Made by `connect`, which can be awaited or used with `async with`."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        autostart: bool = False,
        client: str = "python",
        on_outage: OnOutage = unheard,
    ) -> None:
        self._given_endpoint = endpoint
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._autostart = autostart
        self._client = client
        self._on_outage = on_outage
        self._connection: Connection | None = None
        self.started_daemon = False
        """Whether `autostart` had to start one."""

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
    ) -> Otto:
        """A client of the daemon at `endpoint` (`ipc://…`; None: OTTO_ENDPOINT, else this user's daemon).

        Entering it raises UnreachableError if no daemon runs and `autostart` is off. When the daemon goes away
        later, pending waits and event streams survive for `reconnect_s`; `on_outage` hears of that at once, and when
        it is back.
        """
        return cls(
            endpoint,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            autostart=autostart,
            client=client,
            on_outage=on_outage,
        )

    @staticmethod
    def connect_sync(
        endpoint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        autostart: bool = False,
        client: str = "python",
        on_outage: OnOutage = unheard,
    ) -> SyncOtto:
        """The synchronous twin, connected; use it with `with`."""
        return SyncOtto.connect(
            endpoint,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            autostart=autostart,
            client=client,
            on_outage=on_outage,
        )

    async def __aenter__(self) -> Otto:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[object, None, Otto]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Disconnects. Sessions go on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @property
    def connection(self) -> Connection:
        """The connection underneath. Raises UnreachableError before it is open."""
        if self._connection is None:
            raise UnreachableError("not connected", mend="use `async with Otto.connect() as otto:`")
        return self._connection

    @property
    def daemon(self) -> Welcome:
        """What the daemon said of itself in its welcome."""
        welcome = self.connection.welcome
        assert welcome is not None
        return welcome

    # ------------------------------------------------------------ sessions

    async def start(
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
    ) -> Session:
        """Starts a session of a named agent, or of `spec`. It goes on when this client leaves.

        Without either the task goes to the agent that fits it best; `SessionInfo.routed` says why.

        With `parent`, the id of a live session or the beginning of one, it runs below that session: it is stopped
        with it, and its end is told to it. A `name` stands for its id, and is refused (`name_taken`) while another
        living session has it. `cwd` defaults to this process's, `env` to this process's environment without what
        looks like a secret. A `conversation` stays for more input after its task. Raises what the daemon has against
        it.
        """
        return await self.start_with(
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

    async def start_workflow(
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
    ) -> Session:
        """Starts a workflow by name, or one that was made in Python. Its inputs are given by their names."""
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
        return await self.start_with(request)

    async def run_workflow(
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
        session = await self.start_workflow(
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
        return await session.wait()

    async def start_with(self, request: StartSession) -> Session:
        """Starts a session from a request that is already put together."""
        started = expect(SessionStartedResult, await self.connection.call(request))
        return Session(self.connection, started.session, from_offset=started.from_offset)

    async def run(
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
        session = await self.start(
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
        )
        return await session.wait()

    async def session(self, prefix: str) -> Session:
        """The session with this id, or the only one whose id begins so."""
        info = expect(SessionInfo, await self.connection.call(GetSession(session=prefix)))
        return Session(self.connection, info.session, from_offset=info.first_offset)

    async def list(
        self,
        *,
        all: bool = False,
        states: Iterable[SessionState] = (),
        tree: str = "",
        limit: int = 1000,
        agent: str = "",
        name: str = "",
    ) -> tuple[SessionInfo, ...]:
        """Live sessions, and with `all` the ended ones too, newest first.

        `tree`, an id or the beginning of one: only this session and those below it; each names its `parent`. `agent`
        and `name` may be patterns: `code-*`.
        """
        body = list_request(all=all, states=states, tree=tree, limit=limit, agent=agent, name=name)
        return expect(SessionList, await self.connection.call(body)).sessions

    async def approvals(self, *, session: str = "") -> tuple[WaitingApproval, ...]:
        """The tool calls that wait for somebody's permission, oldest first.

        With `session`, an id or the beginning of one: only those of it and of the sessions below it.
        """
        return expect(ApprovalList, await self.connection.call(ListApprovals(session=session))).approvals

    async def approve(
        self,
        approval: str,
        *,
        session: str = "",
        scope: Scope = "once",
        for_session: bool = False,
        reason: str = "",
        expires_s: float | None = None,
    ) -> ApprovalResult:
        """Lets a tool call go on.

        `scope`: `once`; `session`, every later call of its tool in that session as well (`for_session` is short for
        it); `agent`, exactly this for all sessions of the agent in that directory, until it is revoked or `expires_s`
        have passed. `approval` is an id or the beginning of one. Raises RefusedError: `already_resolved` if it has
        been answered, with by whom; `no_such_approval`; `bad_scope` if permission for it cannot stand.
        """
        body = approve_request(
            approval, session=session, scope="session" if for_session else scope, reason=reason, expires_s=expires_s
        )
        return expect(ApprovalResult, await self.connection.call(body))

    async def deny(
        self, approval: str, *, session: str = "", reason: str = "", for_session: bool = False
    ) -> ApprovalResult:
        """Refuses a tool call: it fails with `reason`, which the model hears, and the turn goes on. As `approve`."""
        body = deny_request(approval, session=session, reason=reason, for_session=for_session)
        return expect(ApprovalResult, await self.connection.call(body))

    async def cost(self, by: CostKey = "agent", *, since_ns: int = 0) -> tuple[CostRow, ...]:
        """What model calls have cost since then, by agent, model, session or day; also of sessions that are removed.

        The dearest first, by day the newest first. `since_ns` is wall clock nanoseconds.
        """
        return expect(CostReport, await self.connection.call(GetCost(by=by, since_ns=since_ns))).rows

    async def artifacts(
        self, *, session: str = "", name: str = "", kind: str = "", all_versions: bool = False, limit: int = 1000
    ) -> tuple[ArtifactInfo, ...]:
        """The artifacts that sessions have kept, newest first: the newest version of each name.

        `session`, an id or the beginning of one: only those of the tree that it belongs to.
        """
        body = ListArtifacts(session=session, name=name, kind=kind, all_versions=all_versions, limit=limit)
        return expect(ArtifactList, await self.connection.call(body)).artifacts

    async def artifact(self, artifact: str, *, session: str = "", version: int = 0) -> ArtifactInfo:
        """One artifact, by its id, the beginning of one, or its name; version 0 is the newest.

        Raises RefusedError: `no_such_artifact`, or `ambiguous_artifact` for a name that several trees know.
        """
        body = GetArtifact(artifact=artifact, session=session, version=version)
        return expect(ArtifactFound, await self.connection.call(body)).artifact

    async def read_artifact(self, artifact: ArtifactInfo) -> bytes:
        """Its content, in a whole, and proved by its digest. Raises RefusedError, StorageError."""
        content = bytearray()
        while len(content) < artifact.size_bytes:
            body = ReadArtifact(artifact=artifact.artifact, offset=len(content))
            part = expect(ArtifactPart, await self.connection.call(body))
            if not part.data:
                break
            content += part.data
        return checked_content(artifact, bytes(content))

    async def decisions(self, wanted: DecisionFilter | None = None) -> DecisionsFound:
        """Nodes of the decision graph, newest first, and the edges between them.

        Of the project of the current directory, unless the filter names another, a session, a tree or a node.
        Raises RefusedError: `no_such_node`, `ambiguous_node`.
        """
        return expect(DecisionsFound, await self.connection.call(decisions_request(wanted)))

    async def forget_decisions(self, project: str | os.PathLike[str]) -> int:
        """Forgets the whole graph of the project that this directory belongs to; gives how many nodes it had."""
        body = ForgetDecisions(project=os.path.abspath(project))
        return int(expect(Done, await self.connection.call(body)).detail)

    async def research(self, agent: str = "", *, limit: int = 100) -> tuple[ResearchEntry, ...]:
        """Results that are kept for those who ask the same, newest first."""
        return expect(ResearchList, await self.connection.call(ListResearch(agent=agent, limit=limit))).entries

    async def forget_research(self, agent: str = "") -> int:
        """Forgets them, of one agent or all; gives how many there were."""
        return int(expect(Done, await self.connection.call(ForgetResearch(agent=agent))).detail)

    async def definitions(self, kind: DefinitionKind, name: str = "") -> tuple[KeptDefinition, ...]:
        """The versions of an agent or a workflow that sessions on record were started with, newest first."""
        body = ListDefinitions(kind=kind, name=name)
        return expect(DefinitionList, await self.connection.call(body)).definitions

    async def definition(self, kind: DefinitionKind, name: str, digest: str) -> DefinitionFound:
        """One of them, by its digest or the beginning of it, and what it says.

        Raises RefusedError: `no_such_definition`, `ambiguous_definition`.
        """
        body = GetDefinition(kind=kind, name=name, digest=digest)
        return expect(DefinitionFound, await self.connection.call(body))

    async def grants(self, *, agent: str = "") -> tuple[StandingGrant, ...]:
        """Permission that stands for agents, oldest first; with `agent` only of that name."""
        return expect(GrantList, await self.connection.call(ListGrants(agent=agent))).grants

    async def revoke(self, grant: str, *, reason: str = "") -> str:
        """Ends permission that stands; gives its id. Raises RefusedError: `no_such_grant`, `ambiguous_grant`."""
        return expect(Done, await self.connection.call(RevokeGrant(grant=grant, reason=reason))).detail

    async def audit(self, *, session: str = "", limit: int = 200) -> tuple[AuditEntry, ...]:
        """The newest decisions and answers about tool calls, oldest first; with `session` only those of it."""
        return expect(AuditList, await self.connection.call(ListAudit(session=session, limit=limit))).entries

    async def explain(
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
        """What would become of a tool call, and why; nothing is called.

        Of an agent by name or of `spec`, as a session in `cwd` would get it, or of a live `session`.
        """
        body = explain_request(agent, tool, arguments, spec=spec, session=session, cwd=cwd, headless=headless)
        return expect(PolicyExplanation, await self.connection.call(body))

    async def events(
        self,
        from_offset: int | None = None,
        *,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
    ) -> AsyncGenerator[SessionEvent, None]:
        """The events of all sessions (None: only new ones, 0: all there are); see `Session.events`."""
        feed = Feed(from_offset=from_offset, follow=follow, credit_bytes=credit_bytes)
        # Kept apart: the client may be closed before the generator is.
        connection = self.connection
        await connection.open_feed(feed)
        try:
            while (item := await connection.next(feed)) is not None:
                if isinstance(item, Gap):
                    yield gap_event(item)
                else:
                    for event in item.events():
                        yield event
        finally:
            connection.close_feed(feed)

    # ------------------------------------------------------------ the daemon

    async def status(self) -> DaemonStatus:
        """A reading of the daemon's instruments."""
        return expect(DaemonStatus, await self.connection.call(GetStatus()))

    async def metrics(self) -> tuple[MetricFamily, ...]:
        """The daemon's metrics, as Prometheus would read them."""
        return expect(MetricsReport, await self.connection.call(GetMetrics())).families

    async def providers(self) -> tuple[ProviderLineInfo, ...]:
        """The model providers that were asked for anything: breakers, limits, and what waits for them."""
        return expect(ProviderList, await self.connection.call(ListProviders())).providers

    async def reload_daemon(self) -> ReloadResult:
        """Lets the daemon read its configuration again: what holds from now on, and what waits for a restart.

        Raises OttoError (`bad_config`) for a file that is wrong; then nothing has changed.
        """
        return expect(ReloadResult, await self.connection.call(ReloadDaemon()))

    async def upgrade_daemon(self, *, timeout_s: float = UPGRADE_S) -> DaemonStatus:
        """Replaces the daemon's code by what is installed now, under its running sessions.

        Returns when the same process answers as a new instance. Raises RefusedError (`bad_upgrade`) when the
        installed program cannot run, OttoError (`upgrade_failed`) when the new one does not answer.
        """
        before, deadline_s = self.daemon, time.monotonic() + timeout_s
        try:
            await self.connection.call(UpgradeDaemon(), timeout_s=timeout_s)
        except OutcomeUnknownError:
            pass  # It may have gone before its answer had: what answers next will tell.
        while True:
            try:
                found = upgraded(before, await self.status())
            except UnreachableError as error:
                if time.monotonic() > deadline_s:
                    raise not_upgraded(before, timeout_s) from error
                found = None
            if found is not None:
                return found
            if time.monotonic() > deadline_s:
                raise not_upgraded(before, timeout_s)
            await asyncio.sleep(UPGRADE_LOOK_S)

    async def stop_daemon(self, grace_s: float = 10.0, *, keep_sessions: bool = False) -> None:
        """Stops the daemon; its sessions end with cause `daemon_stop`.

        With `keep_sessions` they go on without it, and the next daemon takes them over; without one they checkpoint
        and exit after `sessions.orphan_grace_s`.
        """
        body = StopDaemon(grace_s=grace_s, keep_sessions=keep_sessions)
        await self.connection.call(body, timeout_s=grace_s + STOP_ANSWER_S)

    async def _open(self) -> None:
        if self._connection is not None:
            return
        endpoint = resolve_endpoint(self._given_endpoint)
        try:
            self._connection = await self._dial(endpoint)
        except UnreachableError:
            if not self._autostart or not can_start(endpoint):
                raise
            is_mine = await asyncio.to_thread(start_daemon)
            self._connection = await self._dial(endpoint)
            self.started_daemon = is_mine

    async def _dial(self, endpoint: str) -> Connection:
        connection = await Connection.open(
            endpoint, timeout_s=self._timeout_s, reconnect_s=self._reconnect_s, client=self._client
        )
        connection.on_outage = self._on_outage
        return connection
