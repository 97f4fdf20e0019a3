"""Starts the confined programs of one session, outside the confinement of its worker.

Run by path, never imported by the package: `python -I -S launcher.py SOCKET_FD CONFIG_FD`. A process that Landlock
confines can mount nothing, so a confined worker could never start bubblewrap. The launcher is started before the
worker confines itself, is told once and for all how programs of this session are held, and from then on takes nothing
but orders to run one: a worker in the wrong hands can run programs only where its agent could have.

It is a warm interpreter without threads, so each call's keeper is a fork and not a start. It is a subreaper: if a
keeper is killed, what it kept becomes the launcher's child and is ended on the worker's word (`sweep`). It ends when
the worker closes the socket, after all keepers have ended.

    worker → launcher, SEQPACKET, with descriptors:
        run      control, order, cwd, stdin, output[, errors]     order: marshal {argv, env, cwd, named}
        sweep CALL      control                          answered there: gone COUNT, or left COUNT PID…

Source: ADR 0010.
"""

from __future__ import annotations

import _socket as socket  # The C module alone: `socket` brings enum, selectors and 0.8 MiB for the session's life.
import ctypes
import marshal
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False  # As in `typing`, which would triple the start-up time.
if TYPE_CHECKING:
    from typing import Any

    from ottod.isolation import confined_exec, keeper, landlock, protected, seccomp
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import confined_exec
    import keeper
    import landlock
    import protected
    import seccomp

MAX_ORDER_BYTES = 4096
MAX_FDS = 6
FD_BYTES = 4
MAX_FD = 1 << 20
"""Beyond any descriptor that the launcher could have."""
SWEEP_DEADLINE_S = 5.0
FAREWELL_DEADLINE_S = 5.0
REFRESH_S = 30.0
"""How long what was found in the working directory holds."""
TRIAL_ERROR_BYTES = 4096
RLIMIT_NOFILE = resource.RLIMIT_NOFILE
MAX_FDS_HELD = 16_384
"""Descriptors of directories in the working tree: two for each repository, and one for each mount of a call."""
SPARE_FDS = 64
"""What a sandbox needs besides those of its mounts."""
CALL_MARKER = "OTTO_CALL"
MARKERS = ("OTTO_SESSION", CALL_MARKER, "PWD")
"""What an order says of a program's environment in any case; the first two are those of `processes`."""
IGNORED = (1, 2, 3, 15)
"""SIGHUP, SIGINT, SIGQUIT, SIGTERM: launcher and keepers must outlive whoever tells the whole session to end."""
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serves until the worker is gone, then leaves nothing."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(orders.fileno(), False)
    config = confined_exec.read_config(int(sys.argv[2]))
    for number in IGNORED:
        confined_exec.set_handler(number, confined_exec.SIG_IGNORE)
    _become_subreaper()
    landlock.forbid_new_privileges()
    launcher = Launcher(orders, config)
    try:
        launcher.serve()
    finally:
        launcher.leave()
    os._exit(0)


def _become_subreaper() -> None:
    _libc.prctl(ctypes.c_int(PR_SET_CHILD_SUBREAPER), *(ctypes.c_ulong(each) for each in (1, 0, 0, 0)))


