"""The bus: ZeroMQ as its users can tell it.

A peer has one line to an endpoint. What it sends arrives in order, after a delay; lines do not keep order among each
other. A line has a queue with a bound in each direction. A peer that dies leaves behind it what had already left its
process, and only when root has received all of that does its address become unreachable. When root dies everything
on its lines is gone and a line takes nothing until another root listens; then the peer has a new address.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ottod.transport.socket import Outcome
from tests.simulation.world import NS, Happening, World

LATENCY_S = (0.000_020, 0.004)
RECONNECT_S = (0.020, 0.500)
DRAIN_MESSAGES = 256

HELLO = b"\xa4type\xa5hello"
"""How a hello begins, a worker's behind its byte of kind. The moment before root hears it is one to die in."""
HELLO_WITHIN = 16
HALT = b"\xabfor_restart\xc3"
"""In an order to a worker to make room for the next incarnation: what root meant by it must outlive root."""

Frames = list[bytes]


class Line:
    """A peer's end. `on_message` hears root; `is_frozen` says that the peer's process does not run."""

    def __init__(self, endpoint: Endpoint, name: str, on_message: Callable[[Frames], None], *, limit: int) -> None:
        self._endpoint = endpoint
        self._world = endpoint.world
        self.name = name
        self._on_message = on_message
        self._limit = limit
        self.router: Router | None = None
        self.identity = b""
        self.is_closed = False
        self.is_frozen = False
        self._under_way: deque[Happening] = deque()
        self._last_up_ns = 0
        self._last_down_ns = 0
        self._down: deque[Frames] = deque()
        self.arrived = 0
        """Messages that root has not taken yet."""
        endpoint.join(self)

    # ------------------------------------------------------------ up

    def send(self, frames: Frames) -> bool:
        """Queues a message to root. False while nobody listens or the queue is full."""
        if self.is_closed or self.router is None or len(self._under_way) + self.arrived >= self._limit:
            return False
        self._post(frames)
        return True

    def _post(self, frames: Frames | None) -> None:
        world = self._world
        due_ns = max(self._last_up_ns, world.now_ns + int(world.delay(*LATENCY_S) * NS))
        self._last_up_ns = due_ns
        happening = world.at(due_ns, self._arrive, self.router, frames)
        self._under_way.append(happening)

    def _arrive(self, router: Router, frames: Frames | None) -> None:
        self._under_way.popleft()
        if router is self.router:
            router.take_in(self, frames)

    def close(self, *, is_killed: bool) -> None:
        """The peer is gone. A killed one may take with it what was still in its own queue."""
        if self.is_closed:
            return
        if is_killed and self._under_way:
            for _ in range(self._world.random.randrange(len(self._under_way) + 1)):
                self._under_way.pop().cancel()
        self.is_closed = True
        self._endpoint.lines.pop(self, None)
        if self.router is not None:
            self._post(None)

    # ------------------------------------------------------------ down

    def hand_down(self, frames: Frames) -> Outcome:
        """Root sends. Called by the router."""
        if self.is_closed:
            return "sent"  # ZeroMQ does not know yet that nobody will read it.
        if len(self._down) >= self._limit:
            return "full"
        self._down.append(frames)
        if not self.is_frozen:
            self._deliver_soon()
        return "sent"

    def _deliver_soon(self) -> None:
        world = self._world
        due_ns = max(self._last_down_ns, world.now_ns + int(world.delay(*LATENCY_S) * NS))
        self._last_down_ns = due_ns
        world.at(due_ns, self._deliver, self.router)

    def _deliver(self, router: Router | None) -> None:
        if self.is_frozen or self.is_closed or router is not self.router or not self._down:
            return
        self._on_message(self._down.popleft())

    def thaw(self) -> None:
        """The peer's process runs again and reads what has gathered."""
        self.is_frozen = False
        for _ in range(len(self._down)):
            self._deliver_soon()

    # ------------------------------------------------------------ root comes and goes

    def connect(self, router: Router) -> None:
        if self.is_closed or router.is_closed or self._endpoint.router is not router:
            return
        self.router = router
        self.identity = self._world.random.randbytes(5)
        router.peers[self.identity] = self

    def cut(self) -> None:
        """Root is gone, with everything that was on the line."""
        self.router = None
        for happening in self._under_way:
            happening.cancel()
        self._under_way.clear()
        self._down.clear()
        self.arrived = 0


class Endpoint:
    """An address: survives the roots that listen on it. Queues hold `limit` messages."""

    def __init__(self, world: World, name: str, *, limit: int) -> None:
        self.world = world
        self.name = name
        self.limit = limit
        self.router: Router | None = None
        self.lines: dict[Line, None] = {}

    def join(self, line: Line) -> None:
        self.lines[line] = None
        if self.router is not None:
            self.world.after(self.world.delay(*LATENCY_S), line.connect, self.router)

    def listen(self, router: Router) -> None:
        """A root begins to listen; those who wait for one find it after a while."""
        self.router = router
        for line in self.lines:
            self.world.after(self.world.delay(*RECONNECT_S), line.connect, router)

    def root_died(self) -> None:
        if self.router is not None:
            self.router.is_closed = True
        self.router = None
        for line in list(self.lines):
            line.cut()


class Router:
    """Root's end, with the interface of `ottod.transport.socket.Socket`."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Frames], None],
        on_drained: Callable[[], None] = lambda: None,
        guard: Callable[[str], None],
    ) -> None:
        self._endpoint = endpoint
        self._loop = loop
        self._on_message = on_message
        self._on_drained = on_drained
        self._guard = guard
        self._inbound: deque[tuple[Line, Frames | None]] = deque()
        self._is_drain_due = False
        self.is_closed = False
        self.peers: dict[bytes, Line] = {}
        endpoint.listen(self)

    def send(self, frames: Frames) -> bool:
        return self.try_send(frames) == "sent"

    def try_send(self, frames: Frames) -> Outcome:
        self._guard("send")
        line = self.peers.get(bytes(frames[0]))
        if line is None:
            return "gone"
        outcome = line.hand_down([bytes(frame) for frame in frames[1:]])
        if HALT in frames[-1]:
            self._guard("halted")
        return outcome

    def is_reachable(self, identity: bytes) -> bool:
        return identity in self.peers

    def take_in(self, line: Line, frames: Frames | None) -> None:
        """A message, or the news of a peer's end, has come to this process."""
        if self.is_closed:
            return
        self._inbound.append((line, frames))
        line.arrived += 1
        if not self._is_drain_due:
            self._is_drain_due = True
            self._loop.call_soon(self._drain)

    @property
    def queued(self) -> int:
        return len(self._inbound)

    def _drain(self) -> None:
        self._is_drain_due = False
        for _ in range(DRAIN_MESSAGES):
            if not self._inbound or self.is_closed:
                break
            line, frames = self._inbound.popleft()
            line.arrived -= 1
            if frames is None:
                self.peers.pop(line.identity, None)
                continue
            self._guard("hello" if HELLO in frames[0][:HELLO_WITHIN] else "receive")
            try:
                self._on_message([line.identity, *frames])
            except Exception as error:  # noqa: BLE001 - as the real socket does
                self._loop.call_exception_handler({"message": "message handler failed", "exception": error})
        else:
            self._is_drain_due = True
            self._loop.call_soon(self._drain)
        if not self.is_closed:
            self._on_drained()

    def close(self, *, linger_ms: int = 0) -> None:
        """What root sent before still arrives."""
        self.is_closed = True
