"""From a session that is to have a worker, its first or the next, to a worker that has been born."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec.structs import replace

from ottod.errors import OttoError
from ottod.isolation.enclosure import Caps, Enclosure, IsolationError
from ottod.isolation.processes import identify
from ottod.isolation.rlimits import limits_for
from ottod.protocol.birth import Birth, ChildNotice, births
from ottod.protocol.cause import Cause
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import SessionInfo
from ottod.protocol.sinks import SinkGrants
from ottod.root.approvals import kept_answers
from ottod.root.burials import incarnation_row
from ottod.root.context import RootContext
from ottod.root.learning import learns
from ottod.root.plan import SessionPlan
from ottod.root.resolve import Resolver, ServerSecrets
from ottod.root.rulings import all_authorities
from ottod.root.session_table import Incarnation, Session, child_notice
from ottod.root.zygote_client import Lease

MAX_NOTICES_BYTES = 256 * 1024
"""Of the news of ended children in one birth."""

OnFailure = Callable[[Session, Cause], None]


class Secrets(NamedTuple):
    """What a worker is told over its private channel, and nobody keeps."""

    api_keys: dict[str, str]
    for_servers: ServerSecrets
    for_sinks: SinkGrants


class Births:
    """Creates incarnations.

    `on_failed` hears of births that came to nothing; a worker that died on the way is heard of through
    `on_worker_exit` like any other.
    """

    def __init__(
        self, context: RootContext, *, resolver: Resolver, worker_endpoint: str, private_dirs: tuple[str, ...]
    ) -> None:
        self._c = context
        self._resolver = resolver
        self._worker_endpoint = worker_endpoint
        self._private_dirs = private_dirs
        self.open_permits: Callable[[str], tuple[str, ...]] = lambda session_id: ()
        """A session's permits that its earlier workers have not told the end of."""
        self.on_failed: OnFailure = lambda session, cause: None
        self.grants_of: Callable[[Session], tuple[StandingGrant, ...]] = lambda session: ()
        self.on_worker_exit: Callable[..., None] = lambda session, incarnation, exit_: None

    def caps(self, plan: SessionPlan) -> Caps:
        """What the session may use: the agent's own limits, else the daemon's."""
        if plan.spec.isolation.memory == "off":
            return Caps(memory_bytes=None, pids=None, cpu_weight=plan.spec.limits.cpu_weight)
        limits, caps = plan.spec.limits, self._c.settings.caps
        return Caps(
            memory_bytes=limits.memory_bytes or caps.memory_bytes,
            pids=limits.pids or caps.pids,
            cpu_weight=limits.cpu_weight,
        )

    def bear_soon(self, session: Session, api_keys: dict[str, str] | None = None) -> None:
        """Gives the session a worker; without keys they are looked up anew."""
        session.is_being_born = True
        self._c.spawn(self._give_birth(session, api_keys))

    async def _give_birth(self, session: Session, api_keys: dict[str, str] | None) -> None:
        """A worker for the session, or word to `on_failed`, once, that there is none.

        As soon as there is a worker its death is heard of as any other's, and nothing here counts any more.
        """
        plan = session.plan
        assert plan is not None
        started_s = self._c.loop.time()
        lease: Lease | None = None
        incarnation: Incarnation | None = None
        try:
            if api_keys is None:
                api_keys = await self._c.in_thread(self._resolver.keys, plan.models)
            for_servers = ServerSecrets()
            if plan.spec.mcp_servers:
                for_servers = await self._c.in_thread(self._resolver.server_secrets, plan)
            for_sinks = SinkGrants()
            if plan.workflow is not None and plan.workflow.spec.sinks:
                for_sinks = await self._c.in_thread(self._resolver.sink_grants, plan.workflow.spec)
            await self._enclose(session, plan)
            lease = await self._c.zygote.lease()
            await session.announced.wait()
            if session.is_refused:
                self._abandon(session, lease)
                return
            incarnation = self._begin(session, lease)
            await self._bear(session, incarnation, plan, Secrets(api_keys, for_servers, for_sinks), lease)
        except Exception as error:
            # A session must not stay in `starting` because of a defect in bringing it to life.
            if incarnation is not None:
                incarnation.end_intent = incarnation.end_intent or "start_failed"
                incarnation.send_signal(signal.SIGKILL)
            else:
                if lease is not None:
                    lease.close()
                await session.announced.wait()
                session.is_being_born = False
                if session.is_refused:
                    self._abandon(session, None)
                    return
                self.on_failed(session, _birth_failure(error))
            if not isinstance(error, OttoError):
                raise
        else:
            self._c.instruments.spawn_seconds(self._c.loop.time() - started_s)

    def _abandon(self, session: Session, lease: Lease | None) -> None:
        """The session never came to be; its worker, unborn, goes when its channel closes."""
        if lease is not None:
            lease.close()
        if session.enclosure is not None:
            self._c.threads.submit(session.enclosure.close)

    async def _enclose(self, session: Session, plan: SessionPlan) -> None:
        if session.enclosure is None:
            caps = self.caps(plan)
            if self._c.enclosures.kind == "cgroup":
                session.enclosure = await self._c.in_thread(self._c.enclosures.open, session.id, caps)
            else:
                session.enclosure = self._c.enclosures.open(session.id, caps)

    def _begin(self, session: Session, lease: Lease) -> Incarnation:
        """From here on the session has a worker, whose end `on_worker_exit` hears of."""
        incarnation = Incarnation(number=session.info.incarnation, secret=os.urandom(32), generation=lease.generation)
        incarnation.lease = lease
        incarnation.last_heard_s = incarnation.started_s = self._c.loop.time()
        incarnation.started_at_ns = time.time_ns()
        session.incarnation = incarnation
        session.is_being_born = False
        self._c.table.update(session, replace(session.info, pid=lease.pid))
        lease.adopt(lambda exit_: self.on_worker_exit(session, incarnation, exit_))
        return incarnation

    async def _bear(
        self, session: Session, incarnation: Incarnation, plan: SessionPlan, secrets: Secrets, lease: Lease
    ) -> None:
        if self._is_unwanted(session, incarnation):
            return
        await self._admit(session, lease.pid)
        # Before the worker can do anything, a later root must be able to find it.
        await self._note_incarnation(session, incarnation, lease.pid)
        rows = await self._c.database.children(session.id) if incarnation.number > 1 else []
        # There is no await between this look and the birth: a stop that comes later goes to a worker that hears it.
        if self._is_unwanted(session, incarnation):
            return
        # What ended while there was no worker to hear of it is news as well.
        newest = [known.info if (known := self._c.table.get(row.session)) else row for row in rows]
        ended = bounded_notices(info for info in newest if info.state == "ended")
        children = (*session.notices(), *ended)
        session.timers.append(
            self._c.loop.call_later(self._c.settings.sessions.start_timeout_s, self._timed_out, incarnation)
        )
        await self._send_birth(lease, births.encode(self._birth(session, plan, incarnation, secrets, children)))

    @staticmethod
    def _is_unwanted(session: Session, incarnation: Incarnation) -> bool:
        """Whether the worker is dead by now, or is to be: it has done nothing yet that deserves a grace."""
        if session.incarnation is not incarnation:
            return True
        if session.is_stopping or session.is_halting:
            incarnation.is_for_restart, session.is_halting = not session.is_stopping, False
            incarnation.send_signal(signal.SIGKILL)
            return True
        return False

    def _birth(
        self,
        session: Session,
        plan: SessionPlan,
        incarnation: Incarnation,
        secrets: Secrets,
        children: tuple[ChildNotice, ...],
    ) -> Birth:
        info, settings = session.info, self._c.settings
        watched = self._c.enclosures.kind == "watchdog"
        return Birth(
            session=session.id,
            incarnation=incarnation.number,
            secret=incarnation.secret,
            next_seq=session.next_seq,
            endpoint=self._worker_endpoint,
            spec=plan.spec,
            models=plan.models,
            secrets=dict(self._c.secrets()),
            redact_shapes=settings.redaction.shapes,
            tracing=self._c.tracing(),
            traceparent=plan.traceparent,
            api_keys=secrets.api_keys,
            server_env={**secrets.for_servers.env, **plan.server_env},
            server_headers=secrets.for_servers.headers,
            tool_files=plan.tool_files,
            workflow=plan.workflow,
            sinks=secrets.for_sinks,
            is_step=plan.is_step or plan.hands_whole,
            cannot_learn=learns(plan, info) and info.run_mode == "headless",
            project_notes=plan.spec.project_notes and settings.project_may.notes,
            task=info.task,
            mode="conversation" if info.mode == "conversation" else "oneshot",
            run_mode="headless" if info.run_mode == "headless" else "interactive",
            cwd=plan.cwd,
            env=plan.env,
            session_dir=str(self._c.sessions_dir / session.id),
            private_dirs=self._private_dirs,
            generation=incarnation.generation,
            priority=settings.sessions.worker_priority,
            heartbeat_s=settings.sessions.heartbeat_s,
            orphan_grace_s=settings.sessions.orphan_grace_s,
            journal_sync=settings.journal.sync,
            journal_file_bytes=settings.journal.file_bytes,
            rlimits=tuple(limits_for(self.caps(plan))) if watched else (("CORE", 0),),
            children=children,
            resumes_after=session.lost_to,
            # Each of these follows from an entry that was written before: a workflow has steps, and no turns.
            has_begun=bool(info.turn or info.resumed_from or (plan.workflow is not None and children)),
            open_permits=self.open_permits(session.id),
            authorities=all_authorities(
                plan.spec,
                settings.permissions,
                cwd=plan.cwd,
                private_dirs=self._private_dirs,
                inherited=plan.inherited,
            ),
            grants=self.grants_of(session),
            answers=kept_answers(info),
        )

    async def _admit(self, session: Session, pid: int) -> None:
        """Puts the worker where its cap holds, and looks whether it is there. Raises IsolationError."""
        enclosure = session.enclosure
        assert enclosure is not None
        if enclosure.kind == "cgroup":
            await self._c.in_thread(_admit, enclosure, pid)
        else:
            enclosure.admit(pid)

    async def _send_birth(self, lease: Lease, data: bytes) -> None:
        if lease.channel is None:
            return  # It died meanwhile, and has been buried.
        try:
            await self._c.loop.sock_sendall(lease.channel, len(data).to_bytes(4, "big") + data)
        except OSError as error:
            # The worker is dead or dying; its exit is what counts, and it is on its way.
            self._c.log(f"the worker did not take its birth: {error.strerror}", worker=lease.pid)

    async def _note_incarnation(self, session: Session, incarnation: Incarnation, pid: int) -> None:
        identity = identify(pid)
        incarnation.start_ticks = identity.start_ticks if identity is not None else 0
        await self._c.database.put_incarnation(incarnation_row(session, incarnation), durable=False)

    @staticmethod
    def _timed_out(incarnation: Incarnation) -> None:
        if incarnation.identity is None and not incarnation.is_over:
            incarnation.end_intent = "start_failed"
            incarnation.send_signal(signal.SIGKILL)


def _admit(enclosure: Enclosure, pid: int) -> None:
    enclosure.admit(pid)
    if not enclosure.holds(pid):
        raise IsolationError(f"worker {pid} is not where its cap holds", mend="see `ottoctl doctor`")


def _birth_failure(error: Exception) -> Cause:
    if not isinstance(error, OttoError):
        return Cause(kind="start_failed", message=f"the birth failed: {error!r}"[:500])
    return Cause(kind="auth" if error.code == "auth" else "start_failed", message=error.message, code=error.code)


def bounded_notices(infos: Iterable[SessionInfo]) -> tuple[ChildNotice, ...]:
    """News of ended children for a birth, as many as fit; the worker is told of the others once it is ready."""
    notices: list[ChildNotice] = []
    size = 0
    for info in infos:
        notice = child_notice(info)
        size += len(notice.result) + len(notice.title) + 512
        if size > MAX_NOTICES_BYTES:
            break
        notices.append(notice)
    return tuple(notices)
