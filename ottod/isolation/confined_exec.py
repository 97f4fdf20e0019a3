"""Starts one program in confinement, keeps its family together, and ends it.

Run by path, never imported: `python -I -S confined_exec.py CONTROL_FD CONFIG_FD`. The standard library only, and as
little of it as possible, because every tool call waits for it.

The process forks. The child makes its own session, sets limits, Landlock and no_new_privs, gives up all
capabilities, and becomes the program.
The parent stays as the family's *keeper*: it is a subreaper, so whatever the program orphans, by double fork, setsid
or a wiped environment, becomes the keeper's child and is still its descendant. The kernel answers ECHILD exactly when
no descendant is left, and that is the proof the keeper reports. If the worker at the other end of the control socket
dies, the keeper ends the family and itself.

    worker → keeper    kill                    end everything now
    keeper → worker    started
                       failed STAGE ERRNO      the program was not started
                       exited STATUS           the program ended; minus the signal number if killed
                       gone COUNT              nothing is left; COUNT descendants had to be killed
                       left COUNT PID…         these could not be ended in time
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import select
import sys

TYPE_CHECKING = False  # As in `typing`, which would triple the start-up time.
if TYPE_CHECKING:
    from typing import Any

    from ottod.isolation import landlock
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import landlock

REAP_PERIOD_MS = 500
GRACE_POLL_MS = 5
KILL_DEADLINE_S = 3.0
PR_SET_CHILD_SUBREAPER = 36
CAPABILITY_VERSION_3 = 0x20080522
SIG_BLOCK_NONE = b"\0" * 128
SIG_SETMASK = 2
IGNORED_BY_PYTHON = (13, 25)
"""SIGPIPE and SIGXFSZ: the interpreter ignores them, the program must not inherit that."""
IGNORED_BY_KEEPER = (1, 2, 3, 15)
"""SIGHUP, SIGINT, SIGQUIT, SIGTERM: the keeper must outlive whoever tells the whole session to end."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Reads the configuration, starts the program and stays until nothing of it is left."""
    control, config_fd = int(sys.argv[1]), int(sys.argv[2])
    config = read_config(config_fd)
    for fd in (control, config["cwd_fd"]):
        os.set_inheritable(fd, False)
    _libc.prctl(ctypes.c_int(PR_SET_CHILD_SUBREAPER), *(ctypes.c_ulong(each) for each in (1, 0, 0, 0)))
    report, report_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        become(config, report_end)
    for number in IGNORED_BY_KEEPER:
        set_handler(number, 1)
    os.close(report_end)
    os.close(config["cwd_fd"])
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    failure = os.read(report, 64)
    say(control, b"failed " + failure if failure else b"started")
    Keeper(control, pid, int(config["grace_ms"])).keep()
    os._exit(0)


def read_config(fd: int) -> dict[str, Any]:
    """The configuration: marshal, because both ends are the same interpreter and json costs 10 ms to import."""
    with os.fdopen(fd, "rb", buffering=0) as file:
        config: dict[str, Any] = marshal.loads(file.readall())
    return config


def become(config: dict[str, Any], report: int) -> None:
    """The child's half: never returns. What fails is reported as `STAGE ERRNO`."""
    stage = "session"
    try:
        os.setsid()
        for number in IGNORED_BY_PYTHON:
            set_handler(number, 0)
        _libc.sigprocmask(ctypes.c_int(SIG_SETMASK), ctypes.c_char_p(SIG_BLOCK_NONE), None)
        stage = "cwd"
        os.fchdir(config["cwd_fd"])
        stage = "limits"
        limit(config["rlimits"])
        stage = "landlock"
        confine(config)
        stage = "privileges"
        drop_capabilities()
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


class Keeper:
    """Waits for the program and for the worker, whichever ends first, and ends what is left."""

    def __init__(self, control: int, pid: int, grace_ms: int) -> None:
        self.control = control
        self.pid = pid
        self.grace_ms = grace_ms
        self.is_running = True

    def keep(self) -> None:
        """Returns when nothing is left, or nothing more can be done about it."""
        program = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(program, select.POLLIN)
        is_ordered = False
        while self.is_running and not is_ordered:
            ready = poll.poll(REAP_PERIOD_MS)
            self.reap()
            is_ordered = any(fd == self.control for fd, _ in ready)
        if not is_ordered:
            self.wait_for_stragglers()
        self.end_all()

    def reap(self) -> bool:
        """Collects zombies; True once no descendant is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.pid:
                self.is_running = False
                say(self.control, f"exited {os.waitstatus_to_exitcode(status)}".encode())

    def wait_for_stragglers(self) -> None:
        """What the program left running may end by itself for a moment: the far end of a pipe, say."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        for _ in range(0, self.grace_ms, GRACE_POLL_MS):
            if self.reap() or poll.poll(GRACE_POLL_MS):
                return

    def end_all(self) -> None:
        """Kills every descendant and reports."""
        if self.reap():
            say(self.control, b"gone 0")
            return
        processes = load_processes()
        own = os.getpid()
        victims = processes.descendants(own)
        count = len([each for each in victims if each.pid != self.pid])

        def find(table: Any) -> set[int]:
            return {each.pid for each in processes.descendants(own, table)}

        left = processes.end_all(find, deadline_s=KILL_DEADLINE_S, on_pass=self.reap)
        if self.reap() or not left:
            say(self.control, f"gone {count}".encode())
        else:
            say(self.control, f"left {count} {' '.join(str(each.pid) for each in left)}".encode())


def load_processes() -> Any:
    """Only needed when something must be killed, and slow to import."""
    if TYPE_CHECKING:
        from ottod.isolation import processes
    else:
        import processes
    return processes


def say(control: int, message: bytes) -> None:
    """One packet to the worker, if it still listens."""
    try:
        os.write(control, message)
    except OSError:
        pass


def set_handler(number: int, handler: int) -> None:
    """signal(2) with SIG_DFL (0) or SIG_IGN (1); the `signal` module costs 4 ms to import."""
    _libc.signal(ctypes.c_int(number), ctypes.c_void_p(handler))


if __name__ == "__main__":
    main()
