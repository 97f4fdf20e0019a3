"""Root's event loop on the world's clock.

asyncio's own machinery (ready queue, timers, tasks, futures) is the real one; what is replaced is the selector. When
asyncio would sleep, the world goes on until root's next timer is due or something was handed to root. A call on a
thread runs at once, and is finished after a delay by chance. Root may be killed wherever it touches the world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.world import NS, World

STEP_S = (0.000_005, 0.000_200)
"""What one round of root's loop costs."""
THREAD_S = (0.000_100, 0.060)


class Blocked(BaseException):
    """Raised by what would block its thread for `seconds`. The thread's function is run again when they are over, and
    told so by `World.has_waited`: what root does on threads can be done twice."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Selector:
    """Lets the world go on while root waits."""

    def __init__(self, loop: VirtualLoop, world: World) -> None:
        self._loop = loop
        self._world = world

    def select(self, timeout: float | None) -> tuple[()]:
        world, loop = self._world, self._loop
        world.count_step()
        world.now_ns += int(world.delay(*STEP_S) * NS)
        while (next_ns := world.next_ns) is not None and next_ns <= world.now_ns:
            world.step()
        while not loop.has_work:
            timer_ns, next_ns = loop.next_timer_ns, world.next_ns
            if timer_ns is not None and (next_ns is None or timer_ns <= next_ns):
                world.now_ns = max(world.now_ns, timer_ns)
                break
            world.step()
        loop.after_step()
        return ()

    def close(self) -> None:
        """Nothing is open."""


class VirtualLoop(asyncio.BaseEventLoop):
    """One root's loop. `after_step` is called after each step of it; `is_dead` once root has been killed."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._selector = _Selector(self, world)
        self._clock_resolution = 1e-9
        self.after_step: Callable[[], None] = lambda: None
        self.is_dead = False

    def time(self) -> float:
        return self._world.now_ns / NS

    @property
    def has_work(self) -> bool:
        return bool(self._ready) or self._stopping  # type: ignore[attr-defined]

    @property
    def next_timer_ns(self) -> int | None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        return int(scheduled[0]._when * NS) + 1 if scheduled else None

    @property
    def timer_count(self) -> int:
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]

    def _process_events(self, event_list: object) -> None:
        """Nothing: the world hands its messages over with `call_soon`."""

    def _write_to_self(self) -> None:
        """Nothing: there is no other thread to be woken from."""

    # ------------------------------------------------------------ threads and channels

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.create_future()
        self._world.after(self._world.delay(*THREAD_S), self._in_thread, future, func, args)
        return future

    def _in_thread(
        self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...], has_waited: bool = False
    ) -> None:
        if self.is_dead:
            return
        result, failure = None, None
        self._world.has_waited = has_waited
        try:
            result = func(*args)
        except Blocked as blocked:
            self._world.after(blocked.seconds, self._in_thread, future, func, args, True)
            return
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            failure = error
        finally:
            self._world.has_waited = False
        self.call_soon(_settle, future, result, failure)

    async def sock_sendall(self, sock: Any, data: Any) -> None:
        sock.receive(bytes(data))

    # ------------------------------------------------------------ death

    def kill(self) -> None:
        """Forgets everything that was under way. What runs while coroutines are dismantled can do no harm: the fakes
        refuse a dead root's calls."""
        self.is_dead = True
        self.set_exception_handler(lambda _loop, _context: None)
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            try:
                task.get_coro().close()
            except BaseException:  # noqa: BLE001 - the process is gone; nobody hears it
                pass
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
