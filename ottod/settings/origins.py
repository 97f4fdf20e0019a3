"""Where each of the daemon's settings comes from: a line of its file, or nobody said anything.

What holds is listed, so the built-in providers and aliases are among it, with what the file says laid over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ottod.errors import ConfigError
from ottod.settings.daemon import check
from ottod.settings.decode import dotted
from ottod.settings.models import aliases, providers
from ottod.settings.sections import DaemonSettings
from ottod.settings.yaml_source import DataPath, Source, read


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One value that holds. Sizes are bytes, durations seconds; None: nothing is set."""

    key: str
    """As in `ring.size_bytes`, or `permissions.rules[0]`."""
    value: Any
    origin: str
    """`default`, or the file and the line."""
    file: str = ""
    line: int = 0

    @property
    def is_default(self) -> bool:
        return not self.file


def settings_of(config_file: Path, *, must_exist: bool = False) -> list[Setting] | list[ConfigError]:
    """Every setting with its origin, in the order of the reference; or every mistake in the file."""
    settings = check(config_file, must_exist=must_exist)
    if not isinstance(settings, DaemonSettings):
        return settings
    try:
        source = read(config_file)
    except ConfigError:
        source = None  # It is not there, or there are only comments in it: anything else has been complained of.
    whole = msgspec.structs.replace(settings, providers=providers(settings), models=aliases(settings))
    return [_setting(path, value, source) for path, value in _leaves(whole, ())]


def _leaves(value: Any, path: DataPath) -> Iterator[tuple[DataPath, Any]]:
    """What a value consists of, down to what has no parts with names."""
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            yield from _leaves(getattr(value, field.name), (*path, field.encode_name))
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, tuple) and any(isinstance(item, msgspec.Struct) for item in value):
        for i, item in enumerate(value):
            yield (*path, i), _said(item)
    else:
        yield path, value


def _said(item: msgspec.Struct) -> dict[str, Any]:
    """One of a list of mappings: what it says, and where it stands is its origin."""
    found: dict[str, Any] = msgspec.to_builtins(item)
    found.pop("source", None)
    return found


def _setting(path: DataPath, value: Any, source: Source | None) -> Setting:
    key = dotted(path)
    if source is None or not _is_said(source.data, path):
        return Setting(key=key, value=value, origin="default")
    line = source.locate(path, key=isinstance(path[-1], str)).line
    return Setting(key=key, value=value, origin=f"{source.file}:{line}", file=source.file, line=line)


def _is_said(data: Any, path: DataPath) -> bool:
    """Whether the file has something at this place."""
    for part in path:
        if isinstance(part, int):
            if not isinstance(data, list) or part >= len(data):
                return False
        elif not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True
