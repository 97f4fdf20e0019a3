"""Which sessions of all that there are somebody wants to see listed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import translate
from itertools import islice

from ottod.errors import RefusedError
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo

MAX_LOOKED_AT = 10_000
"""Rows, the newest, among which those are looked for that somebody wants to see."""
MAX_PATTERNS = 10
"""Of agents, of names and of parents, in one request."""
MAX_PATTERN_CHARS = 100


class Choice:
    """What a request wants, made ready to be asked about many sessions. `parents` are whole ids."""

    def __init__(self, wanted: ListSessions, parents: Collection[str] = ()) -> None:
        self._states = frozenset(wanted.states)
        self._causes = frozenset(wanted.causes)
        self._agents = [re.compile(translate(pattern)) for pattern in wanted.agents]
        self._names = [re.compile(translate(pattern)) for pattern in wanted.names]
        self._parents = frozenset(parents)

    def wants(self, info: SessionInfo) -> bool:
        """Whether a session is one of each kind that was asked for; what was not asked about fits."""
        return (
            self._is_in_state(info)
            and (not self._parents or info.parent in self._parents)
            and _fits(info.agent, self._agents)
            and _fits(info.name, self._names)
        )

    def _is_in_state(self, info: SessionInfo) -> bool:
        if not self._states and not self._causes:
            return True
        cause = info.cause.kind if info.state == "ended" and info.cause is not None else None
        return info.state in self._states or cause in self._causes


def check_patterns(wanted: ListSessions) -> None:
    """Raises RefusedError for a request that would take too long to answer."""
    for field, what in (("agents", "an agent"), ("names", "a name"), ("parents", "a parent")):
        patterns: tuple[str, ...] = getattr(wanted, field)
        if len(patterns) > MAX_PATTERNS:
            raise RefusedError(
                f"{len(patterns)} {field} to filter by, and at most {MAX_PATTERNS} are possible",
                code="too_large",
                mend="ask several times, or with a pattern such as code-*",
            )
        if (longest := max(map(len, patterns), default=0)) > MAX_PATTERN_CHARS:
            raise RefusedError(
                f"a filter of {longest} characters for {what}, and at most {MAX_PATTERN_CHARS} are possible",
                code="too_large",
                mend="make it shorter; * stands for any text",
            )


def wants_ended(wanted: ListSessions) -> bool:
    """Whether those that have ended can be among them."""
    return wanted.all or "ended" in wanted.states or bool(wanted.causes)


def choose(
    wanted: ListSessions,
    living: Iterable[SessionInfo],
    rows: Iterable[SessionInfo] = (),
    *,
    parents: Collection[str] = (),
    top: str = "",
) -> tuple[list[SessionInfo], bool]:
    """The sessions that are wanted, newest first; and whether there may be more than these.

    `rows` are of ended sessions, newest first, and read no further than is needed; with a `top`, of that session and
    all below it, in any state. Where a row says that one has ended, it does not live any more.
    """
    choice = Choice(wanted, parents)
    alive = {info.session: info for info in living}
    found: list[SessionInfo] = []
    is_cut = False
    if top:
        rows = list(islice(rows, MAX_LOOKED_AT + 1))
        below = _below(top, [*rows, *alive.values()])
        alive = {session: info for session, info in alive.items() if session in below}
    for count, info in enumerate(rows):
        if count == MAX_LOOKED_AT:
            is_cut = True
            break
        if info.state != "ended":
            continue
        alive.pop(info.session, None)
        if choice.wants(info):
            found.append(info)
            if len(found) > wanted.limit:
                break
    found += [info for info in alive.values() if choice.wants(info)]
    found.sort(key=lambda info: info.created_at_ns, reverse=True)
    return found[: wanted.limit], is_cut or len(found) > wanted.limit


def _below(top: str, infos: Iterable[SessionInfo]) -> set[str]:
    """The session and all below it."""
    children: dict[str, list[str]] = {}
    for info in infos:
        children.setdefault(info.parent, []).append(info.session)
    found, open_ends = {top}, [top]
    while open_ends:
        new = [child for child in children.get(open_ends.pop(), ()) if child not in found]
        found.update(new)
        open_ends += new
    return found


def _fits(text: str, patterns: Collection[re.Pattern[str]]) -> bool:
    return not patterns or any(pattern.match(text) for pattern in patterns)
