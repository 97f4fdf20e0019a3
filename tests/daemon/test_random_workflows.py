"""Workflows made by chance, with real sessions that work, fail, die or hang, some of them stopped in between.

Whatever happens, a workflow ends, runs no more at once than it may, does nothing twice, and leaves nobody behind.
The seed is part of the test's name: the same seed makes the same workflow, and picks the same moment to stop it.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ottoctl.sync import SyncSession
from ottod.protocol import journal as j
from ottod.protocol.requests import ListSessions
from ottod.protocol.specs import Backoff
from ottod.protocol.workflows import Compensation, Condition, Retry, Step, WorkflowSpec
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.workshop import agent, block, start, step, worker, workflow

MODES = ("sequential", "parallel", "loop", "graph")
POLICIES = ("fail_fast", "wait_all", "wait_all", "quorum", "first_success")
NO_DELAY = Backoff(base_s=0, jitter=0)


class Dice:
    """Draws a workflow of a few steps."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._count = 0

    def workflow(self) -> WorkflowSpec:
        mode = self.chance.choice(MODES)
        limit = self.chance.randint(1, 4)
        nodes = self._nodes(mode, depth=2)
        return workflow(mode, *nodes, concurrency=limit, timeout_s=60.0, **self._policy(mode, nodes))

    def _policy(self, mode: str, nodes: list[Step]) -> dict[str, object]:
        policy: dict[str, object] = {"on_failure": self.chance.choice(POLICIES)}
        if mode == "loop":
            policy["max_iterations"] = self.chance.randint(1, 2)
            policy["until"] = Condition(step=self.chance.choice(nodes).id, status="completed")
            policy["on_exhausted"] = self.chance.choice(("fail", "continue"))
        return policy

    def _nodes(self, mode: str, *, depth: int) -> list[Step]:
        made: list[Step] = []
        for _ in range(self.chance.randint(2, 4)):
            needs = ()
            if mode == "graph" and made:
                needs = tuple(sorted({self.chance.choice(made).id for _ in range(self.chance.randint(0, 2))}))
            made.append(self._node(needs, depth=depth))
        return made

    def _node(self, needs: tuple[str, ...], *, depth: int) -> Step:
        self._count += 1
        name = f"n{self._count}"
        optional = self.chance.random() < 0.3
        if depth and self.chance.random() < 0.3:
            mode = self.chance.choice(MODES)
            inner = self._nodes(mode, depth=depth - 1)
            limit = self.chance.choice((None, 1, 2)) if mode in ("parallel", "graph") else None
            return block(
                name, mode, *inner, needs=needs, optional=optional, concurrency=limit, **self._policy(mode, inner)
            )
        who = self.chance.choice(("fine", "fine", "fine", "breaks", "dies", "hangs"))
        undo = Compensation(agent="undoes", task="undo it") if self.chance.random() < 0.3 else None
        return step(
            name,
            who,
            needs=needs,
            optional=optional,
            timeout_s=0.5 if who == "hangs" else None,
            retry=Retry(attempts=self.chance.randint(1, 2), backoff=NO_DELAY),
            compensate=undo,
        )


def people(daemon: RealDaemon) -> None:
    """Who does the steps."""
    agent(daemon, "fine", {"text": "done"})
    agent(daemon, "undoes", {"text": "undone"})
    agent(daemon, "breaks", {"error": {"status": 400, "message": "no"}})
    agent(daemon, "dies", {"text": "almost", "crash": "SIGKILL"}, restart={"backoff": {"base_s": 0}})
    worker(daemon, "hangs", "sleep 300")


def entries(session: SyncSession) -> list[j.JournalEntry]:
    return list(session.journal())


def limits_of(spec: WorkflowSpec) -> dict[str, int]:
    """Block, by the ids of the blocks around it and its own, → how many steps may run within it at once."""
    found = {"": spec.concurrency}
    waiting = [("", node) for node in spec.steps]
    while waiting:
        above, node = waiting.pop()
        if node.mode is not None:
            path = f"{above}{node.id}/"
            found[path] = min(node.concurrency or spec.concurrency, spec.concurrency)
            waiting += [(path, inner) for inner in node.steps]
    return found


def plain(path: str) -> str:
    """A step's path without the counts of loops."""
    return "/".join(part.partition("[")[0] for part in path.split("/") if not part.startswith("["))


def check_books(spec: WorkflowSpec, past: list[j.JournalEntry], seed: int) -> None:
    """What the journal says was done never broke a limit, and nothing was done twice."""
    limits, running = limits_of(spec), Counter[str]()
    begun: Counter[tuple[str, int]] = Counter()
    ended: Counter[tuple[str, int]] = Counter()
    undone: Counter[str] = Counter()
    for entry in past:
        match entry:
            case j.StepBegun():
                begun[entry.path, entry.attempt] += 1
                running.update(b for b in limits if plain(entry.path).startswith(b))
                assert all(running[b] <= limits[b] for b in limits), f"seed {seed}: too much runs in {running}"
            case j.StepEnded() if begun[entry.path, entry.attempt]:
                ended[entry.path, entry.attempt] += 1
                running.subtract(b for b in limits if plain(entry.path).startswith(b))
            case j.CompensationEnded(outcome="completed"):
                undone[entry.path] += 1
            case _:
                pass
    assert set(begun.values()) | set(ended.values()) | set(undone.values()) <= {1}, f"seed {seed}: done twice"
    assert set(begun) == set(ended), f"seed {seed}: not ended {set(begun) - set(ended)}"


def run_by_chance(daemon: RealDaemon, seed: int) -> None:
    """Runs one, stops it perhaps, and looks what is left of it."""
    dice = Dice(seed)
    spec = dice.workflow()
    stop_after = dice.chance.randint(0, 6) if dice.chance.random() < 0.4 else None
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, spec)
        if stop_after is not None:
            wait_for(
                f"seed {seed}: {stop_after} steps have begun, or it is over",
                lambda: (
                    session.info().state == "ended"
                    or sum(isinstance(e, j.StepBegun) for e in entries(session)) >= stop_after
                ),
            )
            assert not session.stop(grace_s=30).remaining_pids, f"seed {seed}"
        result = session.wait(timeout_s=90)
        assert result.cause is not None and result.cause.kind in ("completed", "failed", "cancelled"), f"seed {seed}"
        tree = otto.list_with(ListSessions(tree=session.id, all=True, limit=1000)).sessions
        left = [i.session for i in tree if i.state != "ended" or i.remaining_pids]
        assert not left, f"seed {seed}: {left} are left"
        past = entries(session)
        if result.cause.kind != "cancelled":
            check_books(spec, past, seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_workflow_made_by_chance_ends_and_leaves_nobody(daemon: RealDaemon, seed: int) -> None:
    people(daemon)
    run_by_chance(daemon, seed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_workflows_made_by_chance(daemon: RealDaemon) -> None:
    """The same, sixty of them on one daemon."""
    people(daemon)
    for seed in range(100, 160):
        run_by_chance(daemon, seed)
