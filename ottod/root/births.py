"""From a start request to a worker that has been born; and from a lost worker to the next incarnation."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from ottod.core.resume import in_words
from ottod.errors import OttoError, RefusedError
from ottod.ids import key_from_bytes, session_id
from ottod.isolation.enclosure import Caps, Enclosure, IsolationError
from ottod.isolation.processes import identify
from ottod.isolation.rlimits import limits_for
from ottod.protocol.birth import Birth, ChildNotice, births
from ottod.protocol.cause import Cause
from ottod.protocol.events import SessionCreated
from ottod.protocol.policy import Authority, StandingGrant
from ottod.protocol.requests import StartSession
from ottod.protocol.results import SessionInfo
from ottod.protocol.sinks import SinkGrants
from ottod.protocol.specs import AgentSpec
from ottod.root.burials import incarnation_row
from ottod.root.context import RootContext
from ottod.root.definitions import NOTHING_KEPT, Kept, definitions_of
from ottod.root.heritage import Heritage
from ottod.root.learning import learns
from ottod.root.plan import SessionPlan
from ottod.root.process import remove_tree
from ottod.root.resolve import Resolver, ServerSecrets, Wanted
from ottod.root.rulings import MAX_INHERITED, all_authorities, handed_down
from ottod.root.session_table import Incarnation, Session, child_notice
from ottod.root.zygote_client import Lease
from ottod.settings.units import plural

TITLE_CHARS = 80
MAX_TRACEPARENT_CHARS = 64
MAX_NAMES_BYTES = 48 * 1024
"""Of everything that a session is called: its agent, model, directory, title."""

MAX_NOTICES_BYTES = 256 * 1024
"""Of the news of ended children in one birth."""

OnFailure = Callable[[Session, Cause], None]


class Secrets(NamedTuple):
    """What a worker is told over its private channel, and nobody keeps."""

    api_keys: dict[str, str]
    for_servers: ServerSecrets
    for_sinks: SinkGrants


class Births:
    """Creates sessions and their incarnations. `is_closed` refuses new sessions.

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
        self._starting = 0
        self.is_closed = False
        self.started = 0
        self.on_joined: Callable[[Session], None] = lambda session: None
        self.admit: Callable[[SessionInfo, Session | None, str], str] = lambda info, parent, wanted: wanted
        """The name of a session that is about to be; raises RefusedError if it may not be."""
        self.on_refused: Callable[[Session], None] = lambda session: None
        self.open_permits: Callable[[str], tuple[str, ...]] = lambda session_id: ()
        """A session's permits that its earlier workers have not told the end of."""
        self.on_failed: OnFailure = lambda session, cause: None
        self.grants_of: Callable[[Session], tuple[StandingGrant, ...]] = lambda session: ()
        self.on_worker_exit: Callable[..., None] = lambda session, incarnation, exit_: None

    async def create(
        self,
        request: StartSession,
        *,
        parent: Session | None = None,
        spawn_key: str = "",
        heritage: Heritage | None = None,
        kept: Kept = NOTHING_KEPT,
        hint: str = "",
        is_named: bool = False,
        looks_back_on: Session | None = None,
    ) -> Session:
        """Resolves a request, announces the session and lets its worker be born; returns when its row is written.

        Where nobody is named, the agent is found by the task, or by the `hint` of a parent.
        With a `heritage` the session goes on from another one's past, with that one's plan if it brings one. One that
        `is_named` bears the request's name for clients, too; one that `looks_back_on` a run is of that one's tree.
        Raises: OttoError with the code that says why not.
        """
        self._check_open()
        limit = self._c.settings.sessions.max_live
        if self._c.table.live_count + self._starting >= limit:
            raise RefusedError(
                f"{plural(limit, 'session')} {'is' if limit == 1 else 'are'} live already",
                code="too_many_sessions",
                mend="wait for some to end, or raise sessions.max_live in the daemon's configuration",
            )
        self._starting += 1
        try:
            key = self._new_key()
            directory = self._c.sessions_dir / session_id(key)
            if heritage is None or heritage.plan is None:
                # Who looks for help is not looked for.
                wanted = Wanted(hint=hint, besides=parent.info.agent if spawn_key and parent is not None else "")
                plan, api_keys = await self._c.in_thread(self._plan, request, directory, spawn_key, kept, wanted)
                is_step = bool(spawn_key) and parent is not None and parent.is_workflow
                plan = replace(
                    plan,
                    inherited=self._inherited(parent),
                    is_step=is_step,
                    hands_whole=heritage is not None and _hands_whole(parent),
                    looks_back_on=looks_back_on.id if looks_back_on is not None else "",
                )
                if is_step and request.spec is not None:
                    # It is narrowed for the step, and still the definition that the workflow was started with.
                    plan = replace(plan, spec=replace(plan.spec, digest=request.spec.digest))
                if heritage is not None:
                    plan = replace(plan, spec=_asked_like(plan.spec, parent))
                    if not plan.spec.tools:
                        heritage = replace(heritage, snapshot=in_words(heritage.snapshot))
                    await self._c.in_thread(_write_down, heritage, directory, key)
            else:
                plan, api_keys = await self._c.in_thread(self._inherit, heritage, request, directory, key)
            session = Session(self._new_info(key, request, plan, directory, parent, heritage), plan)
            session.info = replace(session.info, is_named=is_named)
            if looks_back_on is not None:
                session.info = replace(session.info, tree=looks_back_on.info.tree or looks_back_on.id)
            if self.is_closed or (
                parent is not None and (parent.has_ended or parent.is_stopping or parent.is_ending)
            ):
                self._c.threads.submit(remove_tree, directory)
                self._check_open()
                raise RefusedError(f"{request.parent} is ending", code="session_ended")
            try:
                check_encodable(session.info)
                if parent is not None and parent.plan is not None:
                    # Looked at again: others may have been started while this one was resolved.
                    check_room(parent, parent.plan.spec.limits.max_children)
                session.info = replace(session.info, name=self.admit(session.info, parent, request.name))
            except OttoError:
                self._c.threads.submit(remove_tree, directory)
                raise
            self._join(session, parent)
        finally:
            self._starting -= 1
        self.started += 1
        # The worker is forked while the rows are written. Nobody hears of the session, its worker included, before
        # they are: a root that dies now must leave nothing that the next one does not know.
        self.bear_soon(session, api_keys)
        try:
            await self._c.database.put_plan(
                session.id, msgspec.msgpack.encode(plan), start_key=request.key, definitions=definitions_of(plan)
            )
            await self._c.database.put_session(session.info, durable=False)
        except OttoError:
            # Nobody has heard of it, and nobody will.
            self._take_back(session, parent)
            raise
        self.announce(session)
        session.announced.set()
        return session

    def _plan(
        self, request: StartSession, directory: Path, spawn_key: str, kept: Kept, wanted: Wanted
    ) -> tuple[SessionPlan, dict[str, str]]:
        """On a thread: what the session is made from, and the keys that its models need."""
        resolved = self._resolver.resolve(request, directory, kept, wanted)
        plan = SessionPlan(
            spec=resolved.spec,
            models=resolved.models,
            env=resolved.env,
            server_env=resolved.server_env,
            tool_files=resolved.tool_files,
            workflow=resolved.workflow,
            cwd=resolved.cwd,
            spawn_key=spawn_key,
            start_key=request.key,
            traceparent=request.traceparent[:MAX_TRACEPARENT_CHARS],
            routed=resolved.routed,
        )
        return plan, resolved.api_keys

    def _inherit(
        self, heritage: Heritage, request: StartSession, directory: Path, key: int
    ) -> tuple[SessionPlan, dict[str, str]]:
        """The same for a session that goes on from another one's past; its journal begins with that."""
        assert heritage.plan is not None
        api_keys = self._resolver.take_over(heritage.plan, directory)
        _write_down(heritage, directory, key)
        plan = replace(heritage.plan, spawn_key="", start_key=request.key, traceparent=request.traceparent, routed="")
        return plan, api_keys

    def _inherited(self, parent: Session | None) -> tuple[Authority, ...]:
        """What binds a child from above. Raises RefusedError if that is more than can be handed on."""
        if parent is None or parent.plan is None:
            return ()
        rules = self._c.settings.permissions
        found = handed_down(parent.id, parent.plan.spec, rules, parent.plan.inherited)
        if len(found) > MAX_INHERITED:
            raise RefusedError(
                f"{parent.id} is bound by the rules of {len(found)} others; {MAX_INHERITED} is the limit",
                code="too_deep",
                mend="start it further up",
            )
        return found

    def _take_back(self, session: Session, parent: Session | None) -> None:
        session.is_refused = True
        session.announced.set()
        if parent is not None:
            parent.children.pop(session.id, None)
        self._c.table.discard(session)
        self.on_refused(session)
        self._c.threads.submit(remove_tree, self._c.sessions_dir / session.id)
        self._c.spawn(self._unwrite(session))

    async def _unwrite(self, session: Session) -> None:
        """Half of its rows may be there, or wait for space."""
        with contextlib.suppress(OttoError):
            await self._c.database.delete_session(session.id)

    def announce(self, session: Session) -> None:
        """The session's first event."""
        first_offset = self._c.record(session, self._created_event(session))
        self._c.table.update(session, replace(session.info, first_offset=first_offset))

    def _check_open(self) -> None:
        if self.is_closed:
            raise RefusedError("the daemon is stopping", code="stopping", mend="start it again, then retry")

    def _join(self, session: Session, parent: Session | None) -> None:
        if parent is not None:
            session.is_top = False
            parent.children[session.id] = session
            parent.has_had_children = True
        self._c.table.add(session)
        self.on_joined(session)

    def _new_key(self) -> int:
        while True:
            key = key_from_bytes(os.urandom(8))
            if self._c.table.get(session_id(key)) is None and self._c.hub.ring.last_seq(key) == 0:
                return key

    def _new_info(
        self,
        key: int,
        request: StartSession,
        plan: SessionPlan,
        directory: Path,
        parent: Session | None,
        heritage: Heritage | None,
    ) -> SessionInfo:
        return SessionInfo(
            session=session_id(key),
            agent=plan.spec.name,
            model=plan.model_name,
            state="starting",
            kind=plan.spec.kind,
            title=(request.title or " ".join(request.task.split()))[:TITLE_CHARS],
            task=request.task,
            cwd=plan.cwd,
            parent=request.parent,
            mode=request.mode,
            run_mode=request.run_mode,
            incarnation=1,
            created_at_ns=time.time_ns(),
            agent_source=plan.spec.source,
            agent_digest=plan.spec.digest,
            routed=plan.routed,
            journal=str(directory / "journal"),
            restart=plan.spec.restart.policy,
            memory_cap_bytes=self.caps(plan).memory_bytes or 0,
            tree=_tree(parent, heritage) or session_id(key),
            turn=heritage.snapshot.turn if heritage is not None else 0,
            resumed_from=heritage.origin if heritage is not None else "",
            resumed_turn=heritage.snapshot.turn if heritage is not None else 0,
            budgets=heritage.books(session_id(key)) if heritage is not None else (),
            step=plan.step,
        )

    @staticmethod
    def _created_event(session: Session) -> SessionCreated:
        info = session.info
        return SessionCreated(
            agent=info.agent,
            model=info.model,
            kind="agent" if info.kind == "agent" else "workflow" if info.kind == "workflow" else "harness",
            title=info.title,
            cwd=info.cwd,
            parent=info.parent,
            run_mode="headless" if info.run_mode == "headless" else "interactive",
            agent_digest=info.agent_digest,
            resumed_from=info.resumed_from,
            name=info.name,
            routed=info.routed,
        )

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

    # ------------------------------------------------------------ incarnations

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


