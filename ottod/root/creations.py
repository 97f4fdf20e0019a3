"""From a request to a session: what it is made from, its place, its rows, its first event."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ottod.core.resume import in_words
from ottod.errors import OttoError, RefusedError
from ottod.ids import key_from_bytes, session_id
from ottod.protocol.events import SessionCreated
from ottod.protocol.policy import Authority
from ottod.protocol.requests import StartSession
from ottod.protocol.results import SessionInfo
from ottod.root.births import Births
from ottod.root.context import RootContext
from ottod.root.definitions import NOTHING_KEPT, Kept, definitions_of
from ottod.root.heritage import Heritage
from ottod.root.plan import SessionPlan
from ottod.root.process import remove_tree
from ottod.root.resolve import Resolver, Wanted
from ottod.root.rulings import MAX_INHERITED, handed_down
from ottod.root.session_table import Session
from ottod.settings.units import plural

TITLE_CHARS = 80
MAX_TRACEPARENT_CHARS = 64
MAX_NAMES_BYTES = 48 * 1024
"""Of everything that a session is called: its agent, model, directory, title."""


class Creations:
    """Creates sessions, whose workers `births` brings to life. `is_closed` refuses new ones."""

    def __init__(self, context: RootContext, *, resolver: Resolver, births: Births) -> None:
        self._c = context
        self._resolver = resolver
        self._births = births
        self._starting = 0
        self.is_closed = False
        self.started = 0
        self.on_joined: Callable[[Session], None] = lambda session: None
        self.admit: Callable[[SessionInfo, Session | None, str], str] = lambda info, parent, wanted: wanted
        """The name of a session that is about to be; raises RefusedError if it may not be."""
        self.on_refused: Callable[[Session], None] = lambda session: None

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
        self._check_limit()
        key = self._new_key()
        directory = self._c.sessions_dir / session_id(key)
        self._starting += 1
        try:
            if heritage is None or heritage.plan is None:
                # Who looks for help is not looked for.
                wanted = Wanted(hint=hint, besides=parent.info.agent if spawn_key and parent is not None else "")
                plan, api_keys = await self._c.in_thread(self._plan, request, directory, spawn_key, kept, wanted)
                plan = self._placed(plan, request, parent, looks_back_on)
                if heritage is not None:
                    plan = _succeeding(plan, parent)
                    await self._c.in_thread(_write_down, _readable(heritage, plan), directory, key)
            else:
                plan, api_keys = await self._c.in_thread(self._inherit, heritage, request, directory, key)
            info = self._new_info(key, request, plan, directory, parent, heritage)
            if looks_back_on is not None:
                info = replace(info, tree=looks_back_on.info.tree or looks_back_on.id)
            session = Session(self._admitted(replace(info, is_named=is_named), request, parent), plan)
            self._join(session, parent)
        except OttoError:
            self._c.threads.submit(remove_tree, directory)
            raise
        finally:
            self._starting -= 1
        self.started += 1
        # The worker is forked while the rows are written. Nobody hears of the session, its worker included, before
        # they are: a root that dies now must leave nothing that the next one does not know.
        self._births.bear_soon(session, api_keys)
        await self._write(session, plan, parent)
        announce(self._c, session)
        session.announced.set()
        return session

    def _check_limit(self) -> None:
        limit = self._c.settings.sessions.max_live
        if self._c.table.live_count + self._starting >= limit:
            raise RefusedError(
                f"{plural(limit, 'session')} {'is' if limit == 1 else 'are'} live already",
                code="too_many_sessions",
                mend="wait for some to end, or raise sessions.max_live in the daemon's configuration",
            )

    def _placed(
        self, plan: SessionPlan, request: StartSession, parent: Session | None, looks_back_on: Session | None
    ) -> SessionPlan:
        """The plan with what follows from the session's place in its tree. Raises RefusedError."""
        is_step = bool(plan.spawn_key) and parent is not None and parent.is_workflow
        if is_step and request.spec is not None:
            # It is narrowed for the step, and still the definition that the workflow was started with.
            plan = replace(plan, spec=replace(plan.spec, digest=request.spec.digest))
        return replace(
            plan,
            inherited=self._inherited(parent),
            is_step=is_step,
            looks_back_on=looks_back_on.id if looks_back_on is not None else "",
        )

    def _admitted(self, info: SessionInfo, request: StartSession, parent: Session | None) -> SessionInfo:
        """With its name, if it may be: it was resolved meanwhile, which takes a while. Raises RefusedError."""
        self._check_open()
        if parent is not None and (parent.has_ended or parent.is_stopping or parent.is_ending):
            raise RefusedError(f"{request.parent} is ending", code="session_ended")
        check_encodable(info)
        if parent is not None and parent.plan is not None:
            # Others may have been started meanwhile.
            check_room(parent, parent.plan.spec.limits.max_children)
        return replace(info, name=self.admit(info, parent, request.name))

    async def _write(self, session: Session, plan: SessionPlan, parent: Session | None) -> None:
        """Its rows. Raises StorageError: then it never was."""
        try:
            await self._c.database.put_plan(
                session.id, msgspec.msgpack.encode(plan), start_key=plan.start_key, definitions=definitions_of(plan)
            )
            await self._c.database.put_session(session.info, durable=False)
        except OttoError:
            # Nobody has heard of it, and nobody will.
            self._take_back(session, parent)
            raise

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
            memory_cap_bytes=self._births.caps(plan).memory_bytes or 0,
            tree=_tree(parent, heritage) or session_id(key),
            turn=heritage.snapshot.turn if heritage is not None else 0,
            resumed_from=heritage.origin if heritage is not None else "",
            resumed_turn=heritage.snapshot.turn if heritage is not None else 0,
            budgets=heritage.books(session_id(key)) if heritage is not None else (),
            step=plan.step,
        )


def announce(context: RootContext, session: Session) -> None:
    """The session's first event."""
    first_offset = context.record(session, _created_event(session))
    context.table.update(session, replace(session.info, first_offset=first_offset))


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


def check_room(parent: Session, max_children: int) -> None:
    """Raises RefusedError if the parent has as many live children as it may."""
    if len(parent.children) >= max_children:
        raise RefusedError(
            f"{parent.id} has {max_children} live children already",
            code="too_many_children",
            mend="wait for one to end, or raise limits.max_children of its agent",
        )


def _succeeding(plan: SessionPlan, parent: Session | None) -> SessionPlan:
    """The plan of whom `parent` hands over to: what was asked of that one's answer is asked of this one's, unless it
    has a form of its own."""
    above = parent.plan if parent is not None else None
    if above is None:
        return plan
    spec = plan.spec if plan.spec.output_schema else replace(plan.spec, output_schema=above.spec.output_schema)
    # All of the answer is wanted by a step's workflow, or as data.
    hands_whole = above.is_step or above.hands_whole or bool(above.spec.output_schema)
    return replace(plan, spec=spec, hands_whole=hands_whole)


def _readable(heritage: Heritage, plan: SessionPlan) -> Heritage:
    """A past that the model may read."""
    return heritage if plan.spec.tools else replace(heritage, snapshot=in_words(heritage.snapshot))


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
