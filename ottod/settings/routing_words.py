"""A router's choice in words: why somebody was chosen, and who comes nearest when nobody was. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec
from ottod.settings.nearest import nearest
from ottod.settings.routing import Filtered, Ranked, Routing, stems

MAX_NAMED = 3
"""Terms, and agents, that are named."""
MAX_WORD_CHARS = 40
MAX_WORDS = 50
"""Of a task, for which a word that is like them is looked for."""


def explained(routing: Routing) -> str:
    """`it fits the words best (3.21): pytest (hints), test (name, tags); then tester (2.10), coder (0.85)`."""
    scored = [item for item in routing.ranked if item.score > 0]
    chosen = next((item for item in scored if item.agent == routing.agent), None)
    if chosen is None:
        return routing.reason
    others = [item for item in scored if item is not chosen][:MAX_NAMED]
    then = f"; then {', '.join(f'{item.agent} ({item.score:.2f})' for item in others)}" if others else ""
    return f"{routing.reason} ({chosen.score:.2f}): {_terms(chosen)}{then}"


def _terms(item: Ranked) -> str:
    shown = [f"{term.word[:MAX_WORD_CHARS]} ({', '.join(term.fields)})" for term in item.terms[:MAX_NAMED]]
    more = len(item.terms) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more > 0 else [])])


def unrouted(routing: Routing, task: str, agents: Sequence[AgentSpec]) -> ConfigError:
    """The error when nobody was chosen, with those who come nearest: by a word like theirs, or who lack least."""
    close = nearest_agents(routing, task, agents)
    named = f"the nearest: {'; '.join(close)}; or name one" if close else "name one"
    error = ConfigError(f"no agent was chosen: {routing.reason}", mend=f"{named}; see `ottoctl agent list`")
    error.code = "no_route"
    return error


def nearest_agents(routing: Routing, task: str, agents: Sequence[AgentSpec]) -> list[str]:
    """Up to three agents, each with what speaks for it."""
    lacking = [f"{item.agent} ({item.reason})" for item in sorted(routing.filtered, key=_lack)[:MAX_NAMED]]
    if lacking and not routing.ranked:
        return lacking
    having: dict[str, str] = {}
    for agent in sorted(agents, key=lambda a: a.name):
        text = " ".join((agent.name, *agent.tags, *agent.hints, agent.description))
        for word in stems(text):
            having.setdefault(word, agent.name)
    found: dict[str, str] = {}
    for word in dict.fromkeys(stems(task)[:MAX_WORDS]):
        like = nearest(word[:MAX_WORD_CHARS], having)
        if like:
            found.setdefault(having[like], f"{having[like]} (knows {like!r})")
    return list(found.values())[:MAX_NAMED]


def _lack(item: Filtered) -> tuple[int, str]:
    return item.reason.count(","), item.agent
