"""Python files with tools: where they are found, and what is in them, without running them.

    source     directory                                     tools are called
    project    .otto/tools/ in the session's directory, and  project__NAME; off unless project_may.tools
               above it up to the repository's root
    user       <config home>/tools/                          user__NAME

A tool is a function at the left margin below a line `@tool`. Finding that takes no more than looking at lines: root,
which does this, does not even parse what strangers wrote. The function itself, its arguments and its mistakes are
looked at in a sandbox, when a session needs it. A name in a nearer directory hides the same name farther up, as for
agents; twice in one directory is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.specs import ToolFile
from ottod.settings.levels import project_levels, same_owner
from ottod.settings.policy import is_within
from ottod.settings.sections import DaemonSettings
from ottod.settings.text_file import decode_text, read_bytes
from ottod.settings.tool_names import PROJECT, SEPARATOR, USER, chosen, qualified

MAX_TOOL_FILES = 200
"""Of one directory; beyond it the rest is not looked at."""
MAX_SOURCE_BYTES = 256 * 1024
"""Of one file: it travels with every call of its tools."""
MAX_CHOSEN_BYTES = 1024 * 1024
"""Of all files that one agent chooses."""

_MARK = re.compile(r"@tool\b")
_FUNCTION = re.compile(r"(?:async[ \t]+)?def[ \t]+([A-Za-z_][A-Za-z0-9_]*)")

Origin = Literal["project", "user"]


class FoundTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool by its place. `error`: why it cannot be used, for who wants to."""

    origin: Origin
    function: str
    file: str
    line: int
    source: str
    error: ConfigError | None = None


class ToolShelf(msgspec.Struct, frozen=True, kw_only=True):
    """The Python tools that a session in some directory can have, by their full names."""

    tools: dict[str, FoundTool] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, and the patterns that mean all of a source's."""
        origins = {tool.origin for tool in self.tools.values()}
        return (*self.tools, *(f"{origin}{SEPARATOR}*" for origin in sorted(origins)))

    def choose(self, patterns: Iterable[str]) -> tuple[ToolFile, ...]:
        """The files of the tools that these names and patterns mean. Raises ConfigError."""
        wanted = tuple(patterns)
        files: dict[str, list[FoundTool]] = {}
        for name, tool in self.tools.items():
            if chosen(name, wanted):
                if tool.error is not None:
                    raise tool.error
                files.setdefault(tool.file, []).append(tool)
        if sum(len(tools[0].source.encode()) for tools in files.values()) > MAX_CHOSEN_BYTES:
            raise ConfigError(
                f"the chosen tool files take more than {MAX_CHOSEN_BYTES} bytes", mend="choose fewer of them"
            )
        return tuple(
            ToolFile(
                origin=found[0].origin,
                path=path,
                source=found[0].source,
                tools=tuple(tool.function for tool in found),
            )
            for path, found in files.items()
        )


def find_tools(*, cwd: Path, config_home: Path, home: Path, settings: DaemonSettings) -> ToolShelf:
    """The tools for a session in `cwd`. Blocks on files; a file that cannot be read is an error of its own tools."""
    tools: dict[str, FoundTool] = {}
    if settings.project_may.tools:
        for level, root in project_levels(cwd, home):
            if same_owner(level, cwd, ".otto/tools"):
                for name, tool in _in_directory(level / ".otto" / "tools", PROJECT, within=root).items():
                    tools.setdefault(name, tool)
    tools.update(_in_directory(config_home / "tools", USER, within=None))
    return ToolShelf(tools=tools)


def _in_directory(directory: Path, origin: Origin, *, within: Path | None) -> dict[str, FoundTool]:
    found: dict[str, FoundTool] = {}
    for file in _files(directory):
        try:
            source = _read(file, within)
        except ConfigError as error:
            # Nobody can say what it was to hold, but whoever means the file's own name is told why.
            name = qualified(origin, file.stem)
            found.setdefault(
                name, FoundTool(origin=origin, function=file.stem, file=str(file), line=0, source="", error=error)
            )
            continue
        for function, line in tool_functions(source):
            tool = FoundTool(origin=origin, function=function, file=str(file), line=line, source=source)
            name = qualified(origin, function)
            twin = found.get(name)
            found[name] = tool if twin is None else msgspec.structs.replace(tool, error=_twice(tool, twin))
    return found


def tool_functions(source: str) -> list[tuple[str, int]]:
    """The functions below `@tool`, each with its line. A decorator may go on over several lines."""
    found = []
    is_marked = False
    for number, line in enumerate(source.splitlines(), 1):
        function = _FUNCTION.match(line)
        if function is not None and is_marked:
            found.append((function[1], number))
        if _MARK.match(line):
            is_marked = True
        elif line[:1] not in ("", " ", "\t", ")", "@", "#"):
            is_marked = False
    return found


def _twice(tool: FoundTool, twin: FoundTool) -> ConfigError:
    return ConfigError(
        f"tool {tool.function!r} is also defined at {twin.file}:{twin.line}",
        file=tool.file,
        line=tool.line,
        column=1,
        mend="rename one of the two",
    )


def _read(file: Path, within: Path | None) -> str:
    if within is not None and not is_within(file, within):
        raise ConfigError("a link that leaves the project", file=str(file), mend="copy the file into the project")
    data = read_bytes(file)
    if len(data) > MAX_SOURCE_BYTES:
        raise ConfigError(f"larger than {MAX_SOURCE_BYTES} bytes", file=str(file), mend="split it")
    return decode_text(data, file=str(file))


def _files(directory: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []  # Absent, or not ours to read.
    return [directory / name for name in names if name.endswith(".py") and name[0] not in "._"][:MAX_TOOL_FILES]
