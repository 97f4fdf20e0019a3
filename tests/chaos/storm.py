"""The faults: which, when and to whom, as the seed says."""

from __future__ import annotations

import heapq
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ottod.isolation.processes import ProcessId
from tests.chaos.host import HUNG_AFTER_S, signal_to
from tests.chaos.visitors import DyingClient, LateReader, Staller, Visitor

if TYPE_CHECKING:
    from tests.chaos.run import Run

FAULTS: dict[str, int] = {
    "SIGKILL of a worker": 12,
    "SIGSTOP of a worker, then SIGCONT": 5,
    "SIGSTOP of a worker for good": 1,
    "SIGKILL of a tool": 6,
    "SIGSTOP of a tool": 4,
    "SIGKILL of an unborn worker": 1,
    "SIGKILL of the zygote": 1,
    "SIGSTOP of the zygote, then SIGCONT": 1,
    "SIGKILL of root": 2,
    "SIGSTOP of root, then SIGCONT": 2,
    "SIGSTOP of root, then SIGKILL": 1,
    "a client that stalls": 2,
    "a client that is killed": 1,
    "a reader that comes late": 2,
}
"""With their weights when one is chosen."""
PAUSE_S = 0.8
"""Between two faults, in the mean."""
ROOT_REST_S = 6.0
"""Between two deaths of root: a root that never gets to its feet would be the only thing that is tested."""
MAX_VISITORS = 6


