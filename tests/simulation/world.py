"""The simulated machine: one clock, one stream of randomness, one queue of things that will happen.

Everything outside root (processes, clients, disks, threads) is a callback in the world's queue. Root runs its own
asyncio loop on the same clock; whenever that loop would wait, the world goes on instead (see `loop`). So a run is a
function of its seed: no real time passes and no real thread, process or socket exists.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

NS = 1_000_000_000
BOOT_WALL_NS = 1_700_000_000 * NS
MAX_STEPS = 400_000
"""More happenings than this in one run are a loop that does not end."""
KEPT_TRACE = 400
"""Lines of the trace that are kept for a failure when nobody asked for all of them."""


class Violation(AssertionError):
    """An invariant does not hold."""


class RootKilled(SystemExit):
    """Takes root down between two instructions. Not an `Exception`, so that no handler of root's can survive it."""


class Happening:
    """Something that is due. Cancelling it is cheap."""

    __slots__ = ("arguments", "call", "is_cancelled")

    def __init__(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.call = call
        self.arguments = arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """One run. `now_ns` is the monotonic clock since boot; the wall clock may jump, the monotonic one does not."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(f"world {seed}")
        self.now_ns = 1000 * NS
        self.wall_offset_ns = BOOT_WALL_NS
        self.steps = 0
        self.is_over = False
        self.has_waited = False
        """The call that runs on a thread now has been blocked already, for as long as it had to be."""
        self.trace: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=None if keep_trace else KEPT_TRACE)
        self.counts: dict[str, int] = {}
        self._queue: list[tuple[int, int, Happening]] = []
        self._number = 0

    # ------------------------------------------------------------ time

    @property
    def now_s(self) -> float:
        return self.now_ns / NS

    @property
    def wall_ns(self) -> int:
        return self.now_ns + self.wall_offset_ns

    def after(self, delay_s: float, call: Callable[..., object], *arguments: object) -> Happening:
        """Lets something happen `delay_s` from now."""
        return self.at(self.now_ns + int(max(0.0, delay_s) * NS), call, *arguments)

    def at(self, due_ns: int, call: Callable[..., object], *arguments: object) -> Happening:
        """Lets something happen at `due_ns`; what is due at the same moment happens in the order of these calls."""
        happening = Happening(call, arguments)
        self._number += 1
        heapq.heappush(self._queue, (due_ns, self._number, happening))
        return happening

    @property
    def next_ns(self) -> int | None:
        """When the next thing happens; None if nothing ever will."""
        while self._queue and self._queue[0][2].is_cancelled:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else None

    def step(self) -> None:
        """Goes to the next thing and lets it happen."""
        if self.next_ns is None:
            raise Violation("nothing will ever happen again")
        due_ns, _, happening = heapq.heappop(self._queue)
        self.now_ns = max(self.now_ns, due_ns)
        self.count_step()
        happening.call(*happening.arguments)

    def count_step(self) -> None:
        """Every step of root's loop counts too: a busy loop must end the run, not hang it."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Violation(f"{MAX_STEPS} steps and no end: something spins")

    # ------------------------------------------------------------ chance

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def delay(self, low_s: float, high_s: float) -> float:
        """A delay that is usually near the low end and now and then near the high one."""
        return low_s + (high_s - low_s) * self.random.random() ** 4

    # ------------------------------------------------------------ account

    def note(self, text: str, *arguments: object) -> None:
        """A line of the trace. Formatted only when somebody reads it."""
        self.trace.append((self.now_ns, text, arguments))

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def lines(self) -> list[str]:
        """The trace, readable."""
        return [f"{(at_ns - 1000 * NS) / NS:11.6f}  {text % arguments}" for at_ns, text, arguments in self.trace]
