"""What the host offers for the layers around tools, by looking and by trials that cost some milliseconds."""

from __future__ import annotations

import os

from ottod.isolation import bubblewrap, landlock, seccomp
from ottod.isolation.layers import LayerReport, read_setting
from ottod.isolation.openat import openat2


def files() -> LayerReport:
    """Landlock, and how paths are opened."""
    version = landlock.abi()
    if failure := landlock.trial():
        return missing("files", failure, mend="boot a kernel from 5.13 on with landlock among its lsm=")
    detail = f"Landlock ABI {version}" + ("" if has_openat2() else ", no openat2: paths are walked by component")
    if open_ends := landlock.weaknesses(version):
        mend = "a newer kernel closes what is open"
        return LayerReport(name="files", status="partly", detail=f"{detail}; {', '.join(open_ends)}", mend=mend)
    return LayerReport(name="files", status="given", detail=detail)


def has_openat2() -> bool:
    """Whether the kernel itself keeps a path beneath a directory (Linux 5.6)."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(openat2(fd, ".", os.O_PATH))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def sandbox() -> LayerReport:
    """Mount, pid and ipc namespaces through bubblewrap."""
    return _bubblewrap("sandbox", has_network=True)


def network() -> LayerReport:
    """A network namespace through bubblewrap."""
    return _bubblewrap("network", has_network=False)


def _bubblewrap(name: str, *, has_network: bool) -> LayerReport:
    if failure := bubblewrap.trial(has_network=has_network):
        return missing(name, failure, mend="run outside of a container that forbids namespaces")
    return LayerReport(name=name, status="given", detail=bubblewrap.find())


def missing(name: str, failure: str, *, mend: str) -> LayerReport:
    """A trial's failure; what follows its last semicolon is its own advice, better than the general one."""
    detail, _, advice = failure.rpartition("; ")
    return LayerReport(name=name, status="missing", detail=detail or failure, mend=advice if detail else mend)


def syscalls() -> LayerReport:
    """The seccomp filter, beside no_new_privs and no capabilities, which every kernel has."""
    if read_setting("/proc/sys/kernel/seccomp/actions_avail") is None:
        mend = "use a kernel with CONFIG_SECCOMP_FILTER"
        return LayerReport(name="syscalls", status="missing", detail="the kernel has no seccomp filters", mend=mend)
    if failure := seccomp.trial():
        mend = "run on x86_64 or aarch64, outside a container that forbids seccomp filters"
        return LayerReport(name="syscalls", status="partly", detail=f"no_new_privs only: {failure}", mend=mend)
    return LayerReport(name="syscalls", status="given", detail="no_new_privs, no capabilities, seccomp filter")


def environment() -> LayerReport:
    """It is how programs are started, so it is always there."""
    return LayerReport(name="environment", status="given", detail="allowlist; keys never travel in it")
