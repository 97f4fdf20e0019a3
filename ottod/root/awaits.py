"""Sessions that wait for the ends of others of their tree, and what they are told when it comes to that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ottod.core.team import Member
from ottod.core.waits import Wait
from ottod.errors import RefusedError
from ottod.protocol.cause import Cause
from ottod.protocol.results import SessionInfo
from ottod.protocol.worker_requests import AgentEnd, AwaitAgents, RequestReply, TeamReply
from ottod.root.context import RootContext
from ottod.root.questions import Questions
from ottod.root.session_table import Session
from ottod.root.teams import Teams

MAX_AWAITED = 500
MAX_RESULTS_BYTES = 256 * 1024
"""Of all results in one answer; each is cut to its share."""
MIN_RESULT_CHARS = 500


class Awaits:
    """Of this root."""

    def __init__(self, context: RootContext, teams: Teams, questions: Questions) -> None:
        self._c = context
        self._teams = teams
        self._questions = questions
        self._open: dict[str, tuple[str, asyncio.Future[None]]] = {}

    @property
    def open(self) -> int:
        """Calls that wait."""
        return len(self._open)

    async def wait(self, asker: Session, body: AwaitAgents) -> RequestReply:
        """Returns when all have ended, or any of them, with those that have. Raises RefusedError."""
        members = self._members(asker, body.names)
        key = f"{asker.id}/{body.key}"
        live = [m for m in members if self._is_live(m)]
        if live and not (body.mode == "any" and len(live) < len(members)):
            self._check(live)
            wait = Wait(asker=asker.id, targets=tuple(m.session for m in live), for_end=True, any=body.mode == "any")
            self._questions.check_circle(wait, key)
            await self._until(key, asker, live, body.mode)
        return RequestReply(id=0, team=TeamReply(ends=await self._ends(members)))

    def _members(self, asker: Session, names: Sequence[str]) -> list[Member]:
        if not 0 < len(names) <= MAX_AWAITED:
            raise RefusedError(f"name 1 to {MAX_AWAITED} agents", code="bad_arguments")
        team = self._teams.of(asker)
        found = {member.session: member for member in (team.find(name, asker=asker.id) for name in names)}
        return list(found.values())

    def _is_live(self, member: Member) -> bool:
        session = self._c.table.get(member.session)
        return session is not None and not session.has_ended

    def _check(self, members: Sequence[Member]) -> None:
        for member in members:
            session = self._c.table.get(member.session)
            if session is not None and session.info.mode == "conversation" and not session.is_stopping:
                raise RefusedError(
                    f"{member.name} is a conversation, which does not end by itself",
                    code="would_not_end",
                    mend="ask it with ask_agent, or end it with stop_agent",
                )

    async def _until(self, key: str, asker: Session, members: Sequence[Member], mode: str) -> None:
        sessions = [self._c.table.get(member.session) for member in members]
        tasks = [asyncio.ensure_future(s.until_ended(self._c.loop)) for s in sessions if s is not None]
        first = asyncio.FIRST_COMPLETED if mode == "any" else asyncio.ALL_COMPLETED
        given_up: asyncio.Future[None] = self._c.loop.create_future()
        self._open[key] = asker.id, given_up
        ends = asyncio.ensure_future(asyncio.wait(tasks, return_when=first))
        try:
            both: set[asyncio.Future[Any]] = {ends, given_up}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if given_up.done():
                raise RefusedError("the call was withdrawn", code="withdrawn")
        finally:
            for task in (*tasks, ends):
                task.cancel()
            if self._open.get(key, ("", None))[1] is given_up:
                del self._open[key]
                self._questions.over(key)

    def withdraw(self, asker: Session, key: str) -> None:
        """Nobody waits for these ends any more."""
        self._give_up(f"{asker.id}/{key}")

    def _give_up(self, key: str) -> None:
        _, given_up = self._open.get(key, ("", None))
        if given_up is not None and not given_up.done():
            given_up.set_result(None)

    def worker_gone(self, session: Session) -> None:
        """Its calls wait no more; the next incarnation makes them again."""
        for key in [key for key, (asker, _) in self._open.items() if asker == session.id]:
            self._give_up(key)

    # ------------------------------------------------------------ what is told

    async def _ends(self, members: Sequence[Member]) -> tuple[AgentEnd, ...]:
        ended = [member for member in members if not self._is_live(member)]
        room = max(MIN_RESULT_CHARS, MAX_RESULTS_BYTES // 4 // max(1, len(ended)))
        return tuple([await self._end(member, room) for member in ended])

    async def _end(self, member: Member, room: int) -> AgentEnd:
        info = await self._info(member)
        cause = (info.cause if info is not None else member.cause) or Cause(kind="failed", message="nobody knows how")
        result = info.result if info is not None else ""
        if len(result) > room:
            result = result[:room] + "…"
        return AgentEnd(session=member.session, name=member.name, role=member.role, cause=cause, result=result)

    async def _info(self, member: Member) -> SessionInfo | None:
        session = self._c.table.get(member.session)
        if session is not None:
            return session.info
        found = await self._c.database.session_by_prefix(member.session, limit=1)
        return found[0] if found else None
