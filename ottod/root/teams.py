"""The teams of all trees: every session's name, kept with it in the database, and who is there to be spoken to.

A team is in memory as long as somebody of its tree lives. What an earlier root knew of it is read from the database
at boot, so a name means the same session before and after.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from msgspec.structs import replace

from ottod.core.team import Member, Team
from ottod.errors import RefusedError
from ottod.protocol.results import SessionInfo
from ottod.protocol.worker_requests import AgentCard
from ottod.root.artifacts import tree_of
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.settings.units import plural
from ottod.storage import database_rows as rows

MAX_RESTORED = 100_000
MAX_CARDS = 500
"""Members in one answer; the newest that have ended are left out first."""


class Teams:
    """Of this root. The table has the sessions; here is what they are called."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._teams: dict[str, Team] = {}

    def __len__(self) -> int:
        return len(self._teams)

    def of(self, session: Session) -> Team:
        """The team of a session that lives."""
        return self._teams.setdefault(tree_of(session), Team())

    async def restore(self) -> None:
        """Takes over what an earlier root knew. The table has the sessions that live. Raises StorageError."""
        if not self._c.table.live_count:
            return
        for info in await self._c.database.query(_select_live_trees):
            session = self._c.table.get(info.session)
            self._restore(session.info if session is not None else info)
        self._sweep()

    def _restore(self, info: SessionInfo) -> None:
        team = self._teams.setdefault(info.tree or info.session, Team())
        # A session of a version without names has one from now on.
        name = info.name or team.name_for(info.agent)
        team.join(_member(info, name))
        session = self._c.table.get(info.session)
        if session is not None and not info.name:
            self._c.table.update(session, replace(session.info, name=name))

    def _sweep(self) -> None:
        for tree in [tree for tree, team in self._teams.items() if not team.live]:
            del self._teams[tree]

    # ------------------------------------------------------------ coming and going

    def admit(self, info: SessionInfo, parent: Session | None, wanted: str) -> str:
        """The name of a session that is about to be, if there may be one more of its role. Raises RefusedError."""
        if parent is not None:
            self._check_roles(info.agent, parent)
        team = self._teams.get(info.tree) or Team()
        name = team.name_for(info.agent, wanted)
        holder = self._c.table.named(name) if info.is_named else None
        if holder is not None:
            raise RefusedError(
                f"{name} is {holder.id}, which lives",
                code="name_taken",
                mend=f"choose another name, or end that one: ottoctl stop {name}",
            )
        return name

    def _check_roles(self, role: str, parent: Session) -> None:
        team = self.of(parent)
        above: Session | None = parent
        while above is not None:
            limits = above.plan.spec.limits if above.plan is not None else None
            cap = limits.max_per_role.get(role) if limits is not None else None
            if cap is not None and team.count_below(above.id, role) >= cap:
                many = f"{plural(cap, 'session')} below {above.info.name or above.id} {'runs' if cap == 1 else 'run'}"
                raise RefusedError(
                    f"{many} {role} already",
                    code="too_many_of_role",
                    mend=f"wait for one to end, or raise limits.max_per_role of {above.info.agent}",
                )
            above = None if above.is_top else self._c.table.get(above.info.parent)

    def joined(self, session: Session) -> None:
        """It is in the table."""
        self.of(session).join(_member(session.info, session.info.name))

    def left(self, session: Session) -> None:
        """It never came to be."""
        self._leave(session, lambda team: team.left(session.id))

    def ended(self, session: Session) -> None:
        """It has ended."""
        cause = session.info.cause
        assert cause is not None
        self._leave(session, lambda team: team.ended(session.id, cause))

    def _leave(self, session: Session, leave: Callable[[Team], None]) -> None:
        tree = tree_of(session)
        team = self._teams.get(tree)
        if team is not None:
            leave(team)
            if not team.live:
                del self._teams[tree]

    # ------------------------------------------------------------ for workers

    def cards(self, session: Session) -> tuple[AgentCard, ...]:
        """The members as one of them sees them: those that live, then the newest that have ended."""
        team = self.of(session)
        members = team.members
        live = [m for m in members if m.cause is None]
        ended = [m for m in members if m.cause is not None]
        room = max(0, MAX_CARDS - len(live))
        return tuple(self._card(team, member) for member in (*live[:MAX_CARDS], *ended[len(ended) - room :]))

    def _card(self, team: Team, member: Member) -> AgentCard:
        session = self._c.table.get(member.session)
        above = team.get(member.parent)
        info = session.info if session is not None else None
        return AgentCard(
            session=member.session,
            name=member.name,
            role=member.role,
            state="ended" if member.cause is not None or info is None else info.state,
            above=above.name if above is not None else "",
            mode=info.mode if info is not None else "oneshot",
            title=info.title if info is not None else "",
            cause=member.cause,
        )


def _member(info: SessionInfo, name: str) -> Member:
    cause = info.cause if info.state == "ended" else None
    return Member(session=info.session, name=name, role=info.agent, parent=info.parent, cause=cause)


def _select_live_trees(connection: sqlite3.Connection) -> list[SessionInfo]:
    infos, _ = rows.unpack_infos(rows.select_live_trees(connection, MAX_RESTORED))
    return infos
