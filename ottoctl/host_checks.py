"""What `ottoctl doctor` asks of the machine: isolation, by trying to break it; control groups, systemd, limits.

The proofs run in a process of the daemon's program, started from here. What this shell may do and what a daemon under
systemd may do differ in one thing, the caps: only a service has control groups of its own. So a daemon that runs is
asked what its sessions have, and its word on the caps counts before what the shell could prove.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

import msgspec

from ottoctl.daemon import daemon_command
from ottoctl.findings import Finding, Level, Patient
from ottod.errors import UNDECODABLE, OttoError

PROVE_TIMEOUT_S = 180.0
"""Every layer's trial has a time-out of its own; this is more than all of them."""
ENOUGH_FILES = 4096
"""Open files: a session takes about ten of the daemon's."""
CGROUP_ROOT = Path("/sys/fs/cgroup")
NEEDED_CONTROLLERS = ("memory", "pids")


class ProvedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer as `ottod prove` reports it."""

    name: str
    status: str
    detail: str = ""
    mend: str = ""
    required: bool = False
    unmet: bool = False


def check_isolation(patient: Patient) -> list[Finding]:
    """Every layer that keeps sessions apart, proved by trying to break it."""
    from ottod.settings.daemon import load

    # It says which layers are required: without it there is nothing to prove.
    load(patient.paths.config_file, must_exist=patient.paths.config_explicit)
    mend = "run `ottod prove` to see why"
    try:
        done = subprocess.run(
            daemon_command("prove"),
            env=dict(patient.env),
            capture_output=True,
            timeout=PROVE_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        layers = msgspec.json.decode(done.stdout, type=list[ProvedLayer])
    except (OSError, subprocess.TimeoutExpired, *UNDECODABLE):
        return [Finding(check="isolation", level="fail", detail="the layers could not be tried", mend=mend)]
    of_daemon = _reports_of_daemon(patient)
    return [_layer(layer, of_daemon.get(layer.name, "")) for layer in layers]


def _layer(layer: ProvedLayer, of_daemon: str) -> Finding:
    check = f"isolation {layer.name}"
    if layer.name == "memory" and layer.status != "given" and of_daemon.startswith("yes"):
        detail = f"the running daemon has {of_daemon.removeprefix('yes: ')}; this shell has none of its own to try"
        return Finding(check=check, level="ok", detail=detail)
    level: Level = "fail" if layer.unmet else "ok" if layer.status == "given" else "warn"
    required = " (required)" if layer.required and level != "ok" else ""
    proof = "proved: " if layer.status == "given" else ""
    return Finding(check=check, level=level, detail=f"{proof}{layer.detail}{required}", mend=layer.mend)


def _reports_of_daemon(patient: Patient) -> dict[str, str]:
    """What the daemon that runs, if one does, says of its sessions' isolation."""
    from ottoctl.sync import SyncOtto

    try:
        with SyncOtto.connect(patient.endpoint, timeout_s=patient.timeout_s, client="doctor") as otto:
            return otto.status().isolation
    except OttoError:
        return {}


def check_limits(_: Patient) -> list[Finding]:
    """The daemon may open enough files for many sessions."""
    # The daemon raises its soft limit to the hard one by itself.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES:
        shown = "any number of" if hard == resource.RLIM_INFINITY else str(hard)
        return [Finding(check="limits", level="ok", detail=f"{shown} open files")]
    detail = f"{hard} open files: enough for about {hard // 10} sessions"
    mend = "raise the hard limit `nofile`, in /etc/security/limits.conf or LimitNOFILE= of the unit"
    return [Finding(check="limits", level="warn", detail=detail, mend=mend)]


def check_service(patient: Patient) -> list[Finding]:
    """Whether systemd runs the daemon, and whether that service is well."""
    from ottoctl.service import Service

    if shutil.which("systemctl", path=patient.env.get("PATH", os.defpath)) is None:
        return [Finding(check="service", level="ok", detail="no systemd here; `ottoctl daemon start` does without")]
    try:
        found = Service("user", env=patient.env, uid=patient.paths.uid).status()
    except OttoError as error:
        return [Finding(check="service", level="ok", detail=f"not a service: {error.message}")]
    if not found.installed:
        detail = "not installed; `ottoctl service install --now` lets systemd start and restart the daemon"
        return [Finding(check="service", level="ok", detail=detail)]
    detail = f"{found.unit}: {found.active} ({found.substate}), {found.enabled}"
    if found.active == "failed":
        mend = f"`journalctl --user -u {found.unit} --lines=50` says why; `ottoctl service status`"
        return [Finding(check="service", level="warn", detail=detail, mend=mend)]
    return [Finding(check="service", level="ok", detail=detail)]


def check_cgroups(patient: Patient) -> list[Finding]:
    """Whether the kernel can hold caps on memory and processes, and whether this user is given that power."""
    root = _controllers(CGROUP_ROOT)
    if root is None:
        mend = "boot with `systemd.unified_cgroup_hierarchy=1`; until then a watchdog looks once a second"
        return [Finding(check="cgroups", level="warn", detail="no cgroup v2 at /sys/fs/cgroup", mend=mend)]
    absent = [name for name in NEEDED_CONTROLLERS if name not in root]
    if absent:
        mend = "boot with `cgroup_enable=memory`, or ask whoever runs this container"
        detail = f"cgroup v2 without the controller {' and '.join(absent)}"
        return [Finding(check="cgroups", level="warn", detail=detail, mend=mend)]
    uid = patient.paths.uid
    slice_ = CGROUP_ROOT / f"user.slice/user-{uid}.slice/user@{uid}.service"
    given = _controllers(slice_)
    if given is None:
        return [Finding(check="cgroups", level="ok", detail="cgroup v2; this user has no manager of services")]
    lacking = [name for name in NEEDED_CONTROLLERS if name not in given]
    if lacking:
        detail = f"cgroup v2, but systemd delegates no {' and no '.join(lacking)} to this user"
        mend = "as root: `systemctl edit user@.service` with [Service] Delegate=cpu memory pids, then log in anew"
        return [Finding(check="cgroups", level="warn", detail=detail, mend=mend)]
    return [Finding(check="cgroups", level="ok", detail=f"cgroup v2; {' '.join(given)} are delegated to this user")]


def _controllers(group: Path) -> list[str] | None:
    """The controllers that a group may use; None where there is no such group."""
    try:
        return (group / "cgroup.controllers").read_text().split()
    except OSError:
        return None
