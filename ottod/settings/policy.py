"""What an agent file inside a project may ask for. It narrows what the user and the daemon allow, never widens it.

What can be narrowed is, with a note that says so: a weaker layer becomes the daemon's, a wider preset the widest
allowed, `allow` rules, foreign directories, hosts, variables and MCP servers are dropped. What cannot be narrowed
without changing the agent's meaning, its working directory and its script, is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec, HttpAccess, Isolation, Layer, McpServer, PermissionRule, Preset
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.settings.environment import matches
from ottod.settings.hosts import parse_pattern
from ottod.settings.keys import secret_variables
from ottod.settings.models import SCRIPT_SUFFIX, aliases, providers, resolve_name
from ottod.settings.sections import DaemonSettings
from ottod.settings.tool_names import source_of
from ottod.settings.units import plural

LAYER_STRENGTH: dict[Layer, int] = {"off": 0, "preferred": 1, "required": 2}
PRESET_WIDTH: dict[Preset, int] = {"strict": 0, "balanced": 1, "autonomous": 2}


def narrow(
    spec: AgentSpec, settings: DaemonSettings, *, home: Path | None = None
) -> tuple[AgentSpec, tuple[str, ...]]:
    """The spec as its project may have it, and what was taken from it, a line each.

    A spec that does not come from a project's `.otto/agents` is returned as it is. The digest stays the file's.
    `home` is what `~` means, by default this user's.
    Raises: ConfigError with code `refused` when the working directory or a script lies outside the project.
    """
    home = home or Path(os.path.expanduser("~"))
    project = project_of(spec.source, home)
    if project is None:
        return spec, ()
    notes: list[str] = []
    _refuse_outside(spec, settings, project)
    narrowed = msgspec.structs.replace(
        spec,
        isolation=_isolation(spec.isolation, settings, project, home, notes),
        permissions=msgspec.structs.replace(
            spec.permissions,
            preset=_preset(spec.permissions.preset, settings.project_may.preset, notes),
            rules=_rules(spec.permissions.rules, notes),
        ),
        env=_env(spec.env, settings, notes),
        http=_http(spec.http, settings.project_may.http_hosts, notes),
    )
    narrowed = msgspec.structs.replace(narrowed, mcp_servers=_servers(narrowed.mcp_servers, settings, notes))
    # A name among the tools that no server bears any more would be an unknown one.
    names = {server.name for server in narrowed.mcp_servers}
    dropped = {server.name for server in spec.mcp_servers} - names
    if dropped:
        tools = tuple(tool for tool in narrowed.tools if source_of(tool) not in dropped)
        narrowed = msgspec.structs.replace(narrowed, tools=tools)
    return narrowed, tuple(notes)


def narrow_workflow(
    spec: WorkflowSpec, settings: DaemonSettings, *, project: Path, home: Path
) -> tuple[WorkflowSpec, tuple[str, ...]]:
    """A project's workflow as it may be, and what was taken from it. Its permissions bind and grant nothing.

    Raises: ConfigError with code `refused` when a step's script lies outside the project.
    """
    notes: list[str] = []
    isolation = _isolation(spec.isolation, settings, project, home, notes)
    waiting: list[Step] = list(spec.steps)
    while waiting:
        step = waiting.pop()
        waiting += step.steps
        if step.model:
            _refuse_scripts(spec.source, (step.model,), settings, project)
    return msgspec.structs.replace(spec, isolation=isolation), tuple(notes)


def project_of(source: str, home: Path, *, room: str = "agents") -> Path | None:
    """The project that an agent's file belongs to: its repository's root, or the directory that holds `.otto`.

    `room` is the directory of such files in `.otto`: `workflows` for a workflow's.
    """
    file = Path(source)
    if file.parent.parts[-2:] != (".otto", room) or not file.is_absolute():
        return None
    level = Path(os.path.realpath(file.parent.parent.parent))
    return repository_of(level, home) or level


def repository_of(directory: Path, home: Path) -> Path | None:
    """The root of the repository around a directory; the home directory and what is above it are none.

    One that another user made above it does not count, as with git: anyone can make `/tmp/.git`.
    """
    home = Path(os.path.realpath(home))
    owners = {0, os.getuid(), _owner(directory)}
    for level in (directory, *directory.parents):
        if level == home:
            return None
        if os.path.exists(level / ".git") and {_owner(level), _owner(level / ".git")} <= owners:
            return level
    return None


def _owner(path: Path) -> int:
    """The uid of the file itself, not of what it may lead to; -1 if it cannot be looked at."""
    try:
        return path.lstat().st_uid
    except OSError:
        return -1


def is_within(path: Path, directory: Path) -> bool:
    """Whether a path, its symlinks followed, is a directory or below it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _refuse_outside(spec: AgentSpec, settings: DaemonSettings, project: Path) -> None:
    """A working directory is relative to the session's, a script to the agent's file."""
    if spec.working_dir:
        given = Path(spec.working_dir)
        # A relative one is judged as if the session ran at the root: from there it can climb least.
        if ".." in given.parts or not is_within(project / given, project):
            raise _refused(spec.source, f"working_dir {spec.working_dir!r} lies outside the project")
    _refuse_scripts(spec.source, (spec.model, *spec.fallback_models), settings, project)


