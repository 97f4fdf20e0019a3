"""A shell for supervisor nodes that is as plain as can be: no processes, everything at once.

A supervisor in a tree is a `SupervisorNode` and the set of its workers that "live". Orders are carried out in the
moment they are given and their answers fed back, as a synchronous OTP supervisor would see them. `GiveUp` and
`AutoShutdown` end the supervisor, and its parent's node is told `ChildExited(shutdown)`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ottod.core.supervision import (
    AutoShutdown,
    ChildAdded,
    ChildDeleted,
    ChildExited,
    ChildReady,
    ChildSpec,
    ChildStopRequested,
    DropChild,
    ExitReason,
    GiveUp,
    GroupStopped,
    KeepDown,
    StartChild,
    StartFailed,
    StopChild,
    StopRequested,
    SupervisionAction,
    SupervisionEvent,
    SupervisorNode,
)
from ottod.protocol.specs import Backoff, Group

NO_DELAY = Backoff(base_s=0.0, jitter=0.0)
REASONS: dict[str, ExitReason] = {
    "normal": "normal",
    "shutdown": "shutdown",
    "x": "shutdown",
    "crash": "error",
    "kill": "error",
}
Seen = list[Any]


class World:
    """What all supervisors of one tree share: the clock, the planned failures, and what was seen in this step."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.fails: dict[str, int] = {}
        self.did: list[str] = []
        self.gave_up: list[str] = []
        self.ended: list[str] = []

    def seen(self, result: str, state: str) -> Seen:
        """The step in the recorder's form; the next step begins empty."""
        seen = [result, self.did, self.gave_up, sorted(self.ended), state]
        self.did, self.gave_up, self.ended = [], [], []
        return seen


class Supervisor:
    """One supervisor of the tree, alive from `start` until it has ended."""

    def __init__(self, world: World, path: str, tree: list[Any], parent: Supervisor | None = None) -> None:
        strategy, intensity, period_s, auto_shutdown, children = tree
        group = Group(strategy=strategy, max_restarts=intensity, period_s=period_s, auto_shutdown=auto_shutdown)
        self.world, self.path, self.parent = world, path, parent
        self.plans: dict[str, list[Any]] = {child[0]: child for child in children}
        self.node = SupervisorNode(group=group)
        self.workers: set[str] = set()
        self.supervisors: dict[str, Supervisor] = {}
        self.has_ended = False

    def path_of(self, child: str) -> str:
        return f"{self.path}.{child}".lstrip(".")

    def start(self) -> bool:
        """Starts all children in order. If one fails, those before it are stopped again."""
        for child in list(self.plans):
            if not self.start_child(child):
                self.tell(StopRequested(), told_by_parent=True)
                return False
            self.introduce(child)
        return True

    def introduce(self, child: str) -> None:
        """Makes a child that was started from outside a member of the group."""
        _, restart, significant, *_ = self.plans[child]
        spec = ChildSpec(id=child, restart=restart, significant=bool(significant), backoff=NO_DELAY)
        self.tell(ChildAdded(child=spec))
        self.tell(ChildReady(child=child))

    def start_child(self, child: str) -> bool:
        """What a child spec's start function does."""
        plan, path, world = self.plans[child], self.path_of(child), self.world
        if len(plan) > 3:
            world.did.append(f"+{path}")
            below = Supervisor(world, path, plan[3], self)
            if below.start():
                self.supervisors[child] = below
                return True
            world.ended.append(f"{path}=start_failed")
            world.did.append(f"!{path}")
            return False
        if world.fails.get(path, 0) > 0:
            world.fails[path] -= 1
            world.did.append(f"!{path}")
            return False
        world.did.append(f"+{path}")
        self.workers.add(child)
        return True

    def stop_child(self, child: str) -> list[SupervisionEvent]:
        """What a supervisor does to end a child, and the exit that answers it. A dead child's exit is on its way."""
        if child in self.supervisors:
            below = self.supervisors.pop(child)
            below.tell(StopRequested(), told_by_parent=True)
            self.world.ended.append(f"{below.path}=shutdown")
        elif child in self.workers:
            self.workers.remove(child)
            self.world.did.append(f"-{self.path_of(child)}")
        else:
            return []
        return [ChildExited(child=child, reason="shutdown")]

    def tell(self, *happened: SupervisionEvent, told_by_parent: bool = False) -> None:
        """Gives the node what happened, carries out its orders, and so on until there are none."""
        events: deque[SupervisionEvent] = deque(happened)
        while events:
            actions = self.node.step(events.popleft(), now_ns=self.world.now_ns)
            self.node.validate()
            for action in actions:
                events.extend(self.carry_out(action))
        if self.has_ended and not told_by_parent and self.parent is not None:
            child = self.path.rpartition(".")[2]
            self.parent.supervisors.pop(child)
            self.parent.tell(ChildExited(child=child, reason="shutdown"))

    def carry_out(self, action: SupervisionAction) -> list[SupervisionEvent]:
        """The answers that an order has."""
        match action:
            case StartChild(child=child):
                return [ChildReady(child=child) if self.start_child(child) else StartFailed(child=child)]
            case StopChild(child=child):
                return self.stop_child(child)
            case GiveUp() | AutoShutdown():
                self.has_ended = True
                if isinstance(action, GiveUp):
                    self.world.gave_up.append(self.path)
                self.world.ended.append(f"{self.path}=shutdown")
            case GroupStopped() | DropChild() | KeepDown():
                pass
            case _:
                raise AssertionError(f"without delays there is no {action}")
        return []

    def find(self, path: list[str]) -> Supervisor | None:
        if not path:
            return self
        below = self.supervisors.get(path[0])
        return None if below is None else below.find(path[1:])

    def state(self) -> str:
        """The tree as text, as the recorder writes it."""
        if self.has_ended:
            return "ended"
        text = ""
        for child in self.node.children:
            member = self.node.member(child)
            assert member is not None
            if member.state == "down":
                text += f"{child}-"
            elif child in self.supervisors:
                text += f"{child}({self.supervisors[child].state()})"
            else:
                text += f"{child}{'+' if child in self.workers and member.state == 'running' else '?'}"
        return text


