"""One life of root: the real parts, assembled as the daemon assembles them, over the machine's fakes.

What survives from one life to the next is only what survives in reality: the ring's file, the database's committed
rows, and the processes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from ottod.errors import OttoError
from ottod.protocol.requests import StartSession
from ottod.protocol.results import DaemonStatus, MetricsReport, ReloadResult
from ottod.protocol.specs import AgentSpec, ModelTarget
from ottod.root.context import RootContext
from ottod.root.control_gate import MAX_PENDING, ControlGate
from ottod.root.definitions import NOTHING_KEPT, Kept
from ottod.root.hub import Hub
from ottod.root.resolve import ANYBODY, Resolved, Wanted
from ottod.root.ring_sync import RingSync
from ottod.root.service import Service
from ottod.root.session_table import Session, SessionTable
from ottod.root.supervisor import Supervisor
from ottod.root.worker_gate import WorkerGate
from ottod.telemetry.instruments import Instruments
from ottod.telemetry.log import Ids
from tests.simulation.bus import Router
from tests.simulation.disk import SimDatabase
from tests.simulation.enclosures import SimEnclosure
from tests.simulation.loop import VirtualLoop
from tests.simulation.processes import SimReaper
from tests.simulation.world import RootKilled, Violation
from tests.simulation.zygote import Zygote

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

TARGET = ModelTarget(provider="scripted", adapter="scripted", model="/script.yml", needs_key=False)

HALTED_S = (0.001, 0.5)
"""How long root may live on after it has told a worker to make room for the next one."""
REMEMBERS = ("_ended", "_keys")
"""Containers with a bound of their own: ended sessions, and keys of starts."""


def _is_part(value: object) -> bool:
    """One of root's own objects. Sessions are not: they come and go in the table, which is looked at."""
    is_of_root = type(value).__module__.startswith(("ottod.root.", "tests.simulation.mutants"))
    return is_of_root and hasattr(value, "__dict__") and not isinstance(value, (RootContext, Session))


class Threads:
    """Stands where the thread pool stands; the loop runs its work (see `loop`)."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def submit(self, function: Any, *arguments: Any) -> None:
        self._loop.run_in_executor(None, function, *arguments)


class _Log:
    """The part of `ottod.telemetry.log.Log` that the ring's sync uses."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.error = log


class SimResolver:
    """Resolves without files: every directory exists, and an agent is what its spec says, or chance."""

    def __init__(self, draw_spec: Callable[[], AgentSpec]) -> None:
        self._draw_spec = draw_spec

    def resolve(
        self, request: StartSession, directory: Path, kept: Kept = NOTHING_KEPT, wanted: Wanted = ANYBODY
    ) -> Resolved:
        return Resolved(
            spec=request.spec or self._draw_spec(),
            models=(TARGET,),
            api_keys={},
            env=dict(request.env),
            cwd=request.cwd,
        )

    def keys(self, models: tuple[ModelTarget, ...]) -> dict[str, str]:
        return {}


class Parts:
    """The classes that root is made of; a mutant replaces one of them."""

    supervisor = Supervisor
    gate = WorkerGate
    hub = Hub
    control = ControlGate
    enclosure = SimEnclosure
    table = SessionTable


