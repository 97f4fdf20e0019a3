"""The agents that can be seen from here, as the command line needs them. Reads files; asks no daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ottod.errors import ConfigError
from ottod.settings.paths import Paths

if TYPE_CHECKING:
    from ottod.protocol.specs import AgentSpec
    from ottod.settings.agents import AgentEntry, AgentFinder


def agent_finder(cwd: Path | None = None) -> AgentFinder:
    """The finder that the daemon would use for a session in `cwd` (default: here)."""
    from ottod.settings.agents import finder
    from ottod.settings.daemon import load

    paths = Paths.from_env(os.environ, uid=os.getuid())
    settings = load(paths.config_file, must_exist=paths.config_explicit)
    return finder(cwd=(cwd or Path()).absolute(), config_home=paths.config_home, settings=settings)


def script_errors(spec: AgentSpec, finder: AgentFinder, cwd: Path | None = None) -> list[ConfigError]:
    """What is wrong with the scripts of an agent's scripted models: none there, or a mistake in one."""
    from ottod.settings.models import resolve_model
    from ottod.settings.script import load_script

    assert finder.settings is not None
    found = []
    for name in (spec.model, *spec.fallback_models):
        try:
            target = resolve_model(
                name,
                finder.settings,
                agent=spec.name,
                agent_source=os.path.abspath(spec.source),
                cwd=str((cwd or Path()).absolute()),
            )
            if target.adapter == "scripted":
                load_script(target.model)
        except ConfigError as error:
            found.append(error)
    return found


def visible_agents(cwd: Path | None = None) -> list[AgentEntry]:
    """Every agent by name, the broken ones with their error."""
    return agent_finder(cwd).entries()
