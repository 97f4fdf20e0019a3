"""Where in an agent's file something stands that is noticed only when the file itself is right.

A model without its script is a mistake. What a project is denied, and the name of an agent that there is not (yet),
are warnings: a session starts all the same, and does not get what the file says.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec
from ottod.settings.agent_file import agent_source
from ottod.settings.nearest import nearest
from ottod.settings.permission_rules import rules_about_nobody
from ottod.settings.yaml_source import DataPath, Source

ELSEWHERE = "or make it an agent of your own, in the agents/ directory of Otto's configuration"
RULES = "permissions.rules"


def placed_model_error(error: ConfigError, spec: AgentSpec, model: str) -> ConfigError:
    """The same mistake at the line of the agent's file that names the model; as it is if that does not."""
    if error.file or not spec.source.startswith("/"):
        return error
    try:
        source = agent_source(spec.source)
    except ConfigError:
        return error  # The file has changed since it was read.
    named = [("model",)] if source.data.get("model") == model else []
    fallbacks = source.data.get("fallback_models")
    places: list[DataPath] = [
        *named,
        *(("fallback_models", i) for i, m in enumerate(_items(fallbacks)) if m == model),
    ]
    if not places:
        return error
    return source.error(f"{places[0][0]}: {error.message}", places[0], mend=error.mend, code=error.code)


def agent_warnings(
    spec: AgentSpec, source: Source, *, notes: Collection[str], agents: Collection[str]
) -> list[ConfigError]:
    """What the file says in vain, in file order. `notes` are what `narrow` took, `agents` the names there are."""
    found = [warning for note in notes for warning in _denied(note, source)]
    found += _unknown_agents(spec, source, agents)
    found += rules_about_nobody(source, agents)
    return sorted(found, key=lambda e: (e.line, e.column))


def _denied(note: str, source: Source) -> list[ConfigError]:
    """A note of `narrow`, `FIELD: THING dropped; why`, at the lines that it is about."""
    field, _, rest = note.partition(": ")
    path: DataPath = tuple(field.split("."))
    items = _items(_value(source, path))
    if field == RULES:
        allowing = [i for i, rule in enumerate(items) if isinstance(rule, dict) and rule.get("effect") == "allow"]
        message = f"{RULES}[{{}}]: an allow rule is dropped; a project can only ask and deny"
        mend = f"remove it, {ELSEWHERE}"
        return [source.error(message.format(i), (*path, i), mend=mend) for i in allowing]
    thing = rest.split(" ", 1)[0].rstrip(":")
    at = next((i for i, item in enumerate(items) if thing in (item, _name(item))), None)
    if at is not None:
        return [source.error(note, (*path, at), mend=_mend(field, thing))]
    return [source.error(note, path, key=True, mend=_mend(field, thing))]


def _mend(field: str, thing: str) -> str:
    section, _, key = field.partition(".")
    if field == "permissions.preset":
        return f"allow it in otto.yml, `project_may: {{preset: {thing}}}`, {ELSEWHERE}"
    if section == "isolation" and not key.endswith("_paths"):
        return f"remove it, {ELSEWHERE}"
    if field == "http.local":
        return f"remove it, {ELSEWHERE}"
    if field == "mcp_servers":
        return f"allow programs in otto.yml, `project_may: {{mcp_servers: true}}`, {ELSEWHERE}"
    may = {"http.hosts": "http_hosts"}.get(field, key or section)
    return f"add it in otto.yml, `project_may: {{{may}: [{thing}]}}`, {ELSEWHERE}"


def _unknown_agents(spec: AgentSpec, source: Source, agents: Collection[str]) -> list[ConfigError]:
    named: list[tuple[str, str, DataPath, bool]] = [
        ("handoffs", name, ("handoffs", i), False) for i, name in enumerate(spec.handoffs)
    ]
    named += [
        ("limits.max_per_role", role, ("limits", "max_per_role", role), True) for role in spec.limits.max_per_role
    ]
    found = []
    for field, name, path, is_key in named:
        if name in agents:
            continue
        close = nearest(name, sorted(agents))
        hint = f" — did you mean {close!r}?" if close else ""
        mend = (
            f"write {close!r}" if close else f"write .otto/agents/{name}.yml, or one of: {', '.join(sorted(agents))}"
        )
        found.append(source.error(f"{field}: unknown agent {name!r}{hint}", path, key=is_key, mend=mend))
    return found


def _value(source: Source, path: DataPath) -> Any:
    value: Any = source.data
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _name(item: Any) -> Any:
    return item.get("name") if isinstance(item, dict) else None