class SimRoot:
    """Root, alive until `kill`. Its calls into the machine may be where it dies."""

    def __init__(self, machine: Machine, *, life: int, parts: type[Parts]) -> None:
        self.machine = machine
        self.world = machine.world
        self.life = life
        self.is_ready = False
        self._is_departing = False
        self.die_at: str | None = None
        """The name of the next call in which root dies."""
        self.loop = loop = VirtualLoop(machine.world)
        loop.set_exception_handler(self._on_loop_error)
        loop.after_step = machine.after_step
        self.database = SimDatabase(machine.disk, loop, self._guard)
        newest = machine.disk.newest_offset()
        self.ring = machine.disk.open_ring(self._guard, min_next_offset=newest + 1)
        self.known_at_birth = {span.session_key for span in self.ring.sessions()}
        self.hub = parts.hub(self.ring, loop, max_subscriptions_per_client=64, max_credit_bytes=8 * 1024 * 1024)
        self.table = parts.table(self.database.put_session_nowait)
        self.gate = parts.gate(loop, self.table, self.hub, log=self._log)
        self.zygote = Zygote(
            machine.world,
            loop,
            machine.processes,
            generation=life * 1000,
            give_life=machine.give_life,
            guard=self._guard,
        )
        self.reaper = SimReaper(machine.processes, loop)
        self.context = RootContext(
            loop,
            settings=machine.settings,
            table=self.table,
            hub=self.hub,
            gate=self.gate,
            zygote=self.zygote,  # type: ignore[arg-type]
            database=self.database,
            threads=self._threads(),
            sessions_dir=machine.directory / "sessions",
            enclosures=machine.enclosures,  # type: ignore[arg-type]
            instruments=Instruments(),
            log=self._log,
            random=machine.world.random.random,
        )
        self.supervisor = parts.supervisor(
            self.context,
            resolver=SimResolver(machine.draw_spec),  # type: ignore[arg-type]
            reaper=self.reaper,  # type: ignore[arg-type]
            worker_endpoint="sim://worker",
            private_dirs=(),
        )
        service = Service(
            table=self.table,
            supervisor=self.supervisor,
            hub=self.hub,
            database=self.database,
            daemon=self,
        )
        self.control = parts.control(
            loop,
            self.hub,
            service.serve,
            instance=f"life {life}",
            pid=2,
            token=machine.token,
            max_clients=64,
            log=self._log,
        )
        self.routers: list[Router] = []
        loop.create_task(self._boot()).add_done_callback(self._booted)

    def _threads(self) -> ThreadPoolExecutor:
        return Threads(self.loop)  # type: ignore[return-value]

    def _guard(self, where: str) -> None:
        """Every call that leaves root passes here. A dead root's coroutines, dismantled, come no further."""
        if self.loop.is_dead:
            raise RootKilled(where)
        if where == self.die_at == "halted":
            # The order is on its way, and has some time to be heard.
            self.die_at = None
            self.world.after(self.world.delay(*HALTED_S), self.machine.kill_root)
        elif self.die_at is not None and where == self.die_at:
            self.world.note("root is killed in %s", where)
            # From here on nothing that is still run while the exception passes can reach the machine.
            self.loop.is_dead = True
            raise RootKilled(where)

    def _listen(self, endpoint: Any, on_message: Any, on_drained: Any = lambda: None) -> Router:
        router = Router(endpoint, loop=self.loop, on_message=on_message, on_drained=on_drained, guard=self._guard)
        self.routers.append(router)
        return router

    async def _boot(self) -> None:
        """In the daemon's order: what was left behind, then workers, then clients."""
        while True:
            try:
                await self.supervisor.take_over()
                break
            except OttoError as error:
                # The daemon ends here, and its service manager starts it again.
                self._log(f"boot: {error}")
                raise RootKilled("boot failed") from error
        self.gate.attach(self._listen(self.machine.worker_endpoint, self.gate.handle, self.gate.drained))  # type: ignore[arg-type]
        try:
            await self.supervisor.listening()
        except OttoError as error:
            self._log(f"boot: {error}")
            raise RootKilled("boot failed") from error
        sync = RingSync(
            self.ring,
            settings=self.machine.settings,
            hub=self.hub,
            workers=self.gate,
            threads=self._threads(),
            instruments=self.context.instruments,
            log=_Log(self._log),  # type: ignore[arg-type]
            on_broken=lambda: self.depart("stop", 0.0),
        )
        self._sync_task = self.loop.create_task(sync.run())
        self.control.attach(self._listen(self.machine.control_endpoint, self.control.handle))  # type: ignore[arg-type]
        self.is_ready = True
        self.world.note("root %d is ready", self.life)

    def _booted(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": "root cannot boot", "exception": error})

    # ------------------------------------------------------------ what clients can ask of the daemon

    def status(self) -> DaemonStatus:
        raise AssertionError("nobody asks")

    async def metrics(self) -> MetricsReport:
        raise AssertionError("nobody asks")

    async def upgrade(self) -> None:
        self.depart("leave", 0.0)

    async def reload(self) -> ReloadResult:
        return ReloadResult()

    def shut_down(self, grace_s: float, *, keep_sessions: bool = False) -> None:
        self.depart("leave" if keep_sessions else "stop", grace_s)

    def depart(self, how: Literal["stop", "leave"], grace_s: float) -> None:
        """Root goes of its own accord, once; the machine starts another."""
        if not self._is_departing:
            self._is_departing = True
            self.loop.create_task(self._depart(how, grace_s))

    async def _depart(self, how: Literal["stop", "leave"], grace_s: float) -> None:
        self.world.note("root %d goes: %s", self.life, how)
        self.world.count(f"root goes: {how}")
        try:
            if how == "stop":
                await self.supervisor.stop_all(grace_s=grace_s)
            else:
                await self.supervisor.leave_alone()
        except OttoError as error:
            self._log(f"departure: {error}")
        await asyncio.sleep(0)
        self.control.close(is_final=how == "stop")
        self.supervisor.close()
        self.gate.close()
        self.zygote.close()
        self._sync_task.cancel()
        try:
            await self.database.flush()
            self.database.close()
        except OttoError as error:
            self._log(f"database: {error}")
        raise RootKilled("root has gone")

    # ------------------------------------------------------------ observation

    def _log(self, message: str, **ids: Unpack[Ids]) -> None:
        self.world.note("root logs: %s %s", message, ids or "")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.loop.is_dead or isinstance(error, RootKilled):
            return
        if isinstance(error, Violation):
            self.machine.violation = self.machine.violation or error
            return
        if isinstance(error, OttoError) and self.machine.disk.was_full:
            self._log(f"{context.get('message')}: {error}")
            return
        self.machine.violation = self.machine.violation or Violation(f"a defect in root: {context.get('message')}")
        self.machine.violation.__cause__ = error if isinstance(error, BaseException) else None

    def sizes(self) -> list[tuple[str, int, int]]:
        """What could grow without end while root works: what, how much there is, and its bound."""
        live, clients = self.table.live_count, len(self.machine.clients)
        return [
            ("tasks", len(asyncio.all_tasks(self.loop)), 20 + 8 * live + clients * MAX_PENDING),
            ("timers", self.loop.timer_count, 40 + 16 * live + 64 * clients),
            ("messages on their way in", sum(r.queued for r in self.routers), 256 * (live + 1) + 1000 * clients),
            *((name, size, 64 + 16 * live + 64 * clients) for name, size in self.holdings()),
        ]

    def holdings(self) -> list[tuple[str, int]]:
        """Every container that root's parts hold on to, by part and name, but those that are to remember."""
        parts: list[object] = [self.gate, self.hub, self.table, self.control, self.supervisor]
        found = []
        for part in parts:
            for name, value in vars(part).items():
                if _is_part(value) and value not in parts:
                    parts.append(value)
                if isinstance(value, (dict, set, list, deque)) and name not in REMEMBERS:
                    found.append((f"{type(part).__name__}.{name}", len(value)))
        return found

    # ------------------------------------------------------------ death

    def kill(self) -> None:
        """kill -9: nothing of it runs any more."""
        self.loop.kill()
        self.ring.close(clean=False)
        self.zygote.root_died()
