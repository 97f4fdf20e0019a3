"""Where agents are found, and which wins when a name is taken twice.

    layer      directory                                          searched
    project    .otto/agents/ in the session's directory, and      nearest first
               above it up to the repository's root
    user       <config home>/agents/
    builtin    shipped with Otto

A name in a higher layer hides the same name below, also when its file is wrong: falling back silently would run
another agent than the one in sight. Without a repository only the session's own directory counts, so that nobody
can plant agents above it; directories of another owner are passed over for the same reason. The home directory is
never a project.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec
from ottod.settings.agent_file import check_spec, read_agent, spec_errors
from ottod.settings.levels import project_levels, same_owner
from ottod.settings.names import AGENT_SUFFIXES, BUILTIN_TOOL_NAMES
from ottod.settings.nearest import nearest
from ottod.settings.policy import is_within, narrow
from ottod.settings.sections import DaemonSettings
from ottod.settings.tool_files import ToolShelf, find_tools

__all__ = ["AgentEntry", "AgentFinder", "check_spec", "find_agent", "finder", "list_agents", "narrow", "spec_errors"]

AgentLayer = Literal["project", "user", "builtin"]

BUILTIN_DIR = Path(__file__).parent / "builtin" / "agents"
MAX_AGENT_FILES = 1000
"""Of one directory; beyond it the rest is not looked at."""


class AgentEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One agent name as a session in some directory would find it: a spec, or the error that its file has.

    `shadows` are the files of the same name that this one hides, `notes` what a project's agent was denied.
    """

    name: str
    layer: AgentLayer
    source: str
    spec: AgentSpec | None = None
    error: ConfigError | None = None
    shadows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class AgentDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that is searched. `project_dir` is the project that its agents belong to."""

    path: Path
    layer: AgentLayer
    project_dir: Path | None = None


class AgentFinder(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a search depends on. `cwd` is the session's working directory, absolute.

    With `settings`, model names are checked, silent agents get the daemon's layers and projects' agents are
    narrowed. Without them a spec says what its file says: pass it through `narrow` before a session gets it.
    """

    cwd: Path
    config_home: Path
    home: Path
    settings: DaemonSettings | None = None
    known_tools: tuple[str, ...] = BUILTIN_TOOL_NAMES
    builtin_dir: Path = BUILTIN_DIR

    @property
    def shelf(self) -> ToolShelf:
        """The Python tools that can be had here, as the directories are now. None without `settings`."""
        if self.settings is None:
            return ToolShelf()
        return find_tools(cwd=self.cwd, config_home=self.config_home, home=self.home, settings=self.settings)

    @property
    def all_tools(self) -> tuple[str, ...]:
        """What an agent here can name among its tools."""
        return (*self.known_tools, *self.shelf.names)

    @property
    def names(self) -> frozenset[str]:
        """Every name that an agent here bears, also one whose file is wrong."""
        return frozenset(self._files())

    def directories(self) -> list[AgentDirectory]:
        """The directories in order of precedence, whether they exist or not."""
        project = [
            AgentDirectory(path=path / ".otto" / "agents", layer="project", project_dir=root)
            for path, root in project_levels(self.cwd, self.home)
            if same_owner(path, self.cwd, ".otto/agents")
        ]
        return [
            *project,
            AgentDirectory(path=self.config_home / "agents", layer="user"),
            AgentDirectory(path=self.builtin_dir, layer="builtin"),
        ]

    def find(self, name: str) -> AgentEntry:
        """The entry of one name. Raises: ConfigError `unknown_agent`, with the nearest name and where it looked."""
        found = self._files(only=name)
        if name in found:
            return self._entry(name, found[name])
        known = sorted(self._files())
        close = nearest(name, known)
        looked = ", ".join(str(d.path) for d in self.directories() if d.layer != "builtin")
        stem = Path(name).stem
        is_path = "/" in name and stem in known
        error = ConfigError(
            f"unknown agent {name!r}" + (f" — did you mean {close!r}?" if close and not is_path else ""),
            mend=f"an agent is named, not its file: write {stem}"
            if is_path
            else f"known agents: {', '.join(known)}; looked in {looked} and the built-ins",
        )
        error.code = "unknown_agent"
        raise error

    def entries(self) -> list[AgentEntry]:
        """Every name, sorted. A file that is wrong is an entry with an error and hides no other."""
        return [self._entry(name, files) for name, files in sorted(self._files().items())]

    def _files(self, only: str = "") -> dict[str, list[tuple[AgentDirectory, Path]]]:
        """Name → its files, the one that counts first."""
        found: dict[str, list[tuple[AgentDirectory, Path]]] = {}
        for directory in self.directories():
            for file in _agent_files(directory.path):
                if not only or file.stem == only:
                    found.setdefault(file.stem, []).append((directory, file))
        return found

    def _entry(self, name: str, files: list[tuple[AgentDirectory, Path]]) -> AgentEntry:
        directory, file = files[0]
        hidden = tuple(str(f) for _, f in files[1:])
        spec: AgentSpec | None = None
        notes: tuple[str, ...] = ()
        error: ConfigError | None = None
        try:
            twin = next((f for d, f in files[1:] if d.path == directory.path), None)
            if twin is not None:
                raise ConfigError(
                    f"agent {name!r} is also defined in {twin.name}", file=str(file), mend="remove one of the two"
                )
            spec, notes = self._read(directory, file)
        except ConfigError as wrong:
            error = wrong
        return AgentEntry(
            name=name,
            layer=directory.layer,
            source=str(file),
            spec=spec,
            error=error,
            shadows=hidden,
            notes=notes,
        )

    def _read(self, directory: AgentDirectory, file: Path) -> tuple[AgentSpec, tuple[str, ...]]:
        project = directory.project_dir
        if project is not None and not is_within(file, project):
            raise ConfigError("a link that leaves the project", file=str(file), mend="copy the file into the project")
        spec = read_agent(file, known_tools=self.all_tools, settings=self.settings)
        return (spec, ()) if self.settings is None else narrow(spec, self.settings, home=self.home)