class Launcher:
    """`config`: see `launch_config.launch_config`."""

    def __init__(self, orders: socket.socket, config: dict[str, Any]) -> None:
        self.orders = orders
        self.config = config
        self.keepers: dict[int, int] = {}
        self.calls: dict[int, str] = {}
        """Each keeper's call."""
        self.poll = select.poll()
        self.poll.register(orders.fileno(), select.POLLIN)
        self.refusal = b""
        self.is_enclosing = self._can_enclose()
        self.filter = self._filter()
        self.protection = protected.Protection(config["root"], granted=config["granted"])
        self.refreshed_at = -REFRESH_S
        self.limits = _raise_limit()

    def serve(self) -> None:
        """Takes orders until the socket closes; collects keepers as they end."""
        while True:
            for fd, _ in self.poll.poll():
                if fd != self.orders.fileno():
                    self._collect(fd)
                    continue
                order, fds = receive(self.orders)
                if not order:
                    return
                word, *rest = order.decode().split()
                if word == "run":
                    self._run(fds)
                else:
                    self._sweep(rest[0], fds[0])
                for each in fds:
                    os.close(each)
            self._reap_strays()

    def leave(self) -> None:
        """Waits for the keepers, which have heard of the worker's end as well; kills what is left of any."""
        give_up_at = time.monotonic() + FAREWELL_DEADLINE_S
        self.poll.unregister(self.orders.fileno())
        while self.keepers and time.monotonic() < give_up_at:
            for fd, _ in self.poll.poll(100):
                self._collect(fd)
        self._end_strays(FAREWELL_DEADLINE_S)
        self.protection.release()

    # ------------------------------------------------------------ how programs are held

    def _can_enclose(self) -> bool:
        """Tries bubblewrap. Sets `has_fd_mounts`, and `refusal` if a sandbox is required and cannot be had."""
        trial: list[str] = self.config["trial"]
        self.has_fd_mounts = bool(trial) and not _try(trial, mount="/usr")
        failure = b"bubblewrap is not installed" if not trial else b"" if self.has_fd_mounts else _try(trial)
        if failure and self.config["network"] == "required":
            self.refusal = b"network " + failure
        return not failure

    def _filter(self) -> bytes:
        if self.config["syscalls"] == "off":
            return b""
        machine = seccomp.architecture()
        if not machine:
            if self.config["syscalls"] == "required":
                self.refusal = b"syscalls there is no filter for this machine"
            return b""
        # In a pid namespace a debugger finds only what its own call has started.
        return seccomp.assemble(machine, allow_debugging=self.is_enclosing)

    def _plan(self, order: dict[str, Any]) -> dict[str, Any]:
        """What `confined_exec.become` needs: the order's program in this session's confinement."""
        held: dict[str, Any] = self.config["enclosed" if self.is_enclosing else "plain"]
        return {
            "argv": order["argv"],
            # A temporary directory of the client's own could not be written here, if it existed at all.
            "env": {**order["env"], **held["env"]},
            "rlimits": held["rlimits"],
            "landlock": self.config["files"],
            "read": held["read"],
            "write": held["write"],
            "devices": held["devices"],
            "seccomp": self.filter,
            "grace_ms": self.config["grace_ms"],
        }

    # ------------------------------------------------------------ orders

    def _run(self, fds: list[int]) -> None:
        """Forks the call's keeper, which forks the program."""
        control, order_fd, cwd, stdin, output = fds[:5]
        errors = fds[5] if len(fds) > 5 else output
        order = self._completed(confined_exec.read_config(os.dup(order_fd)))
        if self.refusal:
            keeper.say(control, b"failed " + self.refusal.split()[0] + b" 0")
            return
        if self.is_protecting():
            try:
                self._refresh()
            except OSError as error:
                os.write(
                    errors, b"what programs must not change cannot be held: " + os.strerror(error.errno or 0).encode()
                )
                keeper.say(control, f"failed sandbox {error.errno}".encode())
                return
        try:
            pid = os.fork()
        except OSError as error:
            keeper.say(control, f"failed fork {error.errno}".encode())
            return
        if pid:
            fd = os.pidfd_open(pid)
            self.keepers[fd], self.calls[pid] = pid, order["env"].get(CALL_MARKER, "")
            self.poll.register(fd, select.POLLIN)
            return
        try:
            self._keep(order, control, (stdin, output, errors), cwd)
        except BaseException:  # noqa: BLE001 - nothing of the launcher's stack may run in a keeper
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)

    def is_protecting(self) -> bool:
        """Whether calls have mounts of their own over what is protected."""
        return self.is_enclosing and self.config["files"] != "off"

    def _refresh(self) -> None:
        """Looks again for what must be protected: now and then, and at once if some of it is gone."""
        if time.monotonic() - self.refreshed_at > REFRESH_S or not self.protection.is_current():
            self.refreshed_at = -REFRESH_S  # What is found only in part must not hold.
            self.protection.refresh()
            self.refreshed_at = time.monotonic()

    def _completed(self, order: dict[str, Any]) -> dict[str, Any]:
        """The order, for a program that it only names with what the launcher was told of it, and nothing else.

        Of the order's environment only the markers count then: a variable could make another program of it.
        """
        named = self.config["named"].get(order["named"])
        if named is None:
            return {**order, "network": False}
        env = {name: order["env"][name] for name in MARKERS}
        return {**order, "argv": named["argv"], "env": {**named["env"], **env}, "network": named["network"]}

    def _keep(self, order: dict[str, Any], control: int, streams: tuple[int, int, int], cwd: int) -> None:
        """The keeper's life, in a process of its own. `streams`: stdin, output, errors."""
        for fd in (self.orders.fileno(), *self.keepers):
            os.close(fd)
        os.setsid()
        _become_subreaper()
        report, report_end = os.pipe()
        plan = self._plan(order)
        pid = os.fork()
        if pid == 0:
            for target, fd in enumerate(streams):
                os.dup2(fd, target)
            if self.is_enclosing:
                self._enter(order, plan, report_end)
            # A descriptor of a directory outside would be a way out of any mount namespace.
            close_all_but(report_end, cwd)
            os.fchdir(cwd)
            _set_limits(self.limits)
            confined_exec.become(plan, report_end)
        os.close(report_end)
        stdin, output, errors = streams
        for fd in (stdin, cwd, *(() if output == errors else (output,))):
            os.close(fd)
        keeper.Keeper(
            control,
            report,
            pid,
            output=errors,
            grace_ms=self.config["grace_ms"],
            is_enclosed=self.is_enclosing,
            protection=self.protection if self.is_protecting() else None,
        ).keep()
        os._exit(0)

    def _enter(self, order: dict[str, Any], plan: dict[str, Any], report: int) -> None:
        """Becomes bubblewrap, which becomes the first process of the sandbox. Never returns."""
        try:
            mounts, fds = self._mounts()
            if order["network"]:
                mounts = [word for word in mounts if word != "--unshare-net"]
            if len(fds) + SPARE_FDS > self.limits[0]:
                plan["rlimits"] = [(RLIMIT_NOFILE, self.limits[0]), *plan["rlimits"]]
            else:
                _set_limits(self.limits)
            config = confined_exec.in_memory("otto-program", marshal.dumps(plan))
        except OSError as error:
            # Another call has changed the tree at this very moment.
            os.write(2, b"what programs must not change cannot be held: " + os.strerror(error.errno or 0).encode())
            os.write(report, f"failed sandbox {error.errno}\n".encode())
            os._exit(127)
        # A descriptor of a directory outside would be a way out of any mount namespace. Bubblewrap closes those that
        # it is given for mounts.
        close_all_but(report, config, *fds)
        for fd in (config, report, *fds):
            os.set_inheritable(fd, True)
        stage = [self.config["python"], "-I", "-S", "-c", self.config["bootstrap"], str(config), str(report)]
        argv = [*mounts, "--chdir", order["cwd"], "--", *stage]
        try:
            os.execve(argv[0], argv, self.config["markers"])
        except OSError as error:
            os.write(report, f"failed sandbox {error.errno}\n".encode())
        os._exit(127)

    def _mounts(self) -> tuple[list[str], list[int]]:
        """Bubblewrap's arguments about places, and the descriptors in them, so that no rename gives it others.

        A bubblewrap without this option gets paths. Raises OSError.
        """
        words: list[str] = list(self.config["sandbox"])
        if not self.is_protecting():
            return words, []
        if not self.has_fd_mounts:
            return words + self.protection.arguments(), []
        more, fds = self.protection.fd_arguments()
        root = self.protection.root
        for i in range(len(words) - 2):
            if words[i : i + 3] == ["--bind", root.path, root.path]:
                fds.append(os.dup(root.fd))
                words[i : i + 2] = ["--bind-fd", str(fds[-1])]
        return words + more, fds

    def _sweep(self, call: str, control: int) -> None:
        """Ends what a killed keeper has left behind: by descent from the launcher, and by the call's marker.

        And what one that has not ended still keeps: it will find that out, and end by itself.
        """
        processes = keeper.load_processes()
        own = os.getpid()
        kept = set(self.keepers.values())
        found = 0

        def find(table: Any) -> set[int]:
            nonlocal found
            strays = [row.id.pid for row in table.values() if row.parent_pid == own and row.id.pid not in kept]
            strays += [row.id.pid for row in table.values() if self.calls.get(row.parent_pid) == call]
            victims: set[int] = processes.closure(
                table, [*strays, *processes.marked(table, processes.CALL_MARKER, call)]
            )
            found = max(found, len(victims))
            return victims

        left = processes.end_all(find, deadline_s=SWEEP_DEADLINE_S, on_pass=self._reap_strays)
        pids = "".join(f" {each.pid}" for each in left)
        keeper.say(control, f"left {found}{pids}".encode() if left else f"gone {found}".encode())

    # ------------------------------------------------------------ children

    def _collect(self, fd: int) -> None:
        self.poll.unregister(fd)
        os.close(fd)
        try:
            pid = self.keepers.pop(fd)
            self.calls.pop(pid, None)
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass

    def _reap_strays(self) -> None:
        """Orphans that have ended. Keepers are left to `_collect`, which knows their descriptors."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in self.keepers.values():
                return
            os.waitpid(found.si_pid, 0)

    def _end_strays(self, deadline_s: float) -> None:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                processes = keeper.load_processes()
                own = os.getpid()
                processes.end_all(
                    lambda table: {each.pid for each in processes.descendants(own, table)},
                    deadline_s=deadline_s,
                    on_pass=_reap_all,
                )
        except ChildProcessError:
            pass


def receive(orders: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors, none of which a program will inherit. Empty at the end."""
    # Not `socket.recv_fds`: it forgets the flags it is given.
    room = socket.CMSG_SPACE(MAX_FDS * FD_BYTES)
    data, extra, _flags, _address = orders.recvmsg(MAX_ORDER_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += memoryview(content[: len(content) // FD_BYTES * FD_BYTES]).cast("i")
    return data, fds


def close_all_but(*kept: int) -> None:
    """Closes every descriptor but the standard ones and these."""
    first = 3
    for fd in (*sorted(kept), MAX_FD):
        os.closerange(first, fd)
        first = fd + 1


def _reap_all() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _raise_limit() -> tuple[int, int]:
    """Lets the launcher hold what it protects, in a tree of many repositories; the limits that programs must have."""
    limits = resource.getrlimit(RLIMIT_NOFILE)
    most = MAX_FDS_HELD if limits[1] == resource.RLIM_INFINITY else min(MAX_FDS_HELD, limits[1])
    if most > limits[0] >= 0:
        _set_limits((most, limits[1]))
    return limits


def _set_limits(limits: tuple[int, int]) -> None:
    resource.setrlimit(RLIMIT_NOFILE, limits)


def _try(argv: list[str], *, mount: str = "") -> bytes:
    """Runs a trial, `mount` mounted over itself by descriptor; empty if it succeeded, else its last words."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for target, fd in enumerate((null, null, write_end)):
                os.dup2(fd, target)
            if mount:
                fd = os.open(mount, os.O_PATH | os.O_DIRECTORY)
                os.set_inheritable(fd, True)
                argv = [*argv[:-1], "--ro-bind-fd", str(fd), mount, argv[-1]]
            os.execve(argv[0], argv, {})
        finally:
            os._exit(127)
    os.close(write_end)
    words = os.read(read_end, TRIAL_ERROR_BYTES).strip()
    os.close(read_end)
    status = os.waitpid(pid, 0)[1]
    return b"" if status == 0 else words.splitlines()[-1] if words else b"the trial failed"


if __name__ == "__main__":
    main()
