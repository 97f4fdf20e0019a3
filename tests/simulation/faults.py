"""What can go wrong with the machine, by name. Each fault picks its victim by chance; most mend themselves."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.client import Client
from tests.simulation.machine import Machine
from tests.simulation.world import NS

PLACES_TO_DIE = (
    *("append", "appended", "lost", "send", "halted", "receive", "hello"),
    *("database", "database answered", "lease", "forked"),
)
"""Where root calls the machine; it dies in the next call there. See `SimRoot.die_at`."""
RARE_PLACES = ("lost", "halted")
"""Worth waiting for."""


class Faults:
    """Strikes one machine."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self._machine = machine
        self._random = chance

    def cease(self) -> None:
        """Mends what does not mend itself at once. Processes that were frozen or stuck have their own time."""
        self._free_disk()
        self._allow_forks()
        if self._machine.root is not None:
            self._machine.root.die_at = None
        for client in self._machine.clients:
            self._thaw_client(client)

    def kill_root(self) -> None:
        root = self._machine.root
        if root is None:
            return
        if self._random.random() < 0.4:
            self._machine.kill_root()
        if root.die_at not in RARE_PLACES:
            root.die_at = self._random.choice(PLACES_TO_DIE)

    def kill_root_after_a_loss(self) -> None:
        if self._machine.root is not None:
            self._machine.root.die_at = "lost"

    def kill_root_after_a_halt(self) -> None:
        if self._machine.root is not None:
            self._machine.root.die_at = "halted"

    def restart_root(self) -> None:
        root = self._machine.root
        if root is not None and root.is_ready:
            root.depart("leave" if self._random.random() < 0.7 else "stop", self._random.choice((0.0, 1.0)))

    def kill_zygote(self) -> None:
        if self._machine.root is not None:
            self._machine.root.zygote.kill()

    def refuse_forks(self) -> None:
        root = self._machine.root
        if root is not None:
            root.zygote.refuses_forks = True
            self._machine.world.after(self._random.uniform(0.1, 3.0), self._allow_forks)

    def _allow_forks(self) -> None:
        if self._machine.root is not None:
            self._machine.root.zygote.refuses_forks = False

    def kill_worker(self) -> None:
        workers = self._machine.born_workers()
        if workers:
            self._machine.kill_worker(self._random.choice(workers))

    def kill_many(self) -> None:
        for worker in self._machine.born_workers():
            if self._random.random() < 0.5:
                self._machine.kill_worker(worker)

    def freeze_worker(self) -> None:
        workers = self._machine.born_workers()
        if workers:
            worker = self._random.choice(workers)
            self._machine.freeze(worker)
            self._machine.world.after(self._random.uniform(0.1, 8.0), self._machine.thaw, worker)

    def freeze_client(self) -> None:
        client = self._random.choice(self._machine.clients)
        client.set_frozen(frozen=True)
        self._machine.world.after(self._random.uniform(0.1, 8.0), self._thaw_client, client)

    def _thaw_client(self, client: Client) -> None:
        client.set_frozen(frozen=False)
        self._resume(client)

    def fill_disk(self) -> None:
        disk = self._machine.disk
        disk.is_full = disk.was_full = True
        self._machine.world.after(self._random.uniform(0.1, 5.0), self._free_disk)

    def _free_disk(self) -> None:
        self._machine.disk.is_full = False

    def jump_clock(self) -> None:
        self._machine.has_jumped = True
        self._machine.world.wall_offset_ns += int(self._random.uniform(-1e4, 1e4) * NS)

    def stall(self, client: Client) -> None:
        """A client that reads, and gives no credit for a while: not a fault, but as bad as one."""
        for view in client.views:
            view.is_paused = True
        self._machine.world.after(self._random.uniform(0.1, 5.0), self._resume, client)

    def _resume(self, client: Client) -> None:
        for view in client.views:
            view.is_paused = False
            client.grant(view)


FAULTS: dict[str, Callable[[Faults], None]] = {
    "kill root": Faults.kill_root,
    "restart root": Faults.restart_root,
    "kill zygote": Faults.kill_zygote,
    "refuse forks": Faults.refuse_forks,
    "kill a worker": Faults.kill_worker,
    "kill half of the workers": Faults.kill_many,
    "freeze a worker": Faults.freeze_worker,
    "freeze a client": Faults.freeze_client,
    "full disk": Faults.fill_disk,
    "wall clock jumps": Faults.jump_clock,
    "kill root after a loss": Faults.kill_root_after_a_loss,
    "kill root after a halt": Faults.kill_root_after_a_halt,
}
AIMED = {"kill root after a loss", "kill root after a halt"}
"""Only for whoever asks for them: chance has them in `kill root`."""
