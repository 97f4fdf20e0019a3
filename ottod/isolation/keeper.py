"""One call's keeper: starts the program, keeps its family together, and ends it.

The launcher forks a keeper for every call. It is a subreaper, so whatever the program orphans, by double fork, setsid
or a wiped environment, becomes the keeper's child and is still its descendant. The kernel answers ECHILD exactly when
no descendant is left, and that is the proof the keeper reports. In a sandbox the program's family also lives in a pid
namespace that dies as a whole with its first process, which dies with the keeper. If the worker at the other end of
the control socket dies, the keeper ends the family and itself.

    worker → keeper    kill                    end everything now
    keeper → worker    started
                       failed STAGE ERRNO      the program was not started
                       exited STATUS           the program ended; minus the signal number if killed
                       mended PATH             a path that programs may not make was made, and is as it was again
                                               (what could not be undone is said in the program's output instead)
                       gone COUNT              nothing is left; COUNT descendants had to be killed
                       left COUNT PID…         these could not be ended in time

Loaded by path by the launcher, without the rest of the package.
"""

from __future__ import annotations

import os
import select
import sys
import time

TYPE_CHECKING = False  # As in `typing`, which would triple the start-up time.
if TYPE_CHECKING:
    from typing import Any

    from ottod.isolation.protected import Protection
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))

REAP_PERIOD_MS = 500
GRACE_POLL_MS = 5
KILL_DEADLINE_S = 3.0
REAP_PAUSE_S = 0.002
SIGKILL = 9
REPORT_BYTES = 4096
ORDER_BYTES = 16
MEND = b"could not be undone: look at it before you use git or start a session there"


