"""The whole simulated machine: what root sees of the world, and the hands that the scenario has on it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from ottod.isolation.caps import EnclosureKind
from ottod.protocol.specs import AgentSpec
from ottod.settings.sections import RingSettings
from tests.simulation.bus import Endpoint
from tests.simulation.client import Client
from tests.simulation.disk import Disk
from tests.simulation.enclosures import SimEnclosures
from tests.simulation.oracle import Oracle
from tests.simulation.processes import Process, ProcessTable
from tests.simulation.root import Parts, SimRoot
from tests.simulation.settings import SETTINGS
from tests.simulation.temper import Tempers
from tests.simulation.worker import Worker
from tests.simulation.world import RootKilled, Violation, World
from tests.simulation.zygote import PrivateChannel

WORKER_QUEUE = 256
CLIENT_QUEUES = (1000, 1000, 60)


class Machine:
    """One machine for one seed."""

    def __init__(self, world: World, directory: Path, *, parts: type[Parts]) -> None:
        self.world = world
        self.directory = directory
        self.token = "a token"
        self.is_faulty = True
        self.kills = 0
        """How often root has gone in this run, of its own accord or not."""
        self.violation: Violation | None = None
        self.has_jumped = False
        """The wall clock has jumped in this run."""
        self.disk = Disk(world, directory)
        self.processes = ProcessTable(world)
        self.worker_endpoint = Endpoint(world, "worker", limit=WORKER_QUEUE)
        self.control_endpoint = Endpoint(world, "control", limit=world.random.choice(CLIENT_QUEUES))
        self.tempers = Tempers(world)
        sync: Literal["always", "interval", "none"] = world.random.choice(("interval", "interval", "always", "none"))
        self.settings = replace(SETTINGS, ring=RingSettings(sync=sync))
        kind: EnclosureKind = "cgroup" if world.chance(0.5) else "watchdog"
        self.enclosures = SimEnclosures(self.processes, kind, make=parts.enclosure)
        self.oracle = Oracle(world, self)
        self.workers: dict[Worker, None] = {}
        self.clients: list[Client] = []
        self.draw_spec: Callable[[], AgentSpec] = lambda: AgentSpec(name="agent")
        """What an agent that a worker names turns out to be."""
        self.root: SimRoot | None = None
        self.lives = 0
        self._parts = parts
        self.disk.on_append = self.oracle.appended
        self.processes.on_change = self._process_changed

    def _process_changed(self) -> None:
        self.oracle.is_dirty = True

    def give_life(self, process: Process, channel: PrivateChannel) -> None:
        self.workers[Worker(self, process, channel)] = None

    def add_client(self) -> Client:
        client = Client(self, f"client {len(self.clients) + 1}")
        self.clients.append(client)
        return client

    # ------------------------------------------------------------ root comes and goes

    def start_root(self) -> None:
        if self.root is not None:
            return
        self.lives += 1
        self.world.note("root %d is started", self.lives)
        self.root = SimRoot(self, life=self.lives, parts=self._parts)
        self.oracle.root_born(self.root.known_at_birth)

    def kill_root(self) -> None:
        """From within the world: between two callbacks of root's loop."""
        if self.root is not None:
            raise RootKilled("between two steps")

    def bury_root(self) -> None:
        """What the kernel does when root's process is gone."""
        root = self.root
        assert root is not None
        self.world.count("root killed")
        self.kills += 1
        self.world.note("root %d is dead", root.life)
        self.oracle.root_dies(root)
        self.root = None
        root.kill()
        for endpoint in (self.worker_endpoint, self.control_endpoint):
            endpoint.root_died()
        self.processes.forget_watchers()
        for worker in list(self.workers):
            worker.root_died()
        self.oracle.root_died()
        self.world.after(self.world.delay(0.05, 6.0), self.start_root)

    # ------------------------------------------------------------ running

    def run(self) -> None:
        """Until the scenario says that it is over. Raises Violation."""
        while not self.world.is_over:
            root = self.root
            if root is None:
                self.world.step()
                self.oracle.check()
            else:
                try:
                    root.loop.run_forever()
                except RootKilled:
                    self.bury_root()
            self.raise_violation()

    def after_step(self) -> None:
        """After each step of root's loop."""
        self.raise_violation()
        self.oracle.check()
        if self.world.is_over and self.root is not None:
            self.root.loop.stop()

    def raise_violation(self) -> None:
        if self.violation is not None:
            raise self.violation

    # ------------------------------------------------------------ faults

    def born_workers(self) -> list[Worker]:
        return [w for w in self.workers if w.birth is not None and w.process.is_alive]

    def freeze(self, worker: Worker) -> None:
        self.world.note("%s is frozen", worker.process.name)
        self.oracle.story(worker.process.owner).was_frozen = True
        worker.set_frozen(frozen=True)

    def thaw(self, worker: Worker) -> None:
        if worker.process.is_alive and worker.process.is_stopped:
            worker.set_frozen(frozen=False)

    def kill_worker(self, worker: Worker) -> None:
        self.processes.send(worker.process, signal.SIGKILL)

    def describe(self, session: str) -> str:
        """What root holds of a session, for a failure's text."""
        found = self.root.table.get(session) if self.root is not None else None
        alive = [f"{p.name} ({p.pid})" for p in self.processes.of_session(session)]
        state = found.info.state if found is not None else "unknown to root"
        return f"root says {state}; processes: {', '.join(alive) or 'none'}"

    def close(self) -> None:
        if self.root is not None:
            self.root.kill()
        self.disk.close()
