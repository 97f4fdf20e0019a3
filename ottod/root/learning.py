"""What a run has taught: the session that brings the project's OTTO.md up to date after it.

It is a session of its own, of the agent `doc-maintainer`, in the tree of the run, whose artifacts it can read. It
begins when the run is over, so it holds up nothing and fails nothing; its change of OTTO.md waits for somebody's
leave. Where nobody can give that, in headless runs, none is started by itself.

Source: ADR 0030.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from ottod.core.project_notes import FILE_NAME
from ottod.core.run_brief import MAX_CONTENT_CHARS, TOLD_KINDS, LeftArtifact, LeftRun, LeftSession, brief, troubles
from ottod.errors import OttoError, RefusedError
from ottod.isolation.project_notes import notes_directory
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.requests import ListArtifacts, ReadArtifact, StartSession, UpdateNotes
from ottod.protocol.results import BudgetLine, SessionInfo, SessionStartedResult
from ottod.protocol.specs import Budgets
from ottod.root.artifacts import Artifacts, tree_of
from ottod.root.context import RootContext
from ottod.root.plan import SessionPlan
from ottod.root.resolve import Resolver
from ottod.root.session_table import Session
from ottod.settings.narrowing import narrower
from ottod.storage.journal_history import read_history

AGENT = "doc-maintainer"
MAX_SESSIONS = 40
"""Of a run, that are told of; their journals are read."""
MAX_ARTIFACTS = 200
READ_ATTEMPTS = 3
READ_AGAIN_S = 0.2
"""Between two looks into a journal: it may just be being compressed."""

Start = Callable[[StartSession, Session], Awaitable[SessionStartedResult]]
"""Starts a session that looks back on one that has ended, once for each key."""


class Learning:
    """Of this root."""

    def __init__(
        self,
        context: RootContext,
        resolver: Resolver,
        artifacts: Artifacts,
        *,
        start: Start,
        plan_of: Callable[[Session], Awaitable[SessionPlan]],
    ) -> None:
        self._c = context
        self._resolver = resolver
        self._artifacts = artifacts
        self._start = start
        self._plan_of = plan_of

    def ended(self, session: Session) -> None:
        """A session has ended: perhaps a run that is to be learned from."""
        plan, info = session.plan, session.info
        is_well = info.cause is not None and info.cause.kind == "completed"
        if plan is None or not (is_well and learns(plan, info)):
            return
        if info.run_mode == "headless":
            self._c.log(f"{FILE_NAME} stays as it is: nobody could agree to a change", session=session.id)
            return
        self._c.spawn(self._learn(session, plan))

    async def _learn(self, session: Session, plan: SessionPlan) -> None:
        """Nothing depends on it: whatever keeps it from being done is logged."""
        left = left_of(session.info.budgets, session.id)
        try:
            await self._begin(session, plan, key=f"learn/{session.id}", within=left)
        except OttoError as error:
            self._c.log(f"nothing is learned from it: {error.message}", session=session.id)

    async def update(self, session: Session, body: UpdateNotes) -> SessionStartedResult:
        """Begins a session that learns from one that has ended. Raises OttoError."""
        if not session.has_ended:
            raise RefusedError(
                f"{session.id} has not ended: what it teaches is not known yet",
                code="session_live",
                mend=f"wait for it: ottoctl wait {session.id}",
            )
        return await self._begin(session, await self._plan_of(session), key=body.key, model=body.model)

    async def _begin(
        self, session: Session, plan: SessionPlan, *, key: str, within: Budgets | None = None, model: str = ""
    ) -> SessionStartedResult:
        cwd = await self._c.in_thread(notes_directory, plan.cwd)
        request = StartSession(
            agent=AGENT,
            task=await self._brief(session, cwd),
            cwd=cwd,
            env={**plan.env, **plan.server_env},
            model=model or (plan.workflow.model if plan.workflow is not None else ""),
            title=f"what {session.id} has taught",
            key=key,
        )
        if within is not None:
            spec, _ = await self._c.in_thread(self._resolver.look_up, request)
            request = replace(request, agent="", spec=replace(spec, budgets=narrower(spec.budgets, within)))
        return await self._start(request, session)

    # ------------------------------------------------------------ what there is to learn from

    async def _brief(self, session: Session, cwd: str) -> str:
        sessions = await self._sessions(session.info)
        listed = await self._artifacts.list(ListArtifacts(limit=MAX_ARTIFACTS), tree=tree_of(session))
        run = LeftRun(
            task=session.info.task,
            result=session.info.result,
            sessions=tuple([await self._left(depth, info) for depth, info in sessions]),
            artifacts=tuple([await self._artifact(info) for info in listed.artifacts]),
        )
        has_notes = await self._c.in_thread(os.path.lexists, os.path.join(cwd, FILE_NAME))
        return brief(run, has_notes=has_notes)

    async def _sessions(self, top: SessionInfo) -> list[tuple[int, SessionInfo]]:
        """The run's, with their depth, each before those below it."""
        found: list[tuple[int, SessionInfo]] = []
        waiting = [(0, top)]
        while waiting and len(found) < MAX_SESSIONS:
            depth, info = waiting.pop()
            found.append((depth, info))
            # They come newest first, and so leave the list oldest first.
            waiting += [(depth + 1, child) for child in await self._c.database.children(info.session)]
        return found

    async def _left(self, depth: int, info: SessionInfo) -> LeftSession:
        # A row may be a moment behind.
        info = known.info if (known := self._c.table.get(info.session)) is not None else info
        return LeftSession(
            session=info.session,
            name=info.step or info.name or info.agent,
            cause=str(info.cause) if info.cause is not None else info.state,
            depth=depth,
            title=info.title if depth else "",
            troubles=await self._troubles(info.session),
        )

    async def _troubles(self, session_id: str) -> tuple[str, ...]:
        for attempt in range(READ_ATTEMPTS):
            try:
                return await self._c.in_thread(_troubles_in, self._c.sessions_dir / session_id)
            except OttoError:
                if attempt + 1 < READ_ATTEMPTS:
                    await asyncio.sleep(READ_AGAIN_S)
        return ()  # It has no journal, or none that can be read.

    async def _artifact(self, info: ArtifactInfo) -> LeftArtifact:
        text = ""
        if info.kind in TOLD_KINDS:
            part = await self._artifacts.read(ReadArtifact(artifact=info.artifact, length=4 * MAX_CONTENT_CHARS))
            text = part.data.decode("utf-8", "replace")
        return LeftArtifact(name=f"{info.name}@{info.version}", kind=info.kind, size_bytes=info.size_bytes, text=text)


def _troubles_in(directory: Path) -> tuple[str, ...]:
    """On a thread. Raises StorageError."""
    return troubles(read_history(directory).entries)


def learns(plan: SessionPlan, info: SessionInfo) -> bool:
    """Whether its end is to be learned from: it asks for it, is no part of another run, and looks back on none."""
    return plan.spec.learn and not info.parent and not plan.looks_back_on


def left_of(budgets: Sequence[BudgetLine], session: str) -> Budgets:
    """What a session has left of its own budgets."""
    left = {line.budget: max(0, line.limit - line.spent) for line in budgets if line.session == session}
    usd = left.get("usd_micros")
    return Budgets(tokens=left.get("tokens"), usd=None if usd is None else usd / 1_000_000)
