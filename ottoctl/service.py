"""Otto as a service of systemd: installs the units of this very installation, removes them, and reads how they fare.

Only files that carry Otto's mark are replaced or removed. Units that a package brought are used as they are: they are
enabled and started, never written.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ottoctl.service_unit import MARK, PACKAGED_COMMAND, Scope, UnitFile, installed, units
from ottoctl.systemd import Systemd, lingers
from ottod.errors import OttoError, RefusedError, StorageError
from ottod.settings.interpreter import program

PACKAGE_PREFIX = "/usr/lib/otto"
SYSTEM_UNITS = Path("/etc/systemd/system")
PACKAGED_UNITS = {
    "user": (Path("/usr/lib/systemd/user"), Path("/lib/systemd/user")),
    "system": (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")),
}
MOVED_BY = ("OTTO_RUNTIME_DIR", "OTTO_STATE_DIR", "OTTO_CONFIG", "OTTO_CONFIG_HOME")
"""Variables that the service does not have: whoever sets them looks for the daemon in another place."""
INSTANCE = re.compile(r"\bottod@([^@\s]+)\.service\b")
ROOT_PROPERTIES = (
    "LoadState",
    "FragmentPath",
    "UnitFileState",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "ActiveEnterTimestampMonotonic",
    "StatusText",
    "NRestarts",
    "WatchdogUSec",
)
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Changes(NamedTuple):
    """The files that an installation wrote and removed."""

    written: list[Path]
    removed: list[Path]


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the service fares. Times in seconds, memory in bytes; None is what systemd does not know."""

    scope: Scope
    systemd: str
    unit: str
    installed: bool
    file: str
    from_: Literal["", "ottoctl", "package", "elsewhere"] = msgspec.field(name="from")
    """Who brought the unit's file."""
    enabled: str
    active: str
    substate: str
    result: str
    main_pid: int
    active_since: str
    active_for_s: float | None
    status: str
    """What the daemon says of itself."""
    restarts: int
    """Automatic ones, since it was last started."""
    watchdog_s: float | None
    sessions_unit: str
    sessions_active: str
    sessions_tasks: int | None
    """Threads and processes of all sessions, and the holder."""
    sessions_memory_bytes: int | None
    lingers: bool | None
    """Whether a user's service runs without a login; None for the system's."""


