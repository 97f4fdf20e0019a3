"""The threads in which a session's tools wait for files.

Nobody can stop a thread. One whose call is timed out or cancelled is left behind, and comes back once its file
system answers; a dead NFS server or a FUSE program that hangs may never. A few such are borne with, since the pool is
larger. When more than that do not come back, the session would take call after call and finish none: its incarnation
is ended, as a visible crash, and supervision decides.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 64
"""Far more than calls run at a time; a thread is made when it is needed."""
MAX_STUCK = 4
"""So many threads may be out that nobody waits for any more."""
ABANDON_S = 10.0
"""How long a thread that was left behind may take to come back before it counts as stuck."""


class ToolThreads:
    """One session's. `on_stuck` is called, with their number, when too many threads do not come back."""

    def __init__(
        self,
        *,
        on_stuck: Callable[[int], None] = lambda count: None,
        pool: ThreadPoolExecutor | None = None,
        abandon_s: float = ABANDON_S,
    ) -> None:
        self.on_stuck = on_stuck
        self._pool = pool or ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="tool")
        self._abandon_s = abandon_s
        self._stuck: set[Future[Any]] = set()

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `asyncio.to_thread`: with the context of whoever calls, which says what was judged of the call."""
        context = contextvars.copy_context()
        work = self._pool.submit(functools.partial(context.run, function, *args, **kwargs))
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if not work.done():
                asyncio.get_running_loop().call_later(self._abandon_s, self._look_after, work)
            raise

    @property
    def stuck(self) -> int:
        """How many did not come back, when last looked at."""
        return len(self._stuck)

    def _look_after(self, work: Future[Any]) -> None:
        """Looks whether what was left behind has come back by now."""
        self._stuck = {each for each in (*self._stuck, work) if not each.done()}
        if self.stuck > MAX_STUCK:
            self.on_stuck(self.stuck)

    def close(self) -> None:
        """No more work begins. Does not wait for threads that are out: the process leaves without them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
