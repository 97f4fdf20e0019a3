"""What this host can give: each layer is tried for real, in processes of their own where the trial is irrevocable.

Each answer is one line that begins with `yes`, `partly` or `no`; the last two say what would mend it. Blocks for up
to a few hundred milliseconds, meant for a thread. Imports little: doctor and the daemon's status call it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ottod.isolation import landlock
from ottod.isolation.openat import openat2

TRIAL_TIMEOUT_S = 5.0
CGROUP_MOUNT = "/sys/fs/cgroup"
WANTED_CONTROLLERS = ("memory", "pids", "cpu")

_LANDLOCK_TRIAL = """
import os, sys
sys.path.append(sys.argv[1])
import landlock
ruleset = landlock.Ruleset()
ruleset.allow_reading([sys.argv[1]])
ruleset.restrict_self()
os.listdir(sys.argv[1])
try:
    os.listdir("/")
except PermissionError:
    sys.exit(0)
sys.exit("a forbidden directory could be read")
"""

_USER_NAMESPACE_TRIAL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x40000000) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
"""


def probe() -> dict[str, str]:
    """Layer → what became of trying it: openat2, landlock, user_namespaces, bwrap, cgroup, seccomp, pidfd."""
    return {
        "openat2": _openat2(),
        "pidfd": _pidfd(),
        "landlock": _landlock(),
        "seccomp": _seccomp(),
        "user_namespaces": _user_namespaces(),
        "bwrap": _bwrap(),
        "cgroup": _cgroup(),
    }


def _openat2() -> str:
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(openat2(fd, ".", os.O_PATH))
        try:
            os.close(openat2(fd, "proc/self/root/etc", os.O_PATH))
        except OSError:
            return "yes"
        return "no: it follows magic links; paths are walked component by component instead"
    except OSError as error:
        return f"no: {error.strerror}; paths are walked component by component instead (Linux 5.6 has it)"
    finally:
        os.close(fd)


def _pidfd() -> str:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"no: {error.strerror}; Otto needs Linux 5.3 or newer"
    return "yes"


def _landlock() -> str:
    version = landlock.abi()
    if version == 0:
        return "no: the kernel has none, or it is switched off; add landlock to the boot parameter lsm= (Linux 5.13)"
    failure = _trial([sys.executable, "-I", "-S", "-c", _LANDLOCK_TRIAL, str(Path(__file__).parent)])
    if failure:
        return f"no: ABI {version} is there and does not work: {failure}"
    open_ends = landlock.weaknesses(version)
    return f"partly: ABI {version}; {'; '.join(open_ends)}" if open_ends else f"yes: ABI {version}"


def _seccomp() -> str:
    actions = _read("/proc/sys/kernel/seccomp/actions_avail")
    if actions is None:
        return "no: the kernel was built without seccomp filters"
    return "yes" if "kill_process" in actions.split() else "partly: no kill_process action (Linux 4.14)"


def _user_namespaces() -> str:
    failure = _trial([sys.executable, "-I", "-S", "-c", _USER_NAMESPACE_TRIAL])
    return f"no: {failure}{_namespace_mend()}" if failure else "yes"


def _bwrap() -> str:
    program = shutil.which("bwrap")
    if program is None:
        return "no: bubblewrap is not installed; install the package bubblewrap"
    failure = _trial(
        [
            program,
            "--unshare-user",
            "--unshare-pid",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            shutil.which("true") or "true",
        ]
    )
    return f"no: {program}: {failure}{_namespace_mend()}" if failure else f"yes: {program}"


def _namespace_mend() -> str:
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "; AppArmor restricts user namespaces: install its profile for bwrap (Ubuntu: apparmor-profiles)"
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "; set sysctl kernel.unprivileged_userns_clone=1"
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        return "; set sysctl user.max_user_namespaces=10000"
    return "; this may be the doing of a container's seccomp profile"


def _cgroup() -> str:
    """The v2 group this process is in: are the controllers there, and can a child group be made?"""
    line = next((each for each in (_read("/proc/self/cgroup") or "").splitlines() if each.startswith("0::")), None)
    mount = _cgroup2_mount()
    if line is None or mount is None:
        return "no: no cgroup v2 hierarchy; boot with systemd.unified_cgroup_hierarchy=1"
    group = Path(mount + line.removeprefix("0::").rstrip("/"))
    present = (_read(str(group / "cgroup.controllers")) or "").split()
    missing = [each for each in WANTED_CONTROLLERS if each not in present]
    if missing:
        return f"no: no {', '.join(missing)} controller in {group}; delegate it (systemd: Delegate=yes)"
    trial = group / f"otto-probe-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        return f"no: {group}: {error.strerror}; run the daemon in a delegated unit (systemd: Delegate=yes)"
    return f"yes: {group}"


def _cgroup2_mount() -> str | None:
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            return before.split()[4]
    return None


def _trial(argv: list[str]) -> str:
    """Runs a trial; empty if it succeeded, else why not, in a few words."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TRIAL_TIMEOUT_S:.0f} s"
    except OSError as error:
        return str(error.strerror)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
