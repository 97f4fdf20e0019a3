"""What each control request means: the handlers behind the control socket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, assert_never

from msgspec.structs import replace

from ottod import __version__
from ottod.core.listing import check_patterns, choose, wants_ended
from ottod.errors import RefusedError
from ottod.ids import BadSessionId, session_key
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.requests import (
    CheckpointSession,
    ExplainPolicy,
    ForgetDecisions,
    ForgetResearch,
    ForkSession,
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
    Ping,
    QueryDecisions,
    ReadArtifact,
    ReadJournal,
    ReloadDaemon,
    RemoveSession,
    RequestBody,
    ResolveApproval,
    ResumeSession,
    RevokeGrant,
    RollBackSession,
    SendInput,
    StartSession,
    StopDaemon,
    StopSession,
    Subscribe,
    UnparkSession,
    UnpauseSession,
    Unsubscribe,
    UpdateNotes,
    UpgradeDaemon,
    WaitSession,
)
from ottod.protocol.results import (
    AuditList,
    CostReport,
    DaemonStatus,
    Done,
    MetricsReport,
    PolicyExplanation,
    ReloadResult,
    Result,
    SessionInfo,
    SessionList,
    Subscribed,
)
from ottod.root.artifacts import tree_of
from ottod.root.control_gate import ControlGate
from ottod.root.hub import Hub
from ottod.root.lag import LoopLag
from ottod.root.lookup import Lookup
from ottod.root.reaper import Reaper
from ottod.root.session_table import NoSuchSession, Session, SessionTable
from ottod.root.supervisor import Supervisor
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import ZygoteClient
from ottod.settings.paths import Paths
from ottod.storage.database import Database

MAX_NAME_CHARS = 8192
"""Of anything that a start names; a script's path can be long."""
LISTED_CHARS = 200
"""Of a task and a result, in a list; one session's own answer has them whole."""
MAX_REASON_CHARS = 2000
"""Of a stop's reason; what is beyond is cut."""


class DaemonControl(Protocol):
    """What clients can ask of the daemon itself."""

    def status(self) -> DaemonStatus: ...

    async def metrics(self) -> MetricsReport: ...

    def shut_down(self, grace_s: float, *, keep_sessions: bool = False) -> None: ...

    async def upgrade(self) -> None: ...

    async def reload(self) -> ReloadResult: ...


