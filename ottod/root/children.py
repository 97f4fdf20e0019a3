"""Children that workers ask for, and their ends; and what parents are told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ottod.core.resume import heir, successor
from ottod.core.waits import Wait, Waits
from ottod.errors import OttoError, RefusedError
from ottod.protocol.birth import ChildNotice
from ottod.protocol.requests import StartSession
from ottod.protocol.worker_requests import FindChild, SpawnChild, StopChild
from ottod.root.context import RootContext
from ottod.root.creations import Creations, check_room
from ottod.root.definitions import NOTHING_KEPT, Kept
from ottod.root.groups import Groups
from ottod.root.heritage import Heritage
from ottod.root.plan import SessionPlan
from ottod.root.session_table import NoSuchSession, Session, child_notice
from ottod.root.workflow_plans import step_request
from ottod.settings.units import plural
from ottod.storage.journal_history import read_history

COMMAND_TIMEOUT_S = 10.0
TELL_ATTEMPTS = 30
TELL_AGAIN_S = 0.5
"""Between two attempts to tell a worker that is not ready yet, or takes no messages."""
MAX_REASON_CHARS = 2000
HANDOFF_TOOL = "handoff"
HANDED_OVER = "The conversation is handed over to {}, who works on from here."
"""What stands for the result of the call, in the conversation that the successor has."""
SPAWN_TOOL = "spawn_agent"
"""What an agent must have been given for its worker to start others."""


class Children:
    """Starts and stops children for their parents' workers, and tells parents of their children."""

    def __init__(self, context: RootContext, creations: Creations, groups: Groups) -> None:
        self._c = context
        self._creations = creations
        self._spawning: dict[str, asyncio.Future[Session]] = {}
        self.waits = Waits()
        """Who waits for whom, of all sessions."""
        self.begin_stop: Callable[[Session, str], None] = lambda session, reason: None
        groups.on_child_ended = self.child_ended

    # ------------------------------------------------------------ starting

    def check_parent(self, parent: Session) -> None:
        """Raises RefusedError if this session can have no child more."""
        if parent.has_ended or parent.is_stopping or parent.is_ending:
            raise RefusedError(
                f"{parent.id} has ended or is stopping", code="session_ended", mend="name a live session as parent"
            )
        limits = parent.plan.spec.limits if parent.plan is not None else None
        if limits is None:
            raise RefusedError(f"{parent.id} cannot have children", code="refused")
        check_room(parent, limits.max_children)
        self._check_depths(parent)

    def _check_depths(self, parent: Session) -> None:
        """Raises RefusedError if the tree below any session above would be deeper than that one allows."""
        above: Session | None = parent
        below = 0
        while above is not None:
            allowed = above.plan.spec.limits.max_depth if above.plan is not None else None
            if allowed is not None and below >= allowed:
                levels = f"{plural(allowed, 'level')} of sessions below it"
                stands = f", and {parent.info.name or parent.id} is {below} below" if below else ""
                raise RefusedError(
                    f"{above.info.name or above.id} allows {levels}{stands}",
                    code="too_deep",
                    mend=f"raise limits.max_depth of {above.info.agent}",
                )
            above = None if above.is_top else self._c.table.get(above.info.parent)
            below += 1

    async def start(
        self,
        request: StartSession,
        parent: Session,
        spawn_key: str = "",
        *,
        kept: Kept = NOTHING_KEPT,
        hint: str = "",
        heritage: Heritage | None = None,
        is_named: bool = False,
    ) -> Session:
        """Starts a child and tells the parent. Raises OttoError."""
        self.check_parent(parent)
        child = await self._creations.create(
            request, parent=parent, spawn_key=spawn_key, heritage=heritage, kept=kept, hint=hint, is_named=is_named
        )
        self._notify(parent, child)
        return child

    async def spawn(self, parent: Session, body: SpawnChild) -> Session:
        """The child that a worker asks for, started once for each key. Raises OttoError."""
        child = await self._spawn(parent, body)
        if body.waits and body.key and not child.has_ended:
            self.waits.begin(f"{parent.id}/{body.key}", Wait(asker=parent.id, targets=(child.id,), for_end=True))
        return child

    async def _spawn(self, parent: Session, body: SpawnChild) -> Session:
        if not body.key:
            return await self._spawn_new(parent, body, "")
        key = f"{parent.id}/{body.key}"
        # A worker that has lost its root asks again, perhaps while the first answer is on its way.
        if (spawning := self._spawning.get(key)) is not None:
            return await asyncio.shield(spawning)
        task = self._spawning[key] = asyncio.ensure_future(self._spawn_once(parent, body, key))
        try:
            return await asyncio.shield(task)
        finally:
            self._spawning.pop(key, None)

    async def find(self, parent: Session, body: FindChild) -> Session:
        """The child that was started for a key, perhaps for a worker that could not note it. Raises OttoError."""
        key = f"{parent.id}/{body.key}"
        if (spawning := self._spawning.get(key)) is not None:
            return await asyncio.shield(spawning)
        if known := await self._c.database.session_by_key(key):
            return await self._known(parent, known)
        raise RefusedError(f"nothing was started for {body.key[:100]}", code="not_started")

    async def _spawn_once(self, parent: Session, body: SpawnChild, key: str) -> Session:
        known = await self._c.database.session_by_key(key)
        return await self._known(parent, known) if known else await self._spawn_new(parent, body, key)

    async def _spawn_new(self, parent: Session, body: SpawnChild, key: str) -> Session:
        plan, info = parent.plan, parent.info
        assert plan is not None
        heritage: Heritage | None = None
        if body.step:
            if body.handoff:
                heritage = await self._past_of(parent, body.handoff)
            return await self.start(step_request(parent, plan, body, key), parent, body.key, heritage=heritage)
        if body.handoff:
            check_handoff(parent, plan, body)
            heritage = await self._c.in_thread(self._heritage, parent.id, body)
        elif SPAWN_TOOL not in plan.spec.tools:
            raise RefusedError(f"{plan.spec.name} may not start agents", mend=f"add {SPAWN_TOOL} to its tools")
        request = StartSession(
            agent=body.agent,
            task=body.task,
            cwd=plan.cwd,
            env={**plan.env, **plan.server_env},
            model=body.model,
            title=body.title,
            parent=parent.id,
            run_mode="headless" if info.run_mode == "headless" else "interactive",
            key=key,
            traceparent=body.traceparent,
            name=body.name,
            mode=body.mode,
        )
        return await self.start(request, parent, body.key, hint=body.hint, heritage=heritage)

    def _heritage(self, parent_id: str, body: SpawnChild) -> Heritage:
        """On a thread: the conversation of a session that hands it over. Raises StorageError, RefusedError."""
        entries = read_history(self._c.sessions_dir / parent_id).entries
        told = HANDED_OVER.format(body.agent)
        snapshot = successor(entries, origin=parent_id, call=body.handoff, told=told)
        return Heritage(origin=parent_id, plan=None, snapshot=snapshot)

    async def _past_of(self, parent: Session, ended: str) -> Heritage | None:
        """The conversation of an ended child, for another one to go on with; None where there is none to be had."""
        found = await self._c.database.session_by_prefix(ended[:MAX_REASON_CHARS], limit=1)
        if not found or found[0].session != ended or found[0].parent != parent.id:
            raise RefusedError(f"{ended[:100]} is no step of {parent.id}", code="refused")
        try:
            entries = (await self._c.in_thread(read_history, self._c.sessions_dir / ended)).entries
            return Heritage(origin=ended, plan=None, snapshot=heir(entries, origin=ended))
        except OttoError as error:
            self._c.log(f"nothing is known of how far it came: {error.message}", session=ended)
            return None

    async def _known(self, parent: Session, session_id: str) -> Session:
        """A child that an earlier incarnation asked for. If it has ended, the parent is told again."""
        child = self._c.table.get(session_id)
        if child is None:
            found = await self._c.database.session_by_prefix(session_id, limit=1)
            if not found:
                raise NoSuchSession(f"the child {session_id} has been removed")
            child = Session(found[0], None)
        self._notify(parent, child)
        return child

    def stop(self, parent: Session, body: StopChild) -> Session:
        """Begins to stop a child. Raises NoSuchSession."""
        child = parent.children.get(body.child) or self._c.table.get(body.child)
        if child is None or child.info.parent != parent.id:
            raise NoSuchSession(f"{body.child[:100]} is no child of {parent.id}")
        if not child.has_ended and not parent.is_stopping:
            reason = body.reason[:MAX_REASON_CHARS] or "its parent stopped it"
            if body.when_idle:
                self._c.spawn(self._stop_when_idle(parent, child, reason))
            else:
                # While the parent itself is stopped its children go in their order, not all at once.
                self.begin_stop(child, reason)
        return child

    async def _stop_when_idle(self, parent: Session, child: Session, reason: str) -> None:
        await child.until_ended(self._c.loop, or_idle=True)
        if not child.has_ended and not parent.is_stopping:
            self.begin_stop(child, reason)

    # ------------------------------------------------------------ news for parents

    def child_ended(self, child: Session) -> None:
        """A child with a live parent has ended."""
        parent = self._c.table.get(child.info.parent)
        if parent is not None and not parent.has_ended:
            self._notify(parent, child)

    async def remind(self, parent: Session) -> None:
        """Tells an adopted parent of all its children again: what an earlier root had to tell may not have come."""
        for info in reversed(await self._c.database.children(parent.id)):
            # The table knows better: a row may be a moment behind.
            child = self._c.table.get(info.session) or Session(info, None)
            if child.has_ended or child.id in parent.children:
                self._notify(parent, child)

    def _notify(self, parent: Session, child: Session) -> None:
        self._c.spawn(self._tell(parent, child_notice(child.info)))

    async def _tell(self, parent: Session, notice: ChildNotice) -> None:
        """Tells the present worker until it says that it has heard. A later one learns of it from its birth."""
        incarnation = parent.incarnation
        for _ in range(TELL_ATTEMPTS):
            if parent.has_ended or parent.incarnation is not incarnation or incarnation is None:
                return
            if await self._c.gate.command(parent, notice, timeout_s=COMMAND_TIMEOUT_S) is None:
                return
            await asyncio.sleep(TELL_AGAIN_S)


def check_handoff(parent: Session, plan: SessionPlan, body: SpawnChild) -> None:
    """Raises RefusedError unless the agent's own definition names this one, and it has no children that work."""
    if HANDOFF_TOOL not in plan.spec.tools or body.agent not in plan.spec.handoffs:
        named = ", ".join(plan.spec.handoffs) or "nobody"
        raise RefusedError(
            f"{plan.spec.name} may not hand over to {body.agent[:100]}; it may to {named}",
            code="no_handoff",
            mend="name others under `handoffs` in its file",
        )
    if any(not child.has_ended for child in parent.children.values()):
        raise RefusedError(
            f"agents that {parent.id} started still work", code="has_children", mend="wait for them with await_agents"
        )
