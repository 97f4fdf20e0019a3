"""Which rules a session is bound by: Otto's own, the user's, its project's, and those of the sessions above it.

The user's rules (the daemon's file and the agents that are not a project's) are weighed together, over the agent's
preset. A project's rules are an authority of their own, which can only restrict. A child is bound by everything that
binds its parent, besides its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from ottod.core.pattern import normalise_path
from ottod.core.permission import hard_denies, notes_guard
from ottod.protocol.policy import Authority
from ottod.protocol.specs import AgentSpec, PermissionRule
from ottod.settings.policy import project_of
from ottod.settings.sections import PermissionSettings

MAX_INHERITED = 32
"""Authorities from above. Beyond it the tree is refused: none may be forgotten."""


def own_authorities(spec: AgentSpec, settings: PermissionSettings, *, home: str = "") -> tuple[Authority, ...]:
    """What an agent brings along: the user's rules, and the project's, if it is a project's agent."""
    home = home or os.path.expanduser("~")
    given = _at_home(spec.permissions.rules, home)
    general = _at_home(settings.rules, home)
    is_projects = bool(spec.source) and project_of(spec.source, Path(home)) is not None
    rules = general if is_projects else (*general, *given)
    found = [Authority(name="rules", agent=spec.name, preset=spec.permissions.preset, rules=rules)]
    if is_projects and given:
        found.append(Authority(name="project", agent=spec.name, rules=given))
    return tuple(found)


def all_authorities(
    spec: AgentSpec,
    settings: PermissionSettings,
    *,
    cwd: str,
    private_dirs: Iterable[str],
    inherited: tuple[Authority, ...],
    home: str = "",
) -> tuple[Authority, ...]:
    """Everything that binds a session. `private_dirs` are Otto's own directories."""
    granted = [normalise_path(path, cwd) for path in spec.isolation.write_paths]
    own = own_authorities(spec, settings, home=home)
    return (*hard_denies(private_dirs, granted=granted), *own, notes_guard(granted=granted), *inherited)


def handed_down(
    session: str, spec: AgentSpec, settings: PermissionSettings, inherited: tuple[Authority, ...]
) -> tuple[Authority, ...]:
    """What binds the children of a session: its own authorities, named after it, and those from above, each once."""
    own = [replace(each, name=f"{each.name} of {session} ({spec.name})") for each in own_authorities(spec, settings)]
    found: list[Authority] = []
    for each in (*own, *inherited):
        if not any(replace(each, name=known.name) == known for known in found):
            found.append(each)
    return tuple(found)


def _at_home(rules: Iterable[PermissionRule], home: str) -> tuple[PermissionRule, ...]:
    return tuple(
        replace(rule, path=os.path.join(home, rule.path[2:])) if rule.path.startswith("~/") else rule
        for rule in rules
    )
