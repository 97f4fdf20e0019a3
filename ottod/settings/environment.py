"""Which of a client's environment variables a session gets. Absence from the lists means no."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ottod.settings.keys import secret_variables
from ottod.settings.sections import DaemonSettings

PRIVATE_PREFIX = "OTTO_"
"""Otto's own variables: the session gets its own, never the client's."""


def session_env(env: Mapping[str, str], settings: DaemonSettings, *, extra: Iterable[str] = ()) -> dict[str, str]:
    """The variables that the daemon's list and the agent's own (`extra`) let through, sorted by name.

    A variable that holds a provider's key or another secret never passes, whichever list names it: keys go to workers
    over their private channel.
    """
    listed = (*settings.env, *extra)
    names = frozenset(listed)
    patterns = [name for name in listed if any(c in name for c in "*?[")]
    secret = secret_variables(settings)
    return {
        name: env[name]
        for name in sorted(env)
        if name not in secret
        and not name.startswith(PRIVATE_PREFIX)
        and (name in names or matches(name, patterns))
        and _can_be_passed(name, env[name])
    }


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a list of names and patterns such as `LC_*` contains the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _can_be_passed(name: str, value: str) -> bool:
    """Whether the kernel would take it: a client can send what no process's environment can hold."""
    return bool(name) and "=" not in name and "\0" not in name + value
