"""The audit trail: every decision about a tool call that was more than a plain leave, and every answer.

It is made of the events that say so, and written with the session's row or before it: what a later root finds in the
ring beyond a row it notes as well, and an event that is there already is not noted again. So the trail has all of
them, also over a root that was killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ottod.protocol import events as ev
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import AuditEntry, SessionInfo

Entry = tuple[int, ev.Event | ev.Unknown]
OF_INTEREST = (ev.ApprovalRequested, ev.ApprovalResolved, ev.PolicyDecided)
MAX_TEXT_CHARS = 2000
MAX_CLAIMS = 50


def audit_entries(info: SessionInfo, first_seq: int, entries: Iterable[Entry]) -> list[AuditEntry]:
    """What of a session's events belongs into the trail. `first_seq` is the first event's."""
    return [
        _entry(info, first_seq + place, at_ns, event)
        for place, (at_ns, event) in enumerate(entries)
        if isinstance(event, OF_INTEREST)
    ]


def _entry(
    info: SessionInfo,
    seq: int,
    at_ns: int,
    event: ev.ApprovalRequested | ev.ApprovalResolved | ev.PolicyDecided,
) -> AuditEntry:
    match event:
        case ev.ApprovalRequested():
            return AuditEntry(
                kind="asked",
                at_ns=at_ns,
                session=info.session,
                seq=seq,
                agent=info.agent,
                tool=_cut(event.tool),
                call=_cut(event.call),
                claims=_claims(event.claims),
                source=_cut(event.source),
                reason=_cut(event.reason),
                approval=_cut(event.approval),
            )
        case ev.ApprovalResolved():
            asked = next((a for a in info.approvals if a.approval == event.approval), None)
            return AuditEntry(
                kind="answered",
                at_ns=at_ns,
                session=info.session,
                seq=seq,
                agent=info.agent,
                tool=asked.tool if asked is not None else "",
                call=asked.call if asked is not None else "",
                claims=_claims(asked.claims) if asked is not None else (),
                approval=_cut(event.approval),
                decision=event.decision,
                scope=event.scope,
                by=_cut(event.by),
                reason=_cut(event.reason),
            )
        case ev.PolicyDecided():
            return AuditEntry(
                kind=event.outcome,
                at_ns=at_ns,
                session=info.session,
                seq=seq,
                agent=info.agent,
                tool=_cut(event.tool),
                call=_cut(event.call),
                claims=_claims(event.claims),
                rule=_cut(event.rule),
                source=_cut(event.source),
                reason=_cut(event.reason),
                grant=_cut(event.grant),
            )


def grant_entry(grant: StandingGrant, *, is_revoked: bool, by: str, reason: str) -> AuditEntry:
    """Leave begins to stand, or stands no more."""
    return AuditEntry(
        kind="revoked" if is_revoked else "standing",
        at_ns=time.time_ns(),
        session=grant.session,
        agent=grant.agent,
        tool=grant.tool,
        claims=_claims(grant.claims),
        approval=grant.approval,
        by=by,
        reason=_cut(reason),
        grant=grant.grant,
    )


def _claims(claims: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_cut(claim) for claim in claims[:MAX_CLAIMS])


def _cut(text: str) -> str:
    return text[:MAX_TEXT_CHARS]