class Service:
    """Otto's units of one scope. `account` is the uid that instances of the system's templates run as."""

    def __init__(
        self,
        scope: Scope,
        *,
        env: Mapping[str, str],
        uid: int,
        account: str = "",
        system_units: Path = SYSTEM_UNITS,
        packaged_units: tuple[Path, ...] | None = None,
    ) -> None:
        self.scope = scope
        self.systemd = Systemd(scope, env=env, uid=uid)
        self._env = env
        self._uid = uid
        self._directory = system_units if scope == "system" else user_units(env)
        self._packaged = PACKAGED_UNITS[scope] if packaged_units is None else packaged_units
        instance = f"@{account}" if scope == "system" else ""
        self.unit, self.sessions_unit = f"ottod{instance}.service", f"otto-sessions{instance}.service"

    # ------------------------------------------------------------ install

    def install(self, command: tuple[str, ...]) -> Changes:
        """Writes the units and makes systemd read them. Units that a package brought are used: none hides them then.

        Raises: RefusedError without systemd or for a file of somebody else's, StorageError for one that cannot be
        written.
        """
        self._check_root()
        self.systemd.version()
        wanted = units(self.scope, command)
        for unit in wanted:
            self._check_ours(self._directory / unit.name)
        if command == PACKAGED_COMMAND and self._package_has(wanted):
            changes = Changes([], self._remove_ours())
        else:
            changes = Changes([file for unit in wanted if (file := self._write(unit)) is not None], [])
        self.systemd.run("daemon-reload")
        return changes

    def enable_now(self) -> None:
        """Starts the service, now and at every login or boot. Raises OttoError with systemd's reason."""
        self.systemd.run("enable", "--now", self.unit)

    def _package_has(self, wanted: tuple[UnitFile, ...]) -> bool:
        return any(all(_text(place / unit.name) == unit.text for unit in wanted) for place in self._packaged)

    def _write(self, unit: UnitFile) -> Path | None:
        path, text = self._directory / unit.name, installed(unit)
        if _text(path) == text:
            return None
        fresh = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.replace(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}", mend=f"check {path.parent}") from error
        return path

    def _check_ours(self, path: Path) -> None:
        if path.is_symlink() or (path.exists() and not (_text(path) or "").startswith(MARK)):
            raise RefusedError(
                f"{path} was not written by ottoctl", mend="move it away, or put changes into `systemctl edit`"
            )

    def _check_root(self) -> None:
        if self.scope == "system" and self._uid != 0:
            raise RefusedError(
                "a service of the system needs root", mend="use sudo, or leave --system for a service of your own"
            )

    # ------------------------------------------------------------ uninstall

    def uninstall(self) -> list[Path]:
        """Stops and disables the service with its sessions, and removes the files that `install` wrote.

        Raises: RefusedError without systemd, OttoError if something cannot be stopped: then nothing is removed.
        """
        self._check_root()
        self.systemd.version()
        for root, sessions in self._instances():
            if self._state(root) != "not-found":
                self.systemd.run("disable", "--now", root)
                # It would end by itself a moment later; whoever uninstalls wants it gone now.
                self.systemd.run("stop", sessions)
            self.systemd.try_run("reset-failed", root, sessions)
        removed = self._remove_ours()
        self.systemd.run("daemon-reload")
        return removed

    def _instances(self) -> list[tuple[str, str]]:
        if self.scope == "user":
            return [(self.unit, self.sessions_unit)]
        listed = self.systemd.try_run("list-units", "--all", "--plain", "--no-legend", "ottod@*.service")
        listed += self.systemd.try_run("list-unit-files", "--no-legend", "ottod@*.service")
        wanted = [path.name for path in self._directory.glob("*.wants/ottod@*.service")]
        names = sorted(set(INSTANCE.findall(" ".join([listed, *wanted]))))
        return [(f"ottod@{name}.service", f"otto-sessions@{name}.service") for name in names]

    def _state(self, unit: str) -> str:
        return self.systemd.properties(unit, "LoadState")["LoadState"]

    def _remove_ours(self) -> list[Path]:
        return [path for unit in units(self.scope) if self._remove(path := self._directory / unit.name)]

    def _remove(self, path: Path) -> bool:
        if path.is_symlink() or not (_text(path) or "").startswith(MARK):
            return False
        try:
            path.unlink()
        except OSError as error:
            raise StorageError(f"cannot remove {path}: {error.strerror}", mend=f"check {path.parent}") from error
        return True

    # ------------------------------------------------------------ status

    def status(self) -> ServiceStatus:
        """How the service fares now. Raises RefusedError without systemd."""
        version = self.systemd.version()
        root = self.systemd.properties(self.unit, *ROOT_PROPERTIES)
        sessions = self.systemd.properties(self.sessions_unit, "ActiveState", "TasksCurrent", "MemoryCurrent")
        active_for_s = _elapsed_s(root["ActiveEnterTimestampMonotonic"]) if root["ActiveState"] == "active" else None
        since = "" if active_for_s is None else _ago(active_for_s)
        return ServiceStatus(
            scope=self.scope,
            systemd=version,
            unit=self.unit,
            installed=root["LoadState"] == "loaded",
            file=root["FragmentPath"],
            from_=self._origin(root["FragmentPath"]),
            enabled=root["UnitFileState"] or "no",
            active=root["ActiveState"],
            substate=root["SubState"],
            result=root["Result"],
            main_pid=_count(root["MainPID"]) or 0,
            active_since=since,
            active_for_s=active_for_s,
            status=root["StatusText"],
            restarts=_count(root["NRestarts"]) or 0,
            watchdog_s=span_s(root["WatchdogUSec"]),
            sessions_unit=self.sessions_unit,
            sessions_active=sessions["ActiveState"],
            sessions_tasks=_count(sessions["TasksCurrent"]),
            sessions_memory_bytes=_count(sessions["MemoryCurrent"]),
            lingers=lingers(self._env, self._uid) if self.scope == "user" else None,
        )

    def _origin(self, file: str) -> Literal["", "ottoctl", "package", "elsewhere"]:
        if not file:
            return ""
        if (_text(Path(file)) or "").startswith(MARK):
            return "ottoctl"
        return "package" if Path(file).parent in self._packaged else "elsewhere"


def service_command() -> tuple[str, ...]:
    """The daemon of this very installation, as a unit starts it: no word that a directory's content could change."""
    if sys.prefix == PACKAGE_PREFIX:
        return PACKAGED_COMMAND
    script = Path(sys.executable).with_name("ottod")
    if os.access(script, os.X_OK):
        return (str(script),)
    return tuple(program("ottod"))


def user_units(env: Mapping[str, str]) -> Path:
    """Where a user's own units are. Source: systemd.unit(5)."""
    config = env.get("XDG_CONFIG_HOME", "")
    home = env.get("HOME", "")
    if not config.startswith("/") and not home.startswith("/"):
        raise OttoError("HOME is not an absolute path", mend="set HOME to your home directory")
    return (Path(config) if config.startswith("/") else Path(home) / ".config") / "systemd" / "user"


def span_s(text: str) -> float | None:
    """The seconds of a time span as systemd shows it (`20s`, `1min 30s`); None for none."""
    parts = re.findall(r"([\d.]+)(us|ms|min|s|h|d)\b", text)
    return sum(float(number) * SECONDS[unit] for number, unit in parts) or None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _count(text: str) -> int | None:
    """A number of systemd's; its word for 'unknown' is the largest there is, or none."""
    return int(text) if text.isdigit() and int(text) < 2**63 else None


def _elapsed_s(usec: str) -> float | None:
    """Seconds since a moment of the monotonic clock."""
    return round(time.monotonic() - int(usec) / 1e6, 3) if usec.isdigit() and int(usec) else None


def _ago(elapsed_s: float) -> str:
    return datetime.fromtimestamp(time.time() - elapsed_s).astimezone().isoformat(timespec="seconds")
