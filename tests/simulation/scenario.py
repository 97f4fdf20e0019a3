"""One seed's story: clients start and stop sessions, faults strike, then calm, and everything must come to rest.

The story has three parts. *Storm*: for some simulated seconds clients act and faults happen, each drawn from the
seed, both how often and which. *Calm*: no more faults, and new workers are decent; soon every live session must be at
work, at rest, or parked, and then all are stopped. *Rest*: every session has ended, every process is gone, every
subscriber has everything.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from ottod.errors import Failure
from ottod.protocol import requests, results
from ottod.protocol.specs import AgentSpec, Backoff, Group, Restart, Shutdown
from tests.simulation.client import Client
from tests.simulation.faults import AIMED, FAULTS, Faults
from tests.simulation.machine import Machine
from tests.simulation.oracle import STOP_REASON
from tests.simulation.root import Parts
from tests.simulation.stage import Stage
from tests.simulation.world import Violation, World

SETTLE_S = 35.0
"""Longer than any ladder of stops, adoption, delay or start that is under way when the faults cease."""
REST_S = 45.0
"""From the order to stop everything to the last look."""
STOP_EVERY_S = 3.0
OFTEN_S = 2.0
"""Between two faults, when somebody wants to see these very faults."""
FAMILY_SHARE = 0.25
"""Of the seeds: their sessions are one group that restarts together, which is rare otherwise."""
DEFECTS = ("internal", "local_protocol_error")
"""Refusals that no client can have deserved."""


class Outcome(NamedTuple):
    """What a run did. `failure` is empty when every invariant held."""

    seed: int
    failure: str
    counts: dict[str, int]
    events: int
    steps: int
    simulated_s: float
    digest: int
    lines: list[str]


class Scenario:
    """Acts on one machine."""

    def __init__(self, machine: Machine, seed: int, *, kinds: Sequence[str] = ()) -> None:
        self._machine = machine
        self._world = machine.world
        self._random = random.Random(f"scenario {seed}")
        pick = self._random.choice
        self._storm_s = pick((5.0, 15.0, 30.0))
        self._act_every_s = pick((0.3, 1.0, 3.0))
        self._fault_every_s = pick((0.5, 2.0, 10.0, 1000.0))
        self._max_sessions = pick((3, 8, 16))
        self._tree_share = pick((0.0, 0.3, 0.8))
        self._kinds = [name for name in FAULTS if name not in AIMED and self._random.random() < 0.6]
        if kinds:
            self._kinds, self._fault_every_s = list(kinds), min(self._fault_every_s, OFTEN_S)
        self._faults = Faults(machine, self._random)
        self._is_family = random.Random(f"family {seed}").random() < FAMILY_SHARE
        self._head = ""
        """In a family: the session that the others are children of."""
        self._is_storm = True
        self._sessions: list[str] = []
        self._starts = 0
        self._stops_asked: dict[str, int] = {}

    def begin(self) -> None:
        machine = self._machine
        machine.is_faulty = bool(self._kinds)
        machine.draw_spec = self._spec
        machine.start_root()
        for _ in range(self._random.choice((1, 2, 4))):
            machine.add_client()
        for client in machine.clients:
            client.subscribe("", 1)
        self._world.after(0.5, self._act)
        self._world.after(self._fault_every_s, self._strike)
        self._world.after(self._storm_s, self._calm_down)

    # ------------------------------------------------------------ clients

    def _act(self) -> None:
        if not self._is_storm:
            return
        client = self._random.choice(self._machine.clients)
        dice = self._random.random()
        live = [s for s in self._sessions if self._machine.oracle.story(s).exited is None]
        if len(live) < self._max_sessions and (dice < 0.45 or not live):
            self._start(client)
        elif dice < 0.6:
            self._stop(client, self._random.choice(live), grace_s=self._random.choice((None, None, 0.0, 0.2)))
        elif dice < 0.68:
            self._ask(client, requests.SendInput(session=self._random.choice(live), text="and another thing"))
        elif dice < 0.74:
            self._ask(
                client, requests.WaitSession(session=self._random.choice(live), idle=self._random.random() < 0.5)
            )
        elif dice < 0.80:
            self._ask(client, requests.ListSessions(all=True))
        elif dice < 0.86:
            self._unpark(client, self._random.choice(live))
        elif dice < 0.92 and len(client.views) < 6:
            client.subscribe(self._random.choice(self._sessions), 1)
        else:
            self._faults.stall(client)
        self._world.after(self._random.expovariate(1 / self._act_every_s), self._act)

    def _spec(self) -> AgentSpec:
        pick = self._random.choice
        return AgentSpec(
            name="agent",
            restart=Restart(
                policy=pick(("permanent", "transient", "transient", "temporary")),
                backoff=Backoff(base_s=pick((0.0, 0.2, 1.0)), max_s=3.0),
                significant=self._random.random() < 0.15,
                shutdown=Shutdown(grace_s=pick((None, 0.5)), brutal=self._random.random() < 0.1),
                on_parent_exit=pick(("stop", "stop", "keep")),
            ),
            group=Group(
                strategy=pick(("one_for_one", "one_for_all", "rest_for_one")),
                max_restarts=pick((0, 1, 3)),
                period_s=pick((5.0, 60.0)),
                auto_shutdown=pick(("never", "never", "any_significant", "all_significant")),
            ),
        )

    def _start(self, client: Client) -> None:
        self._starts += 1
        live = [s for s in self._sessions if self._machine.oracle.story(s).exited is None]
        parent = self._random.choice(live) if live and self._random.random() < self._tree_share else ""
        body = requests.StartSession(
            spec=self._spec(),
            task="work" if self._random.random() < 0.9 else "",
            cwd="/",
            parent=parent,
            mode=self._random.choice(("oneshot", "oneshot", "conversation")),
            key=f"key {self._starts}" if self._random.random() < 0.5 else "",
        )
        if self._is_family:
            body = self._of_family(body, live)

        def started(result: results.Result | None, failure: Failure | None) -> None:
            if isinstance(result, results.SessionStartedResult):
                self._sessions.append(result.session)
                if self._is_family and not body.parent:
                    self._head = result.session
            self._note_refusal(failure)

        client.ask(body, started)
        if body.key and self._random.random() < 0.2:
            client.ask(body, started)

    def _of_family(self, body: requests.StartSession, live: list[str]) -> requests.StartSession:
        """The same as its head, or as a child that lives on, so that there is a group to restart."""
        spec, pick = body.spec, self._random.choice
        assert spec is not None
        if self._head not in live:
            group = replace(spec.group, strategy=pick(("one_for_all", "rest_for_one")), max_restarts=pick((1, 3, 10)))
            return replace(body, spec=replace(spec, group=group), parent="", mode="conversation")
        restart = replace(spec.restart, policy=pick(("permanent", "transient")))
        return replace(body, spec=replace(spec, restart=restart), parent=self._head, mode="conversation")

    def _stop(self, client: Client, session: str, *, grace_s: float | None) -> None:
        def stopped(result: results.Result | None, failure: Failure | None) -> None:
            if isinstance(result, results.StopResult):
                self._world.count("stops answered")
                self._machine.oracle.told_of_stop(result)
            self._note_refusal(failure)

        client.ask(requests.StopSession(session=session, grace_s=grace_s, reason=STOP_REASON), stopped)

    def _ask(self, client: Client, body: requests.RequestBody) -> None:
        client.ask(body, lambda result, failure: self._note_refusal(failure))

    def _unpark(self, client: Client, session: str) -> None:
        def answered(_result: results.Result | None, failure: Failure | None) -> None:
            self._machine.oracle.unpark_answered(session)
            self._note_refusal(failure)

        self._machine.oracle.unpark_asked(session)
        client.ask(requests.UnparkSession(session=session), answered)

    def _note_refusal(self, failure: Failure | None) -> None:
        if failure is not None:
            self._world.count(f"refused: {failure.code}")
            if failure.code in DEFECTS:
                self._machine.oracle.fail(f"a defect in root: {failure.code}: {failure.message}")

    # ------------------------------------------------------------ faults

    def _strike(self) -> None:
        if not self._is_storm:
            return
        if self._kinds:
            kind = self._random.choice(self._kinds)
            self._world.note("fault: %s", kind)
            self._world.count(f"fault: {kind}")
            FAULTS[kind](self._faults)
        self._world.after(self._random.expovariate(1 / self._fault_every_s), self._strike)

    # ------------------------------------------------------------ calm and rest

    def _calm_down(self) -> None:
        self._world.note("calm")
        self._is_storm = False
        self._machine.is_faulty = False
        self._machine.tempers.is_calm = True
        self._faults.cease()
        self._world.after(SETTLE_S, self._settle)

    def _settle(self) -> None:
        self._machine.oracle.check_settled()
        self._world.note("stop everything")
        self._stop_all()
        self._world.after(REST_S, self._rest)

    def _stop_all(self) -> None:
        """Again and again, through the front door, until nothing lives; each session a bounded number of times."""
        if self._world.is_over:
            return
        client = self._machine.clients[0]
        for session, story in list(self._machine.oracle.stories.items()):
            asked = self._stops_asked.get(session, 0)
            if story.exited is None and asked < 3:
                self._stops_asked[session] = asked + 1
                self._stop(client, session, grace_s=0.5)
        self._world.after(STOP_EVERY_S, self._stop_all)

    def _rest(self) -> None:
        machine = self._machine
        machine.oracle.check_rest()
        for client in machine.clients:
            client.check_caught_up()
            waiting = [body for body, _ in client.pending.values() if not isinstance(body, requests.Ping)]
            if waiting:
                machine.oracle.fail(f"{client.name} still waits for an answer to {waiting[0]}")
        self._world.is_over = True


def run_seed(
    seed: int,
    stage: Stage,
    directory: Path,
    *,
    parts: type[Parts] = Parts,
    kinds: Sequence[str] = (),
    keep_trace: bool = False,
) -> Outcome:
    """Runs one seed on a stage that has been set. Everything it makes is in `directory` and gone afterwards.

    With `kinds` only these faults strike, and they do so often.
    """
    world = World(seed, keep_trace=keep_trace)
    stage.world = world
    machine = Machine(world, directory, parts=parts)
    stage.processes = machine.processes
    failure, error = "", None
    try:
        Scenario(machine, seed, kinds=kinds).begin()
        machine.run()
    except Violation as violation:
        failure, error = str(violation), violation.__cause__
    finally:
        machine.close()
        stage.world = None
    lines = world.lines() if failure or keep_trace else []
    if error is not None:
        failure += f": {error!r}"
        lines += [line.rstrip() for line in traceback.format_exception(error)]
    return Outcome(
        seed=seed,
        failure=failure,
        counts=world.counts,
        events=machine.oracle.events,
        steps=world.steps,
        simulated_s=world.now_s - 1000,
        digest=hash_of(world),
        lines=lines,
    )


def hash_of(world: World) -> int:
    """Two runs of one seed that differ anywhere have used chance differently."""
    return hash((world.now_ns, world.steps, world.random.random()))