class Service:
    """Routes a request to the part of root that owns it."""

    def __init__(
        self,
        *,
        table: SessionTable,
        supervisor: Supervisor,
        hub: Hub,
        database: Database,
        daemon: DaemonControl,
    ) -> None:
        self._table = table
        self._supervisor = supervisor
        self._hub = hub
        self._database = database
        self._lookup = Lookup(table, database)
        self._daemon = daemon
        self.name_of: Callable[[bytes], str] = lambda client: ""
        """What a client calls itself, for the record."""
        self.redacted: Callable[[RequestBody], Awaitable[RequestBody]] = _as_it_is
        """A request without the secrets that somebody wrote into it."""

    async def serve(self, client: bytes, body: RequestBody) -> Result:
        """The result of a request. Raises OttoError for a failure that the client is told."""
        body = await self.redacted(body)
        match body:
            case StartSession():
                return await self._supervisor.start(await self._checked(body))
            case ListSessions():
                return await self._list(body)
            case GetSession():
                return await self._info(body.session)
            case SendInput():
                session = await self._find(body.session)
                await self._supervisor.send_input(session, body.text, "user", steer=body.steer)
                return Done()
            case InterruptSession() | PauseSession() | UnpauseSession() | CheckpointSession() | RollBackSession():
                return await self._steer(await self._find(body.session), body)
            case ResumeSession():
                return await self._supervisor.lineage.resume(await self._find(body.session), body)
            case ForkSession():
                return await self._supervisor.lineage.fork(await self._find(body.session), body)
            case UpdateNotes():
                return await self._supervisor.learning.update(await self._find(body.session), body)
            case ReadJournal():
                return await self._supervisor.lineage.journal(await self._find(body.session), body)
            case WaitSession():
                return await self._wait(body)
            case StopSession():
                session = await self._find(body.session)
                return await self._supervisor.stop(
                    session, grace_s=body.grace_s, reason=body.reason[:MAX_REASON_CHARS]
                )
            case KillSession():
                session = await self._find(body.session)
                return await self._supervisor.stop(session, grace_s=0.0, reason=body.reason[:MAX_REASON_CHARS])
            case UnparkSession():
                await self._supervisor.unpark(await self._find(body.session))
                return Done()
            case RemoveSession():
                await self._supervisor.remove(await self._find(body.session))
                return Done()
            case ListApprovals():
                return self._supervisor.approvals.waiting(await self._below(body.session))
            case ResolveApproval():
                asking = await self._find(body.session) if body.session else None
                return await self._supervisor.approvals.resolve(asking, body, self.name_of(client))
            case ListArtifacts():
                return await self._supervisor.artifacts.list(body, tree=await self._tree(body.session))
            case GetArtifact():
                return await self._supervisor.artifacts.get(body, tree=await self._tree(body.session))
            case ReadArtifact():
                return await self._supervisor.artifacts.read(body)
            case QueryDecisions():
                return await self._supervisor.decisions.query(await self._meant(body.filter))
            case ForgetDecisions():
                return await self._supervisor.decisions.forget(body)
            case ListResearch():
                return await self._supervisor.research.list(body)
            case ForgetResearch():
                return await self._supervisor.research.forget(body)
            case ListDefinitions():
                return await self._supervisor.definitions.list(body)
            case GetDefinition():
                return await self._supervisor.definitions.get(body)
            case ListGrants():
                return self._supervisor.grants.list(body.agent)
            case RevokeGrant():
                reason = body.reason[:MAX_REASON_CHARS]
                revoked = await self._supervisor.grants.revoke(body.grant, by=self.name_of(client), reason=reason)
                return Done(detail=revoked.grant)
            case ListAudit():
                return await self._audit(body)
            case ExplainPolicy():
                return await self._explain(body)
            case ListProviders():
                return self._supervisor.providers.read()
            case Subscribe():
                return await self._subscribe(client, body)
            case Unsubscribe():
                return Done(detail="" if self._hub.unsubscribe(client, body.subscription) else "not found")
            case GetCost():
                rows = await self._supervisor.permits.ledger.cost(body.by, since_ns=body.since_ns)
                return CostReport(by=body.by, rows=tuple(rows))
            case GetStatus():
                return await self._status()
            case GetMetrics():
                return await self._daemon.metrics()
            case StopDaemon():
                self._daemon.shut_down(body.grace_s, keep_sessions=body.keep_sessions)
                return Done(detail="leaving" if body.keep_sessions else "stopping")
            case UpgradeDaemon():
                await self._daemon.upgrade()
                return Done(detail="upgrading")
            case ReloadDaemon():
                return await self._daemon.reload()
            case Ping():
                return Done()
            case _:
                assert_never(body)

    async def _steer(
        self,
        session: Session,
        body: InterruptSession | PauseSession | UnpauseSession | CheckpointSession | RollBackSession,
    ) -> Done:
        steering = self._supervisor.steering
        match body:
            case InterruptSession():
                await steering.interrupt(session, body.reason[:MAX_REASON_CHARS])
            case PauseSession():
                reason = body.reason[:MAX_REASON_CHARS]
                await steering.set_pause(session, paused=True, reason=reason, below=body.below)
            case UnpauseSession():
                await steering.set_pause(session, paused=False, below=body.below)
            case CheckpointSession():
                await steering.checkpoint(session, body.name)
            case RollBackSession():
                await steering.roll_back(session, body.turns)
                self._supervisor.questions.forget(session.id)
            case _:
                assert_never(body)
        return Done()

    async def _checked(self, body: StartSession) -> StartSession:
        """The request, with the parent's whole id. What it names ends up in events, which have a size.

        Raises: RefusedError for a name that is too long, NoSuchSession for a parent that does not exist.
        """
        for field in ("agent", "model", "key"):
            if len(getattr(body, field)) > MAX_NAME_CHARS:
                raise RefusedError(
                    f"{field} has more than {MAX_NAME_CHARS} characters", code="too_large", mend="make it shorter"
                )
        return replace(body, parent=(await self._find(body.parent)).id) if body.parent else body

    async def _find(self, text: str) -> Session:
        return await self._lookup.find(text)

    def _current(self, session: Session) -> SessionInfo:
        info, reading = session.info, session.reading
        if not session.has_ended:
            info = replace(info, budgets=self._supervisor.permits.budgets.lines(session))
        if info.state == "running" and (wait := self._supervisor.providers.wait_of(session.id)):
            info = replace(info, reason=wait)
        if reading is not None and not session.has_ended:
            info = replace(
                info,
                memory_bytes=reading.memory_bytes,
                memory_peak_bytes=reading.peak_bytes,
                memory_cap_bytes=reading.cap_bytes or info.memory_cap_bytes,
                processes=reading.processes,
                cpu_ms=reading.cpu_ms,
            )
        if session.key and (last_seq := self._hub.ring.last_seq(session.key)):
            return replace(info, last_seq=max(last_seq, info.last_seq))
        return info

    async def _info(self, prefix: str) -> SessionInfo:
        return self._current(await self._find(prefix))

    async def _wait(self, body: WaitSession) -> SessionInfo:
        session = await self._find(body.session)
        task = asyncio.current_task()
        if task is not None:
            task.set_name("wait")
        await self._supervisor.wait(session, idle=body.idle)
        return self._current(session)

    async def _status(self) -> DaemonStatus:
        """The daemon's, with all the sessions that are on record, also of earlier daemons."""
        status = self._daemon.status()
        ended = max(status.sessions.get("ended", 0), await self._database.count_ended())
        return replace(status, sessions={**status.sessions, "ended": ended})

    async def _list(self, body: ListSessions) -> SessionList:
        """What is wanted of all sessions. The database's thread looks at them: the loop has no time for patterns."""
        check_patterns(body)
        parents = {(await self._find(parent)).id for parent in body.parents}
        top = (await self._find(body.tree)).id if body.tree else ""
        living = [self._current(s) for s in self._table.live]

        def chosen(rows: Iterable[SessionInfo] = ()) -> tuple[list[SessionInfo], bool]:
            return choose(body, living, rows, parents=parents, top=top)

        if wants_ended(body):
            found, is_cut = await self._database.with_ended(chosen, top=top)
        elif body.agents or body.names:
            found, is_cut = await self._database.query(lambda connection: chosen())
        else:
            found, is_cut = chosen()
        return SessionList(sessions=tuple(map(_listed, found)), truncated=is_cut)

    async def _below(self, prefix: str) -> list[Session]:
        """The live sessions; with a prefix the one that is meant and those below it."""
        if not prefix:
            return self._table.live
        return (await self._find(prefix)).line_up()

    async def _tree(self, prefix: str) -> str:
        """The tree that the session belongs to; empty if none is named."""
        return tree_of(await self._find(prefix)) if prefix else ""

    async def _meant(self, wanted: DecisionFilter) -> DecisionFilter:
        """The filter with whole ids. What a session logged outlives it, so a whole id needs no session."""
        tree, session = wanted.tree, wanted.session
        try:
            tree = await self._tree(tree)
        except NoSuchSession:
            if not _is_whole(tree):
                raise
        try:
            session = (await self._find(session)).id if session else ""
        except NoSuchSession:
            if not _is_whole(session):
                raise
        return replace(wanted, tree=tree, session=session)

    async def _audit(self, body: ListAudit) -> AuditList:
        session = body.session and (await self._find(body.session)).id
        return AuditList(entries=tuple(await self._database.audit(session, limit=body.limit)))

    async def _explain(self, body: ExplainPolicy) -> PolicyExplanation:
        session = await self._find(body.session) if body.session else None
        if session is not None:
            grants = self._supervisor.grants.of(session)
        else:
            # Those of the name; the file and directory that they are for are looked at below.
            grants = self._supervisor.grants.list(body.agent).grants
        return await self._supervisor.explanations.explain(body, session, grants)

    async def _subscribe(self, client: bytes, body: Subscribe) -> Subscribed:
        key = (await self._find(body.session)).key if body.session else None
        sub = self._hub.subscribe(
            client,
            from_offset=body.from_offset,
            session_key=key,
            credit=body.credit_bytes,
            follow=body.follow,
        )
        return Subscribed(subscription=sub.id, tail=self._hub.ring.tail_offset, head=self._hub.ring.head_offset)


