"""Becomes one program in confinement; inside a sandbox, also its first process.

The standard library only, and as little of it as possible, because every tool call waits for it: the launcher loads
this module by path, without the rest of the package.

`become` is the last thing that happens before a program: a session of its own, resource limits, Landlock,
no_new_privs, no capabilities, a seccomp filter, exec.

`main` is process 1 of a call's pid namespace, started by bubblewrap with nothing mounted but what the program may
see. It forks the program, collects whatever the program orphans, and reports through a pipe that the program does not
have. When process 1 ends, the kernel kills all that is left in the namespace, and the program cannot kill process 1:
no signal from inside reaches it, and it is not dumpable, so that its memory and descriptors stay closed as well.

    process 1 → keeper    started
                          failed STAGE ERRNO     the program was not started
                          exited STATUS          the program ended; minus the signal number if killed
                          stragglers COUNT       what outlived it, the grace included, and dies now

Source: pid_namespaces(7), ADR 0010.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import sys
import time

TYPE_CHECKING = False  # As in `typing`, which would triple the start-up time.
if TYPE_CHECKING:
    from typing import Any

    from ottod.isolation import landlock, seccomp
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import landlock
    import seccomp

GRACE_POLL_S = 0.005
PR_SET_DUMPABLE = 4
CAPABILITY_VERSION_3 = 0x20080522
SIG_BLOCK_NONE = b"\0" * 128
SIG_SETMASK = 2
SIG_DEFAULT, SIG_IGNORE = 0, 1
RESET_FOR_PROGRAM = (1, 2, 3, 13, 15, 17, 25)
"""SIGHUP, INT, QUIT, PIPE, TERM, CHLD, XFSZ: what the interpreter or we ignore, a program must not inherit so."""
BOOTSTRAP = "import sys; sys.path.append({!r}); import confined_exec; confined_exec.main()"
"""Imported, not run as a script: a script would be compiled anew for every call."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Process 1 of a sandbox: `… CONFIG_FD REPORT_FD`. Never returns."""
    config_fd, report = int(sys.argv[-2]), int(sys.argv[-1])
    _libc.prctl(ctypes.c_int(PR_SET_DUMPABLE), *(ctypes.c_ulong(0) for _ in range(4)))
    config = read_config(config_fd)
    os.set_inheritable(report, False)
    failure_read, failure = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(report)
        become(config, failure)
    os.close(failure)
    text = os.read(failure_read, 64)
    _report(report, b"failed " + text if text else b"started")
    status = _wait_for(pid)
    if not text:
        _report(report, b"exited %d" % status)
        _report(report, b"stragglers %d" % _stragglers(config["grace_ms"] / 1000))
    os._exit(0)


def _report(fd: int, line: bytes) -> None:
    os.write(fd, line + b"\n")


def _wait_for(pid: int) -> int:
    while True:
        found, status = os.waitpid(-1, 0)
        if found == pid:
            return os.waitstatus_to_exitcode(status)


def _stragglers(grace_s: float) -> int:
    """How many processes are left after the grace; 0 as soon as there is none."""
    give_up_at = time.monotonic() + grace_s
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        if time.monotonic() >= give_up_at:
            # Everything in a pid namespace is a descendant of its first process, and /proc shows nothing else.
            return sum(name.isdigit() for name in os.listdir("/proc")) - 1
        time.sleep(GRACE_POLL_S)


def read_config(fd: int) -> dict[str, Any]:
    """The configuration: marshal, because both ends are the same interpreter and json costs 10 ms to import."""
    with os.fdopen(fd, "rb", buffering=0) as file:
        config: dict[str, Any] = marshal.loads(file.readall())
    return config


def in_memory(name: str, data: bytes) -> int:
    """An anonymous file with this content, read from its beginning: a pipe could block the writer."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def become(config: dict[str, Any], report: int) -> None:
    """Turns this process into the program: never returns. What fails is reported as `STAGE ERRNO`.

    `config`: argv, env, rlimits [(number, value)], landlock (off, preferred, required) with read, write and devices,
    seccomp (a filter, or b"").
    """
    stage = "session"
    try:
        os.setsid()
        for number in RESET_FOR_PROGRAM:
            set_handler(number, SIG_DEFAULT)
        _libc.sigprocmask(ctypes.c_int(SIG_SETMASK), ctypes.c_char_p(SIG_BLOCK_NONE), None)
        stage = "limits"
        limit(config["rlimits"])
        stage = "landlock"
        confine(config)
        stage = "privileges"
        drop_capabilities()
        stage = "seccomp"
        if config["seccomp"]:
            seccomp.install(config["seccomp"])
        stage = "exec"
        os.execvpe(config["argv"][0], config["argv"], config["env"])
    except OSError as error:
        os.write(report, f"{stage} {error.errno}".encode())
    except ValueError:
        os.write(report, f"{stage} {errno.EINVAL}".encode())
    finally:
        os._exit(127)


def limit(rlimits: list[tuple[int, int]]) -> None:
    """Sets soft and hard limits, never above the hard limit that is there."""
    import resource

    for which, value in rlimits:
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (bound, bound))
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error


def confine(config: dict[str, Any]) -> None:
    """no_new_privs always, Landlock as configured: `off`, `preferred` or `required`."""
    landlock.forbid_new_privileges()
    if config["landlock"] == "off" or (config["landlock"] == "preferred" and landlock.abi() == 0):
        return
    ruleset = landlock.Ruleset()
    ruleset.allow_reading(config["read"])
    ruleset.allow_writing(config["write"])
    ruleset.allow_devices(config["devices"])
    ruleset.restrict_self()
    ruleset.close()


def drop_capabilities() -> None:
    """No capabilities, also for root: CAP_PERFMON alone would open every process's memory, Landlock or not.

    no_new_privs, set before, keeps execve from giving them back to uid 0.
    """
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if _libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_handler(number: int, handler: int) -> None:
    """signal(2) with SIG_DFL (0) or SIG_IGN (1); the `signal` module costs 4 ms to import."""
    _libc.signal(ctypes.c_int(number), ctypes.c_void_p(handler))