class Keeper:
    """Waits for the program and for the worker, whichever ends first, and ends what is left.

    `pid` is the child; `report` is the read end of its report. `is_enclosed`: the child is a sandbox, whose first
    process reports about the program; otherwise it is the program, and silence until its exec means that it started.
    `protection`: whose names are mended at the end. `output`: the program's, for what could not be.
    """

    def __init__(
        self,
        control: int,
        report: int,
        pid: int,
        *,
        output: int,
        grace_ms: int,
        is_enclosed: bool,
        protection: Protection | None,
    ) -> None:
        self.control = control
        self.report = report
        self.pid = pid
        self.grace_ms = grace_ms
        self.is_enclosed = is_enclosed
        self.output = output
        self.protection = protection
        self.is_running = True
        self.is_started = False
        self.is_settled = False
        self.is_ordered = False
        self.stragglers = 0
        # Whoever is left of a sandbox that died on its way up holds the other end, and says nothing on it.
        os.set_blocking(report, False)

    def keep(self) -> None:
        """Returns when nothing is left, or nothing more can be done about it."""
        program = os.pidfd_open(self.pid)
        poll = select.poll()
        for fd in (self.control, self.report, program):
            poll.register(fd, select.POLLIN)
        while self.is_running and not self.is_ordered:
            ready = {fd for fd, _ in poll.poll(REAP_PERIOD_MS)}
            if self.report in ready and not self.read_report():
                poll.unregister(self.report)
            self.reap()
            if self.control in ready:
                self.is_ordered = True
                self.hear()
        if not self.is_ordered and not self.is_enclosed:
            self.wait_for_stragglers()
        self.end_all()

    def hear(self) -> None:
        """Takes the order off the socket: closing one with something unread loses what was said on it."""
        try:
            os.read(self.control, ORDER_BYTES)
        except OSError:
            pass  # The worker is dead, which is the same order.

    def read_report(self) -> bool:
        """Passes on what the child's side says; False at its end, and when it has said nothing more so far."""
        try:
            data = os.read(self.report, REPORT_BYTES)
        except BlockingIOError:
            return False
        if not self.is_enclosed:
            self.is_started = not data
            self.is_settled = bool(data)
            self.say(b"failed " + data if data else b"started")
            return False
        for line in data.splitlines():
            word, _, rest = line.partition(b" ")
            if word == b"stragglers":
                self.stragglers = int(rest)
                continue
            self.is_started = self.is_started or word == b"started"
            self.is_settled = self.is_settled or word in (b"failed", b"exited")
            self.say(line)
        return bool(data)

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
                self.settle(os.waitstatus_to_exitcode(status))

    def settle(self, status: int) -> None:
        """The child is gone: whatever its report did not say is said now."""
        if self.is_enclosed:
            while not self.is_settled and self.read_report():
                pass
            status = -9  # A sandbox that ends without a word was killed, and the program with it.
        elif not self.is_started and not self.is_settled:
            self.read_report()
        if not self.is_settled:
            self.is_settled = True
            # One that was ended on its way up did not fail: its time was over, or it was cancelled.
            self.say(b"exited %d" % status if self.is_started or self.is_ordered else b"failed sandbox 0")

    def wait_for_stragglers(self) -> None:
        """What the program left running may end by itself for a moment: the far end of a pipe, say."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        for _ in range(0, self.grace_ms, GRACE_POLL_MS):
            if self.reap():
                return
            if poll.poll(GRACE_POLL_MS):
                self.hear()
                return

    def end_all(self) -> None:
        """Kills every descendant, puts right what must not have changed, and reports."""
        count, left = 0, []
        if self.is_enclosed:
            self.end_namespace()
        if not self.reap():
            processes = load_processes()
            own = os.getpid()
            victims = processes.descendants(own)
            count = len([each for each in victims if each.pid != self.pid])

            def find(table: Any) -> set[int]:
                return {each.pid for each in processes.descendants(own, table)}

            left = processes.end_all(find, deadline_s=KILL_DEADLINE_S, on_pass=self.reap)
        if self.protection is not None:
            self.mend(self.protection)
        count += self.stragglers
        if self.reap() or not left:
            self.say(b"gone %d" % count)
        else:
            self.say(f"left {count} {' '.join(str(each.pid) for each in left)}".encode())

    def mend(self, protection: Protection) -> None:
        """Undoes what programs may not do, and says so; what cannot be undone is said as well."""
        for path, is_undone in protection.watch.mend(protection.root):
            if is_undone:
                self.say(b"mended " + os.fsencode(path))
                continue
            try:
                # The program is dead, so that nobody else minds; a pipe that nobody empties must not hold the keeper.
                os.set_blocking(self.output, False)
                os.write(
                    self.output, b"\n[%s was changed, which programs may not, and %s]\n" % (os.fsencode(path), MEND)
                )
            except OSError:
                pass

    def end_namespace(self) -> None:
        """All of it at one stroke: the sandbox dies with its monitor, and its processes with their first.

        One that is ended on its way up may not have asked to die with its monitor yet: it is our child then.
        """
        if self.is_running:
            os.kill(self.pid, SIGKILL)  # Our own child, which only we can reap: nobody else has its number.
        give_up_at = time.monotonic() + KILL_DEADLINE_S
        while not self.reap() and time.monotonic() < give_up_at:
            for pid in own_children():
                try:
                    os.kill(pid, SIGKILL)  # Not reaped either, so that nobody else has its number.
                except PermissionError:
                    pass  # It is reported as what is left.
            time.sleep(REAP_PAUSE_S)

    def say(self, message: bytes) -> None:
        """One packet to the worker."""
        say(self.control, message)


def say(control: int, message: bytes) -> None:
    """One packet to the worker, if it still listens."""
    try:
        os.write(control, message)
    except OSError:
        pass


def own_children() -> list[int]:
    """The children of this process, which has one thread; none where the kernel does not list them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb", buffering=0) as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def load_processes() -> Any:
    """Only needed when something must be killed, and slow to import."""
    if TYPE_CHECKING:
        from ottod.isolation import processes
    else:
        import processes
    return processes