def _refuse_scripts(source: str, models: tuple[str, ...], settings: DaemonSettings, project: Path) -> None:
    for model in models:
        if model in aliases(settings):
            continue  # The user's own alias may point where it likes.
        provider, script = resolve_name(model, settings)
        if providers(settings)[provider].adapter != "scripted":
            continue
        path = Path(source).parent / os.path.expanduser(script)
        if not all(is_within(each, project) for each in (path, *_scripts_in(path))):
            raise _refused(source, f"script {script!r} lies outside the project")


def _scripts_in(path: Path) -> list[Path]:
    """The scripts of a directory of them: links among them lead as far as others."""
    try:
        return [path / name for name in os.listdir(path) if name.endswith(SCRIPT_SUFFIX)]
    except OSError:
        return []  # A file, or nothing at all.


def _isolation(given: Isolation, settings: DaemonSettings, project: Path, home: Path, notes: list[str]) -> Isolation:
    return msgspec.structs.replace(
        given,
        memory=_layer("memory", given.memory, settings.isolation.memory, notes),
        files=_layer("files", given.files, settings.isolation.files, notes),
        network=_layer("network", given.network, settings.isolation.network, notes),
        syscalls=_layer("syscalls", given.syscalls, settings.isolation.syscalls, notes),
        read_paths=_paths(
            "read_paths", given.read_paths, (str(project), *settings.project_may.read_paths), project, home, notes
        ),
        # Within the project too: to grant a place there lifts the protection of `.git` and `.otto` below it.
        write_paths=_paths("write_paths", given.write_paths, settings.project_may.write_paths, project, home, notes),
    )


def _layer(name: str, given: Layer, floor: Layer, notes: list[str]) -> Layer:
    if LAYER_STRENGTH[given] >= LAYER_STRENGTH[floor]:
        return given
    notes.append(f"isolation.{name}: {given} raised to {floor}, the daemon's least")
    return floor


def _paths(
    field: str, given: tuple[str, ...], allowed: tuple[str, ...], project: Path, home: Path, notes: list[str]
) -> tuple[str, ...]:
    granted = [_absolute(path, home, home) for path in allowed]
    kept = []
    for path in given:
        absolute = _absolute(path, project, home)
        if any(is_within(absolute, directory) for directory in granted):
            kept.append(os.path.realpath(absolute))
        else:
            notes.append(f"isolation.{field}: {path} dropped; project_may.{field} does not allow it")
    return tuple(kept)


def _absolute(path: str, base: Path, home: Path) -> Path:
    if path == "~" or path.startswith("~/"):
        return home / path[2:]
    return base / path


def _preset(given: Preset, widest: Preset, notes: list[str]) -> Preset:
    if PRESET_WIDTH[given] <= PRESET_WIDTH[widest]:
        return given
    notes.append(f"permissions.preset: {given} narrowed to {widest}, the widest that project_may.preset allows")
    return widest


def _rules(given: tuple[PermissionRule, ...], notes: list[str]) -> tuple[PermissionRule, ...]:
    kept = tuple(rule for rule in given if rule.effect != "allow")
    dropped = len(given) - len(kept)
    if dropped:
        notes.append(f"permissions.rules: {plural(dropped, 'allow rule')} dropped; a project can only ask and deny")
    return kept


def _env(given: tuple[str, ...], settings: DaemonSettings, notes: list[str]) -> tuple[str, ...]:
    allowed = (*settings.env, *settings.project_may.env)
    secret = secret_variables(settings)
    kept = []
    for name in given:
        # A pattern is kept only where the same pattern is allowed: `*` must not match `LC_*`.
        fits = name in allowed if "*" in name else matches(name, allowed)
        if fits and name not in secret:
            kept.append(name)
        else:
            notes.append(f"env: {name} dropped; project_may.env does not allow it")
    return tuple(kept)


def _http(given: HttpAccess, allowed: tuple[str, ...], notes: list[str]) -> HttpAccess:
    """Hosts that the user lets projects name; never a place on this machine or its network."""
    wide = [parse_pattern(text) for text in allowed]
    kept = []
    for text in given.hosts:
        if any(pattern.covers(parse_pattern(text)) for pattern in wide):
            kept.append(text)
        else:
            notes.append(f"http.hosts: {text} dropped; project_may.http_hosts does not allow it")
    if given.local:
        notes.append(f"http.local: {', '.join(given.local)} dropped; only a user's own agents may have local places")
    return msgspec.structs.replace(given, hosts=tuple(kept), local=())


def _servers(given: tuple[McpServer, ...], settings: DaemonSettings, notes: list[str]) -> tuple[McpServer, ...]:
    """A project's servers are programs without network, if they are started at all."""
    if not settings.project_may.mcp_servers:
        if given:
            names = ", ".join(server.name for server in given)
            notes.append(f"mcp_servers: {names} dropped; project_may.mcp_servers is false")
        return ()
    kept = []
    for server in given:
        if server.url:
            notes.append(f"mcp_servers: {server.name} dropped; a project cannot grant the network")
            continue
        if server.network:
            notes.append(f"mcp_servers: {server.name}: network dropped; a project cannot grant it")
        env = _env(server.env, settings, notes)
        kept.append(msgspec.structs.replace(server, network=False, env=env))
    return tuple(kept)


def _refused(source: str, message: str) -> ConfigError:
    error = ConfigError(message, file=source, mend="name a path inside it, or make this one of the user's own")
    error.code = "refused"
    return error
