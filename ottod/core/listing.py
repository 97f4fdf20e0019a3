"""Which sessions of all that there are somebody wants to see listed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo


def is_wanted(info: SessionInfo, wanted: ListSessions, parents: Collection[str]) -> bool:
    """Whether a session is one of each kind that was asked for; what was not asked about fits. `parents` are ids."""
    return (
        _is_in_state(info, wanted)
        and _fits(info.agent, wanted.agents)
        and _fits(info.name, wanted.names)
        and (not parents or info.parent in parents)
    )


def wants_ended(wanted: ListSessions) -> bool:
    """Whether those that have ended can be among them."""
    return wanted.all or "ended" in wanted.states or bool(wanted.causes)


def narrows(wanted: ListSessions) -> bool:
    """Whether some of those that have ended may not be wanted, so that more of them must be looked at."""
    return bool(wanted.agents or wanted.names or wanted.parents or wanted.causes or wanted.tree)


def _is_in_state(info: SessionInfo, wanted: ListSessions) -> bool:
    if not wanted.states and not wanted.causes:
        return True
    cause = info.cause.kind if info.state == "ended" and info.cause is not None else None
    return info.state in wanted.states or cause in wanted.causes


def _fits(text: str, patterns: Iterable[str]) -> bool:
    found = tuple(patterns)
    return not found or any(fnmatchcase(text, pattern) for pattern in found)
