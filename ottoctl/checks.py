"""What `ottoctl doctor` looks at: each check is a function that returns its findings and mends nothing."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import msgspec

import ottod
from ottoctl.daemon import OWN_DAEMON, differences
from ottoctl.findings import Check, Finding, Level, Patient
from ottoctl.host_checks import check_cgroups, check_isolation, check_limits, check_service
from ottod.errors import OttoError

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 64 * 1024 * 1024
"""Beside the ring: journals and the database need room."""
LOW_FREE_BYTES = 1024 * 1024 * 1024


def check_python(_: Patient) -> list[Finding]:
    """The interpreter is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= MIN_PYTHON:
        return [Finding(check="python", level="ok", detail=version)]
    wanted = ".".join(map(str, MIN_PYTHON))
    return [Finding(check="python", level="fail", detail=f"{version} is older than {wanted}", mend="upgrade Python")]


def check_directories(patient: Patient) -> list[Finding]:
    """The runtime and state directories are private, or can be made."""
    found = []
    for name, path, variable in (
        ("runtime directory", patient.paths.runtime_dir, "OTTO_RUNTIME_DIR"),
        ("state directory", patient.paths.state_dir, "OTTO_STATE_DIR"),
    ):
        found.append(_directory(name, path, variable, patient.paths.uid))
    return found


