"""Leave that stands: somebody approved a call for all sessions of its agent, until it is revoked or expires.

It is narrow: the same agent (its file, not only its name), the same working directory, the same tool, and exactly
what the call asked for. It lifts what rules ask, never what they deny. Workers get theirs at birth and when it
changes; a worker that cannot be told now is told when it is ready.
"""

from __future__ import annotations

import os
import time

from ottod.errors import RefusedError
from ottod.ids import key_from_bytes, session_id
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import GrantList, PendingApproval
from ottod.protocol.worker import SetGrants
from ottod.root.audit import grant_entry
from ottod.root.context import RootContext
from ottod.root.session_table import Session

PREFIX = "g-"
MAX_GRANTS = 1000
COMMAND_TIMEOUT_S = 10.0


class Grants:
    """Of this daemon, whichever root runs it."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._grants: dict[str, StandingGrant] = {}
        self._changed_s = -1.0
        """When this root last changed them, by its loop's clock."""

    async def load(self) -> None:
        """What earlier roots were told. Raises StorageError."""
        self._grants = {grant.grant: grant for grant in await self._c.database.grants()}

    def of(self, session: Session) -> tuple[StandingGrant, ...]:
        """What stands for a session's agent."""
        now_ns = time.time_ns()
        return tuple(grant for grant in self._grants.values() if _is_for(grant, session) and _holds(grant, now_ns))

    def list(self, agent: str = "") -> GrantList:
        """All that stand, oldest first; with `agent` only those of that name."""
        now_ns = time.time_ns()
        found = [g for g in self._grants.values() if _holds(g, now_ns) and agent in ("", g.agent)]
        return GrantList(grants=tuple(sorted(found, key=lambda grant: grant.at_ns)))

    def check_room(self) -> None:
        """Raises RefusedError if there is no place for one more."""
        now_ns = time.time_ns()
        if sum(_holds(grant, now_ns) for grant in self._grants.values()) >= MAX_GRANTS:
            raise RefusedError(
                f"{MAX_GRANTS} grants stand already", code="too_many_grants", mend="see `ottoctl policy grants`"
            )

    async def add(
        self, session: Session, pending: PendingApproval, *, by: str, reason: str, expires_s: float | None
    ) -> StandingGrant:
        """Leave for what an approval asked for begins to stand. Raises StorageError."""
        at_ns = time.time_ns()
        grant = StandingGrant(
            grant=PREFIX + session_id(key_from_bytes(os.urandom(8))).removeprefix("s-"),
            agent=session.info.agent,
            source=session.info.agent_source,
            cwd=session.info.cwd,
            tool=pending.tool,
            claims=pending.claims,
            by=by,
            reason=reason,
            at_ns=at_ns,
            expires_at_ns=None if expires_s is None else at_ns + int(expires_s * 1e9),
            session=session.id,
            approval=pending.approval,
        )
        await self._c.database.put_grant(grant)
        self._grants[grant.grant] = grant
        self._c.database.put_audit_nowait(grant_entry(grant, is_revoked=False, by=by, reason=reason))
        self._tell_all(grant)
        return grant

    async def revoke(self, wanted: str, *, by: str, reason: str) -> StandingGrant:
        """It stands no more. Raises RefusedError: `no_such_grant`, `ambiguous_grant`; StorageError."""
        wanted = wanted.strip().lower()
        prefix = wanted if wanted.startswith(PREFIX) else PREFIX + wanted
        found = [grant for name, grant in self._grants.items() if name.startswith(prefix)] if wanted else []
        if len(found) > 1 and prefix not in self._grants:
            raise RefusedError(
                f"{len(found)} grants start with {wanted}", code="ambiguous_grant", mend="type more of the id"
            )
        if not found:
            raise RefusedError(f"no grant {wanted!r}", code="no_such_grant", mend="see `ottoctl policy grants`")
        grant = self._grants.get(prefix, found[0])
        await self._c.database.delete_grant(grant.grant)
        self._grants.pop(grant.grant, None)
        self._c.database.put_audit_nowait(grant_entry(grant, is_revoked=True, by=by, reason=reason))
        self._tell_all(grant)
        return grant

    # ------------------------------------------------------------ workers

    def worker_ready(self, session: Session, *, is_adopted: bool) -> None:
        """It knows what stood at its birth. There may be news since, and an earlier root's worker may know less."""
        incarnation = session.incarnation
        if is_adopted or (incarnation is not None and incarnation.started_s <= self._changed_s):
            self._c.spawn(self._tell(session))

    def _tell_all(self, changed: StandingGrant) -> None:
        self._changed_s = self._c.loop.time()
        for session in self._c.table.live:
            if _is_for(changed, session):
                self._c.spawn(self._tell(session))

    async def _tell(self, session: Session) -> None:
        incarnation = session.incarnation
        if incarnation is not None and incarnation.is_ready and not session.is_stopping:
            await self._c.gate.command(session, SetGrants(grants=self.of(session)), timeout_s=COMMAND_TIMEOUT_S)


def _is_for(grant: StandingGrant, session: Session) -> bool:
    info = session.info
    return (grant.agent, grant.source, grant.cwd) == (info.agent, info.agent_source, info.cwd)


def _holds(grant: StandingGrant, now_ns: int) -> bool:
    return grant.expires_at_ns is None or grant.expires_at_ns > now_ns
