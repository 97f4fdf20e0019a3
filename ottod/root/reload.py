"""Reading the configuration again, and trying new code, under running sessions.

Most settings are looked at whenever they are needed, so a new value holds from the next time on: for new sessions,
new incarnations, new stops. Some are built into something that lives as long as root: those wait for a restart, and
the answer names them.
"""

from __future__ import annotations

import subprocess
from typing import Any

import msgspec

from ottod.protocol.results import ReloadResult
from ottod.root.reaper import Reaper
from ottod.settings.daemon import DaemonSettings, load
from ottod.settings.interpreter import program
from ottod.settings.paths import Paths

CHECK_TIMEOUT_S = 30.0
"""How long new code may take to show that it can be imported and reads the configuration."""
IN_ORDER = "in order"
"""The last words of `ottod check`."""
FIXED = ("ring", "clients", "gateway", "logging.format")
"""Settings, or whole sections, that are read once."""


def compare(old: DaemonSettings, new: DaemonSettings) -> ReloadResult:
    """What a reload changes, by dotted names."""
    names = sorted(_differences("", msgspec.to_builtins(old), msgspec.to_builtins(new)))
    waiting = tuple(n for n in names if any(n == fixed or n.startswith(fixed + ".") for fixed in FIXED))
    return ReloadResult(changed=tuple(n for n in names if n not in waiting), needs_restart=waiting)


def _differences(prefix: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in old.keys() | new.keys():
            found += _differences(f"{prefix}.{name}" if prefix else str(name), old.get(name), new.get(name))
        return found
    return [prefix] if old != new else []


def merge(old: DaemonSettings, new: DaemonSettings) -> DaemonSettings:
    """The new settings, with what cannot change as it was."""
    logging = msgspec.structs.replace(new.logging, format=old.logging.format)
    return msgspec.structs.replace(new, ring=old.ring, clients=old.clients, gateway=old.gateway, logging=logging)


def load_settings(paths: Paths) -> DaemonSettings:
    """The configuration as it is now. Raises ConfigError."""
    return load(paths.config_file, must_exist=paths.config_explicit)


def try_program(reaper: Reaper) -> str:
    """Whether the installed program starts at all: empty, or its complaint. Blocks."""
    try:
        done = reaper.run(program("ottod", "check"), timeout_s=CHECK_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        is_in_order = done.stdout.decode(errors="replace").rstrip().endswith(IN_ORDER)
        return "" if is_in_order else "it did not say that it is in order"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return (said or [f"exit status {done.returncode}"])[-1][:500]