class Storm:
    """`tick` does what is due. Every kind of fault is done at least once in a run, then at random."""

    def __init__(self, random_: random.Random, run: Run, duration_s: float) -> None:
        self._random = random_
        self._run = run
        self._next_s = 0.0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._visitors: list[Visitor] = []
        self._root_due_s = 0.0
        self._owed = [(random_.uniform(0.1, 0.75) * duration_s, name) for name in sorted(FAULTS)]
        heapq.heapify(self._owed)
        self._acts: dict[str, Callable[[], bool]] = dict(
            zip(
                FAULTS,
                (
                    self._kill_worker,
                    self._freeze_worker,
                    self._freeze_worker_for_good,
                    self._kill_tool,
                    self._freeze_tool,
                    self._kill_unborn,
                    self._kill_zygote,
                    self._freeze_zygote,
                    self._kill_root,
                    self._freeze_root,
                    self._freeze_and_kill_root,
                    self._stall,
                    self._die,
                    self.read_late,
                ),
                strict=True,
            )
        )

    def tick(self, now_s: float) -> None:
        """Injects what is due."""
        self.tick_visitors(now_s)
        while self._owed and self._owed[0][0] <= now_s:
            _due_s, name = heapq.heappop(self._owed)
            if not self._do(name):
                heapq.heappush(self._owed, (now_s + 0.2, name))
                break
        if now_s >= self._next_s:
            self._next_s = now_s + self._random.expovariate(1 / PAUSE_S)
            self._do(self._random.choices(list(FAULTS), list(FAULTS.values()))[0])

    def tick_visitors(self, now_s: float) -> None:
        """What was begun is carried on: thaws, and clients."""
        while self._later and self._later[0][0] <= now_s:
            heapq.heappop(self._later)[2]()
        self._visitors = [visitor for visitor in self._visitors if visitor.pump(now_s)]

    def end(self) -> None:
        """Root and zygote run again; frozen workers stay frozen: to end them is the daemon's task. Visitors leave."""
        for _, _, act in sorted(self._later, key=lambda each: each[:2]):
            act()
        self._later.clear()
        self._run.host.thaw()
        for visitor in self._visitors:
            visitor.leave()
        self._visitors.clear()

    @property
    def is_owing(self) -> bool:
        """Whether some kind of fault was not done yet."""
        return bool(self._owed)

    @property
    def is_reading(self) -> bool:
        """Whether a late reader is at work."""
        return any(isinstance(visitor, LateReader) for visitor in self._visitors)

    def _do(self, name: str) -> bool:
        if not self._acts[name]():
            return False
        self._run.deeds.counts[name] += 1
        return True

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._later, (self._run.findings.now_s + delay_s, self._count, act))

    def _signal(self, process: ProcessId, number: signal.Signals, what: str) -> bool:
        is_done = signal_to(process, number)
        if is_done:
            self._run.findings.note(f"{number.name} to {what} {process.pid}")
        return is_done

    # ------------------------------------------------------------ workers

    def _worker(self) -> tuple[str, int, ProcessId] | None:
        """A living worker, by chance."""
        stories = [s for s in self._run.witness.stories.values() if s.has_worker]
        for story in self._random.sample(stories, min(5, len(stories))):
            process = self._run.census.worker(story.session, story.incarnation)
            if process is not None:
                return story.session, story.incarnation, process
        return None

    def _kill_worker(self) -> bool:
        found = self._worker()
        if found is None:
            return False
        session, incarnation, process = found
        self._run.deeds.killed.add((session, incarnation))
        return self._signal(process, signal.SIGKILL, f"worker {session}.{incarnation}")

    def _freeze_worker(self) -> bool:
        found = self._worker()
        if found is None:
            return False
        # Sometimes longer than a heart may stand still.
        pause_s = self._random.choice((0.2, 1.0, 3.0, HUNG_AFTER_S * 1.5))
        self._after(pause_s, lambda: void(signal_to(found[2], signal.SIGCONT)))
        return self._stop_worker(found)

    def _freeze_worker_for_good(self) -> bool:
        found = self._worker()
        return found is not None and self._stop_worker(found)

    def _stop_worker(self, found: tuple[str, int, ProcessId]) -> bool:
        session, incarnation, process = found
        self._run.deeds.frozen.add((session, incarnation))
        self._run.await_no_more(session)
        return self._signal(process, signal.SIGSTOP, f"worker {session}.{incarnation}")

    def _kill_unborn(self) -> bool:
        run = self._run
        if not run.host.is_up or not run.host.zygote_pid:
            return False
        unborn = run.census.unborn(run.daemon.pid, run.host.zygote_pid)
        if not unborn:
            return False
        process = self._random.choice(unborn)
        run.deeds.birth_troubles_ns.append(time.time_ns())
        run.deeds.processes.add(process)
        return self._signal(process, signal.SIGKILL, "unborn worker")

    # ------------------------------------------------------------ tools

    def _tool(self) -> ProcessId | None:
        stories = [s for s in self._run.witness.stories.values() if s.has_worker and s.open_calls]
        self._random.shuffle(stories)
        if stories:
            self._run.census.look()
        for story in stories[:10]:
            tools = self._run.census.tools(story.session)
            if tools:
                return self._random.choice(tools)
        return None

    def _kill_tool(self) -> bool:
        process = self._tool()
        return process is not None and self._signal(process, signal.SIGKILL, "tool")

    def _freeze_tool(self) -> bool:
        process = self._tool()
        if process is None:
            return False
        if self._random.random() < 0.5:
            self._after(2.0, lambda: void(signal_to(process, signal.SIGCONT)))
        return self._signal(process, signal.SIGSTOP, "tool")

    # ------------------------------------------------------------ zygote and root

    def _kill_zygote(self) -> bool:
        zygote = self._run.host.zygote()
        if zygote is None:
            return False
        self._run.deeds.birth_troubles_ns.append(time.time_ns())
        return self._signal(zygote, signal.SIGKILL, "zygote")

    def _freeze_zygote(self) -> bool:
        zygote = self._run.host.zygote()
        if zygote is None:
            return False
        self._run.deeds.birth_troubles_ns.append(time.time_ns())
        pause_s = self._random.choice((0.5, 2.0, 5.0))
        self._after(pause_s, lambda: void(signal_to(zygote, signal.SIGCONT)))
        return self._signal(zygote, signal.SIGSTOP, "zygote")

    def _may_hurt_root(self) -> bool:
        host, now_s = self._run.host, self._run.findings.now_s
        if not host.is_up or now_s < self._root_due_s or not self._run.is_settled:
            return False
        self._root_due_s = now_s + ROOT_REST_S
        return True

    def _kill_root(self) -> bool:
        if not self._may_hurt_root():
            return False
        self._run.findings.note(f"SIGKILL to root {self._run.daemon.pid}")
        self._run.kill_root(self._random.choice((0.0, 0.1, 1.0, 3.0)))
        return True

    def _freeze_root(self) -> bool:
        if not self._may_hurt_root():
            return False
        self._run.findings.note(f"SIGSTOP to root {self._run.daemon.pid}")
        self._after(self._random.choice((0.3, 1.0, 4.0)), self._run.host.thaw)
        self._run.host.freeze()
        return True

    def _freeze_and_kill_root(self) -> bool:
        """As a watchdog of the service manager does with a root that hangs."""
        if not self._may_hurt_root():
            return False
        self._run.findings.note(f"SIGSTOP to root {self._run.daemon.pid}, to be killed")
        self._after(self._random.choice((0.5, 2.0)), lambda: self._run.kill_root(0.1))
        self._run.host.freeze()
        return True

    # ------------------------------------------------------------ clients

    def _visit(self, visitor: Visitor) -> bool:
        self._visitors.append(visitor)
        return True

    def _stall(self) -> bool:
        run = self._run
        if len(self._visitors) >= MAX_VISITORS or not run.host.is_up:
            return False
        return self._visit(Staller(run.host.line("staller"), run.findings.now_s + self._random.uniform(1, 15)))

    def _die(self) -> bool:
        run = self._run
        live = [s.session for s in run.witness.stories.values() if s.has_worker]
        if len(self._visitors) >= MAX_VISITORS or not run.host.is_up or not live:
            return False
        until_s = run.findings.now_s + self._random.uniform(0.5, 4)
        return self._visit(DyingClient(run.daemon.env, self._random.choice(live), until_s))

    def read_late(self) -> bool:
        """A reader that comes late."""
        run = self._run
        if len(self._visitors) >= MAX_VISITORS or not run.host.is_up or self.is_reading:
            return False
        name = f"late reader {run.deeds.counts['a reader that comes late'] + 1}"
        return self._visit(LateReader(run.host.line("late"), run.witness, name, run.findings.now_s))


def void(_: object) -> None:
    """An act that is wanted for what it does."""
