"""The threads in which a session's tools wait for files.

Nobody can stop a thread. One whose call is timed out or cancelled is left behind, and comes back once its file
system answers; a dead NFS server or a FUSE program that hangs may never. A few such are borne with, since the pool is
larger. When more than that do not come back, the session would take call after call and finish none: its incarnation
is ended, as a visible crash, and supervision decides. One that computes, a long YAML file for one, comes back: it
counts only once it has used next to nothing of the processor for a while.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 64
"""Far more than calls run at a time; a thread is made when it is needed."""
MAX_STUCK = 4
"""So many threads may be out that nobody waits for any more."""
ABANDON_S = 10.0
"""How long a thread that was left behind may take to come back, or to compute again, before it counts as stuck."""

IDLE_SHARE = 0.001
"""Who uses no more of a processor than this does not compute."""


class Work(Generic[T]):
    """What one thread does, and how much of the processor that thread has used, which any other may ask."""

    def __init__(self, function: Callable[[], T], *, cpu_ns: Callable[[int], int] = time.clock_gettime_ns) -> None:
        self._function = function
        self._cpu_ns = cpu_ns
        self._clock: int | None = None

    def __call__(self) -> T:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        return self._function()

    def cpu_ns(self) -> int:
        """Of its thread so far; 0 if it has not begun, or the thread is gone."""
        try:
            return self._cpu_ns(self._clock) if self._clock is not None else 0
        except OSError:
            return 0


class ToolThreads:
    """One session's. `on_stuck` is called, with their number, when too many threads do not come back."""

    def __init__(
        self,
        *,
        on_stuck: Callable[[int], None] = lambda count: None,
        pool: ThreadPoolExecutor | None = None,
        abandon_s: float = ABANDON_S,
        cpu_ns: Callable[[int], int] = time.clock_gettime_ns,
    ) -> None:
        """`cpu_ns` reads the clock of a thread."""
        self.on_stuck = on_stuck
        self._pool = pool or ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="tool")
        self._abandon_s = abandon_s
        self._cpu_ns = cpu_ns
        self._stuck: set[Future[Any]] = set()

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `asyncio.to_thread`: with the context of whoever calls, which says what was judged of the call."""
        context = contextvars.copy_context()
        work = Work(functools.partial(context.run, function, *args, **kwargs), cpu_ns=self._cpu_ns)
        out = self._pool.submit(work)
        try:
            return await asyncio.wrap_future(out)
        except asyncio.CancelledError:
            if not out.done():
                self._look_later(out, work)
            raise

    @property
    def stuck(self) -> int:
        """How many did not come back, when last looked at."""
        return len(self._stuck)

    def _look_later(self, out: Future[Any], work: Work[Any]) -> None:
        asyncio.get_running_loop().call_later(self._abandon_s, self._look_after, out, work, work.cpu_ns())

    def _look_after(self, out: Future[Any], work: Work[Any], used_ns: int) -> None:
        """Looks whether what was left behind has come back by now, or computes."""
        if not out.done() and work.cpu_ns() - used_ns > self._abandon_s * IDLE_SHARE * 1e9:
            self._look_later(out, work)
            return
        self._stuck = {each for each in (*self._stuck, out) if not each.done()}
        if self.stuck > MAX_STUCK:
            self.on_stuck(self.stuck)

    def close(self) -> None:
        """No more work begins. Does not wait for threads that are out: the process leaves without them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