def replay(tree: list[Any], steps: list[list[Any]]) -> list[Seen]:
    """What our nodes do in this sequence: the same form as the recorder's, one entry for the start and each step."""
    world = World()
    top = Supervisor(world, "", tree)
    assert top.start(), "nothing fails before the first step"
    seen = [world.seen("", top.state())]
    for step in steps:
        result = _step(world, top, step)
        seen.append(world.seen(result, top.state()))
    return seen


def _step(world: World, top: Supervisor, step: list[Any]) -> str:
    match step:
        case ["wait", seconds]:
            world.now_ns += seconds * 1_000_000_000
            return ""
        case ["fail", path, times]:
            world.fails[path] = times
            return ""
        case ["exits", path, endings]:
            supervisor = top.find(path.split(".") if path else [])
            return "skip" if supervisor is None else _finish(supervisor, endings)
        case [kind, path, *rest]:
            *above, child = path.split(".")
            supervisor = top.find(above)
            return "skip" if supervisor is None else _do(supervisor, kind, child, rest)
        case _:
            raise ValueError(f"not a step: {step}")


def _finish(supervisor: Supervisor, endings: list[list[str]]) -> str:
    """Ends workers, all of them before the node hears of the first."""
    alive = [(child, REASONS[reason]) for child, reason in endings if child in supervisor.workers]
    supervisor.workers -= {child for child, _ in alive}
    results = ["ok" if child in dict(alive) else "skip" for child, _ in endings]
    supervisor.tell(*(ChildExited(child=child, reason=reason) for child, reason in alive))
    return " ".join(results)


def _do(supervisor: Supervisor, kind: str, child: str, rest: list[Any]) -> str:
    if kind == "exit":
        return _finish(supervisor, [[child, rest[0]]])
    if kind == "add":
        supervisor.plans[child] = rest[0]
    elif (member := supervisor.node.member(child)) is None:
        return "not_found"
    elif kind == "remove":
        supervisor.tell(ChildStopRequested(child=child))
        return "ok"
    elif member.state != "down":
        return "running"
    elif kind == "delete":
        supervisor.tell(ChildDeleted(child=child))
        return "ok"
    assert supervisor.start_child(child), "sequences do not mix planned failures with starts by hand"
    supervisor.introduce(child)
    return "ok"
