"""Whether those whom a workflow wants are there: agents by name, and somebody for each route.

Read from the data, so that another mistake in the file does not hide a name that nobody bears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import Route
from ottod.settings.agents import AgentEntry, AgentFinder
from ottod.settings.nearest import suggestion
from ottod.settings.routing import lacks
from ottod.settings.workflow_finding import Finding
from ottod.settings.yaml_source import DataPath


class People:
    """The agents that can be seen from somewhere, each file read once."""

    def __init__(self, finder: AgentFinder) -> None:
        self._finder = finder
        self._found: dict[str, AgentEntry | ConfigError] = {}

    @property
    def config_home(self) -> Path:
        """Where the user's own files are."""
        return self._finder.config_home

    def find(self, name: str) -> AgentSpec:
        """The spec of one name. Raises: ConfigError, `unknown_agent` or what is wrong with its file."""
        if name not in self._found:
            try:
                self._found[name] = self._finder.find(name)
            except ConfigError as error:
                self._found[name] = error
        entry = self._found[name]
        if isinstance(entry, ConfigError):
            raise entry
        if entry.spec is None:
            raise entry.error or ConfigError(f"agent {name!r} cannot be read", file=entry.source)
        return entry.spec

    @cached_property
    def agents(self) -> tuple[AgentSpec, ...]:
        """All whose files are right, by name."""
        return tuple(entry.spec for entry in self._finder.entries() if entry.spec is not None)


def people_findings(data: dict[str, Any], people: People) -> Iterator[Finding]:
    """Names that no agent bears, agents whose files are wrong, and routes that lead to nobody."""
    yield from _agent(data.get("summarizer"), ("summarizer",), people)
    waiting: list[tuple[dict[str, Any], DataPath]] = [(data, ())]
    while waiting:
        node, path = waiting.pop()
        steps = node.get("steps")
        for i, step in enumerate(steps if isinstance(steps, list) else ()):
            if isinstance(step, dict):
                waiting.append((step, (*path, "steps", i)))
        if not path:
            continue
        yield from _agent(node.get("agent"), (*path, "agent"), people)
        for below, name in (("retry", "fallback_agent"), ("compensate", "agent")):
            inner = node.get(below)
            if isinstance(inner, dict):
                yield from _agent(inner.get(name), (*path, below, name), people)
        if isinstance(node.get("route"), dict):
            yield from _route(node["route"], (*path, "route"), people)


def _agent(name: Any, path: DataPath, people: People) -> Iterator[Finding]:
    if not isinstance(name, str) or not name:
        return
    try:
        spec = people.find(name)
    except ConfigError as error:
        is_unknown = error.code == "unknown_agent"
        message = error.message if is_unknown else f"agent {name!r} cannot be used: {error.message}"
        yield Finding(path, message, error.mend)
        return
    if spec.kind != "agent":
        yield Finding(path, f"{name!r} is a {spec.kind}, not an agent", "name an agent")


def _route(route: dict[str, Any], path: DataPath, people: People) -> Iterator[Finding]:
    want = Route(tags=_texts(route.get("tags")), tools=_texts(route.get("tools")))
    if any(not lacks(agent, want) for agent in people.agents):
        return
    for field, one, known in (
        ("tags", want.tags, {tag for agent in people.agents for tag in agent.tags}),
        ("tools", want.tools, {tool for agent in people.agents for tool in agent.tools}),
    ):
        for i, word in enumerate(one):
            alone = Route(tags=(word,)) if field == "tags" else Route(tools=(word,))
            if all(lacks(agent, alone) for agent in people.agents):
                message = f"no agent has the {field.removesuffix('s')} {word!r}"
                yield Finding((*path, field, i), message, suggestion(word, known) or "remove it")
                return
    yield Finding(path, "no agent has all the tags and tools that this route wants", "ask for less")


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str)) if isinstance(values, Sequence) else ()
