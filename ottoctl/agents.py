"""The agents that can be seen from here, as the command line needs them. Reads files; asks no daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ottoctl.findings import FileCheck
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


def check_agent_here(name: str, cwd: Path | None = None) -> FileCheck:
    """An agent by name, or by file, as a session in `cwd` would get it."""
    from ottod.settings.agent_file import agent_source, check_agent
    from ottod.settings.agent_places import agent_warnings
    from ottod.settings.names import AGENT_SUFFIXES
    from ottod.settings.policy import narrow

    finder = agent_finder(cwd)
    assert finder.settings is not None
    file, first = name, None
    if "/" not in name and not name.endswith(AGENT_SUFFIXES):
        try:
            entry = finder.find(name)
        except ConfigError as error:
            return FileCheck([error], [])
        file, first = entry.source, entry.error
    # An entry holds the first mistake only; whoever validates wants them all.
    spec, errors = check_agent(Path(file), known_tools=finder.all_tools, settings=finder.settings)
    if spec is None or first is not None:
        return FileCheck(errors or [error for error in [first] if error is not None], [])
    spec = msgspec.structs.replace(spec, source=os.path.abspath(file))
    try:
        _, notes = narrow(spec, finder.settings, home=finder.home)
        source = agent_source(file)
    except ConfigError as error:
        return FileCheck([error], [])
    errors = script_errors(spec, finder, cwd)
    # Those beside a file count too, wherever it is.
    beside = {other.stem for other in Path(file).absolute().parent.iterdir() if other.suffix in AGENT_SUFFIXES}
    return FileCheck(errors, agent_warnings(spec, source, notes=notes, agents=finder.names | beside))


def script_errors(spec: AgentSpec, finder: AgentFinder, cwd: Path | None = None) -> list[ConfigError]:
    """What is wrong with the scripts of an agent's scripted models: none there, or a mistake in one."""
    from ottod.settings.agent_places import placed_model_error
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
                agent_source=spec.source,
                cwd=str((cwd or Path()).absolute()),
            )
            if target.adapter == "scripted":
                load_script(target.model)
        except ConfigError as error:
            found.append(placed_model_error(error, spec, name))
    return found


def rules_about_nobody_here(cwd: Path | None = None) -> list[ConfigError]:
    """Rules in the daemon's file that name an agent which cannot be seen from here."""
    from ottod.settings.permission_rules import rules_about_nobody
    from ottod.settings.yaml_source import read

    finder = agent_finder(cwd)
    assert finder.settings is not None
    if not finder.settings.permissions.rules:
        return []
    file = Paths.from_env(os.environ, uid=os.getuid()).config_file
    return rules_about_nobody(read(file), finder.names)


def visible_agents(cwd: Path | None = None) -> list[AgentEntry]:
    """Every agent by name, the broken ones with their error."""
    return agent_finder(cwd).entries()