def _write_down(heritage: Heritage, directory: Path, key: int) -> None:
    """On a thread: the new session's journal begins with it. Raises StorageError, and leaves nothing then."""
    try:
        heritage.write(directory, key)
    except OttoError:
        remove_tree(directory)
        raise


def _tree(parent: Session | None, heritage: Heritage | None) -> str:
    if parent is not None:
        return parent.info.tree or parent.id
    return heritage.tree if heritage is not None else ""


def _admit(enclosure: Enclosure, pid: int) -> None:
    enclosure.admit(pid)
    if not enclosure.holds(pid):
        raise IsolationError(f"worker {pid} is not where its cap holds", mend="see `ottoctl doctor`")


def _birth_failure(error: Exception) -> Cause:
    if not isinstance(error, OttoError):
        return Cause(kind="start_failed", message=f"the birth failed: {error!r}"[:500])
    return Cause(kind="auth" if error.code == "auth" else "start_failed", message=error.message, code=error.code)


def check_room(parent: Session, max_children: int) -> None:
    """Raises RefusedError if the parent has as many live children as it may."""
    if len(parent.children) >= max_children:
        raise RefusedError(
            f"{parent.id} has {max_children} live children already",
            code="too_many_children",
            mend="wait for one to end, or raise limits.max_children of its agent",
        )


def _hands_whole(parent: Session | None) -> bool:
    """Whether all of the answer is wanted of whom this session hands over to: by a step's workflow, or as data."""
    plan = parent.plan if parent is not None else None
    return plan is not None and (plan.is_step or plan.hands_whole or bool(plan.spec.output_schema))


def _asked_like(spec: AgentSpec, parent: Session | None) -> AgentSpec:
    """The successor of a session: what that one's answer must be its own must be, unless it has a form of its own."""
    if parent is None or parent.plan is None or spec.output_schema:
        return spec
    return replace(spec, output_schema=parent.plan.spec.output_schema)


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


def check_encodable(info: SessionInfo) -> None:
    """Refuses what no event or reply could carry, before anybody hears of the session. Raises RefusedError."""
    try:
        size = len(msgspec.msgpack.encode(replace(info, task="")))
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"a name is not valid text: {error.object!r}"[:300], code="bad_cwd", mend="use a path in UTF-8"
        ) from error
    if size > MAX_NAMES_BYTES:
        raise RefusedError(f"the session's names take {size} bytes; {MAX_NAMES_BYTES} is the limit", code="too_large")