def find_agent(
    name: str,
    *,
    cwd: Path | str,
    config_home: Path | str,
    home: Path | str | None = None,
    settings: DaemonSettings | None = None,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
) -> AgentSpec:
    """The spec that a name means in `cwd`; with `settings`, as a session gets it.

    Blocks on files. Raises: ConfigError, with code `unknown_agent` when there is none.
    """
    entry = finder(cwd=cwd, config_home=config_home, home=home, settings=settings, known_tools=known_tools).find(name)
    if entry.spec is None:
        assert entry.error is not None
        raise entry.error
    return entry.spec


def list_agents(
    *,
    cwd: Path | str,
    config_home: Path | str,
    home: Path | str | None = None,
    settings: DaemonSettings | None = None,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
) -> list[AgentEntry]:
    """Every agent that a session in `cwd` could be started with, by name. Blocks on files."""
    return finder(cwd=cwd, config_home=config_home, home=home, settings=settings, known_tools=known_tools).entries()


def finder(
    *,
    cwd: Path | str,
    config_home: Path | str,
    home: Path | str | None = None,
    settings: DaemonSettings | None = None,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
) -> AgentFinder:
    """An AgentFinder; `home` defaults to this user's."""
    return AgentFinder(
        cwd=Path(cwd),
        config_home=Path(config_home),
        home=Path(home) if home is not None else Path(os.path.expanduser("~")),
        settings=settings,
        known_tools=tuple(known_tools),
    )


def _agent_files(directory: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []  # Absent, or not ours to read: the other layers still count.
    files = [directory / n for n in names if n.endswith(AGENT_SUFFIXES) and not n.startswith(".")]
    return files[:MAX_AGENT_FILES]