def _listed(info: SessionInfo) -> SessionInfo:
    """As it stands in a list: without what is long."""
    approvals = tuple(replace(a, diff="") for a in info.approvals)
    return replace(info, task=info.task[:LISTED_CHARS], result=info.result[:LISTED_CHARS], approvals=approvals)


async def _as_it_is(body: RequestBody) -> RequestBody:
    return body


def _is_whole(session: str) -> bool:
    try:
        session_key(session)
    except BadSessionId:
        return False
    return True


def read_status(
    *,
    instance: str,
    started_at_ns: int,
    started_s: float,
    paths: Paths,
    table: SessionTable,
    hub: Hub,
    control: ControlGate,
    workers: WorkerGate,
    zygote: ZygoteClient,
    reaper: Reaper,
    supervisor: Supervisor,
    lag: LoopLag,
    isolation: dict[str, str],
) -> DaemonStatus:
    """Reads all instruments."""
    ring = hub.ring
    return DaemonStatus(
        version=__version__,
        protocol=PROTOCOL_VERSION,
        pid=os.getpid(),
        instance=instance,
        started_at_ns=started_at_ns,
        uptime_s=round(time.monotonic() - started_s, 3),
        sessions=table.counts(),
        zygote_pid=zygote.pid,
        zygote_generation=zygote.generation,
        warm_workers=zygote.warm_count,
        ring_bytes=ring.stats().size_bytes,
        ring_used_bytes=ring.used_bytes,
        ring_head=ring.head_offset,
        ring_tail=ring.tail_offset,
        ring_recovery=ring.recovery.describe(),
        subscriptions=hub.subscription_count,
        clients=control.client_count,
        loop_lag_p99_ms=round(lag.percentile_ms(0.99), 3),
        rss_bytes=_rss_bytes(),
        runtime_dir=str(paths.runtime_dir),
        state_dir=str(paths.state_dir),
        config_file=str(paths.config_file),
        isolation=isolation,
        counters={
            "sessions_started": supervisor.started,
            "events_appended": hub.events_appended,
            "batches": workers.batches,
            "gaps_sent": hub.gaps_sent,
            "bad_client_messages": control.bad_messages,
            "bad_worker_messages": workers.rejected_messages,
            "strangers_reaped": reaper.strangers_reaped,
            "zygote_deaths": zygote.deaths,
            "loop_lag_max_us": int(lag.max_ms * 1000),
        },
    )


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
