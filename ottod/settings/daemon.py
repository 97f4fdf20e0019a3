"""The daemon's settings: `~/.config/otto/otto.yml`, or the file that OTTO_CONFIG names.

Every key is optional; an absent file means the defaults. Sizes take `512 MiB`, durations `30s` or `5m`. Unknown
keys, wrong types and values that contradict each other are errors that name line and column. The structs are in
`sections`, what follows from them in `models`, `keys` and `environment`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ottod.errors import ConfigError
from ottod.settings.environment import session_env
from ottod.settings.keys import api_key
from ottod.settings.models import check_aliases, resolve_model
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.sections import DaemonSettings

__all__ = ["DaemonSettings", "api_key", "check", "load", "resolve_model", "session_env"]


def load(config_file: Path | str, *, must_exist: bool = False) -> DaemonSettings:
    """The daemon's settings from a file; the defaults when it does not exist (and need not).

    Raises: ConfigError, the first in the file when there are several.
    """
    errors = check(config_file, must_exist=must_exist)
    if isinstance(errors, DaemonSettings):
        return errors
    raise errors[0]


def check(config_file: Path | str, *, must_exist: bool = False) -> DaemonSettings | list[ConfigError]:
    """The settings, or every mistake in the file."""
    if (not must_exist and _is_absent(config_file)) or _says_nothing(config_file):
        return DaemonSettings()
    # YAML costs 20 ms to import: a client that needs only the defaults does not pay.
    from ottod.settings.decode import decode_all
    from ottod.settings.permission_rules import check_rules, placed_rules
    from ottod.settings.yaml_source import read

    try:
        source = read(config_file)
    except ConfigError as error:
        return [error]
    settings, errors = decode_all(DaemonSettings, source, hidden=("permissions.rules[].source",))
    check_rules(source, BUILTIN_TOOL_NAMES, errors)
    if settings is None or errors:
        return sorted(errors, key=lambda e: (e.line, e.column))
    rules = placed_rules(settings.permissions.rules, source, ("permissions", "rules"))
    placed = msgspec.structs.replace(settings, permissions=msgspec.structs.replace(settings.permissions, rules=rules))
    return check_aliases(placed, source) or placed


def _says_nothing(file: Path | str) -> bool:
    """Whether there is nothing in it but comments: all that it could say is as it is anyway."""
    try:
        with open(file, encoding="utf-8") as text:
            return all(not line.strip() or line.lstrip().startswith("#") for line in text)
    except (OSError, ValueError):
        return False


def _is_absent(file: Path | str) -> bool:
    """Whether there is no such file: one that may not be looked at is there, and is an error."""
    try:
        Path(file).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