def _directory(name: str, path: Path, variable: str, uid: int) -> Finding:
    try:
        info = path.lstat()
    except FileNotFoundError:
        above = next((p for p in path.parents if os.path.exists(p)), Path("/"))
        if os.access(above, os.W_OK | os.X_OK):
            return Finding(check=name, level="ok", detail=f"{path} (made when the daemon starts)")
        mend = f"make {above} writable, or set {variable}"
        return Finding(check=name, level="fail", detail=f"{path} cannot be made", mend=mend)
    except OSError as error:
        return Finding(check=name, level="fail", detail=f"{path}: {error.strerror}", mend=f"set {variable}")
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != uid or stat.S_IMODE(info.st_mode) & 0o077:
        mode = stat.S_IMODE(info.st_mode)
        detail = f"{path} is not a private directory (mode {mode:04o}, uid {info.st_uid})"
        return Finding(check=name, level="fail", detail=detail, mend=f"chmod 700 {path}, or set {variable}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Finding(check=name, level="fail", detail=f"{path} is not writable", mend=f"chmod 700 {path}")
    return Finding(check=name, level="ok", detail=f"{path} (private)")


def check_disk(patient: Patient) -> list[Finding]:
    """There is room for the ring, the journals and the database."""
    from ottod.settings.daemon import load

    place = patient.paths.state_dir
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    shown = f"{free / 2**30:.1f} GiB free at {place}"
    try:
        ring_bytes = load(patient.paths.config_file, must_exist=patient.paths.config_explicit).ring.size_bytes
    except OttoError:
        ring_bytes = 0  # The configuration has a check of its own.
    has_ring = patient.paths.ring_file.exists()
    needed = MIN_FREE_BYTES + (0 if has_ring else ring_bytes)
    if free < needed:
        detail = f"{shown}; {needed / 2**20:.0f} MiB are needed"
        return [Finding(check="disk", level="fail", detail=detail, mend="free some space, or set OTTO_STATE_DIR")]
    ring = f"; ring of {ring_bytes / 2**20:.0f} MiB" if ring_bytes else ""
    level: Level = "warn" if free < LOW_FREE_BYTES else "ok"
    mend = "journals grow with use: free some space" if level == "warn" else ""
    return [Finding(check="disk", level=level, detail=shown + ring, mend=mend)]


def check_put_aside(patient: Patient) -> list[Finding]:
    """No file that the daemon could not read lies beside the one that it began instead."""
    found = []
    for file in (patient.paths.database_file, patient.paths.ring_file):
        for broken in sorted(file.parent.glob(f"{file.name}.broken*")):
            detail = f"{file.name} was damaged: the daemon put it aside as {broken} and began an empty one"
            mend = "see the page on troubleshooting; remove the file when it is of no more use"
            found.append(Finding(check="put aside", level="warn", detail=detail, mend=mend))
    return found


def check_configuration(patient: Patient) -> list[Finding]:
    """The daemon's file is valid."""
    from ottoctl.agents import rules_about_nobody_here
    from ottod.settings.daemon import check

    file = patient.paths.config_file
    checked = check(file, must_exist=patient.paths.config_explicit)
    if isinstance(checked, list):
        return [Finding(check="configuration", level="fail", detail=e.message, mend=e.mend) for e in checked]
    detail = str(file) if file.exists() else f"defaults (no {file})"
    warnings = rules_about_nobody_here(patient.cwd)
    return [
        Finding(check="configuration", level="ok", detail=detail),
        *(Finding(check="configuration", level="warn", detail=w.message, mend=w.mend) for w in warnings),
    ]


def check_agents(patient: Patient) -> list[Finding]:
    """Every agent in sight is valid."""
    from ottoctl.agents import visible_agents

    entries = visible_agents(patient.cwd)
    broken = [entry for entry in entries if entry.error is not None]
    found = [
        Finding(check="agents", level="warn", detail=entry.error.message, mend=entry.error.mend)
        for entry in broken
        if entry.error is not None
    ]
    names = ", ".join(entry.name for entry in entries if entry.error is None)
    return [*found, Finding(check="agents", level="ok" if names else "warn", detail=names or "none")]


def check_keys(patient: Patient) -> list[Finding]:
    """Which providers have a key: yes or no, never the key."""
    from ottod.settings.daemon import load
    from ottod.settings.keys import api_key
    from ottod.settings.models import needs_key, providers

    settings = load(patient.paths.config_file, must_exist=patient.paths.config_explicit)
    found = []
    for name, entry in sorted(providers(settings).items()):
        check = f"provider {name}"
        try:
            key = api_key(name, settings, patient.env)
        except OttoError as error:
            found.append(Finding(check=check, level="warn", detail=error.message, mend=error.mend))
        else:
            detail = (
                "key in this environment (a running daemon has its own)"
                if key
                else "no key"
                if needs_key(entry)
                else "needs no key"
            )
            found.append(Finding(check=check, level="ok", detail=detail))
    return found


def check_daemon(patient: Patient) -> list[Finding]:
    """A daemon answers, and is of this version."""
    from ottoctl.sync import SyncOtto

    try:
        with SyncOtto.connect(patient.endpoint, timeout_s=patient.timeout_s, client="doctor") as otto:
            daemon, status = otto.daemon, otto.status()
    except OttoError as error:
        # A daemon that does not run is a choice; one that does not answer is a defect.
        level: Level = "warn" if error.message.startswith("no daemon is running") else "fail"
        return [Finding(check="daemon", level=level, detail=error.message, mend=error.mend)]
    detail = f"ottod {daemon.version} (pid {daemon.pid}, protocol {daemon.protocol})"
    if daemon.version != ottod.__version__:
        mend = "`ottoctl daemon stop`, then `ottoctl daemon start`"
        detail += f"; ottoctl is {ottod.__version__}"
        return [Finding(check="daemon", level="warn", detail=detail, mend=mend)]
    found = [Finding(check="daemon", level="ok", detail=detail)]
    for line in differences(status.config_file, status.state_dir, patient.env):
        found.append(Finding(check="daemon", level="warn", detail=line, mend=OWN_DAEMON))
    if status.ring_bytes:
        ring = f"{status.ring_used_bytes / 2**20:.1f} of {status.ring_bytes / 2**20:.0f} MiB used"
        found.append(Finding(check="ring", level="ok", detail=ring))
    return found


CHECKS: tuple[Check, ...] = (
    check_python,
    check_directories,
    check_disk,
    check_put_aside,
    check_configuration,
    check_agents,
    check_keys,
    check_daemon,
    check_limits,
    check_service,
    check_cgroups,
    check_isolation,
)


def examine(patient: Patient, checks: tuple[Check, ...] = CHECKS) -> list[Finding]:
    """All findings. A check that cannot be made is a finding too; why is said once, with all that it concerns."""
    found: list[Finding] = []
    concerned: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        try:
            found += check(patient)
        except OttoError as error:
            concerned.setdefault((error.message, error.mend), []).append(check.__name__.removeprefix("check_"))
    for (message, mend), names in concerned.items():
        said = [i for i, finding in enumerate(found) if (finding.detail, finding.mend) == (message, mend)]
        if not said:
            found.append(Finding(check=names.pop(0), level="fail", detail=message, mend=mend))
            said = [len(found) - 1]
        if names:
            shown = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            detail = f"{message} (so {shown} cannot be checked)"
            found[said[0]] = msgspec.structs.replace(found[said[0]], detail=detail)
    return found
