"""A workflow as a tree of nodes, made once from its spec, and the places that its nodes have while it runs.

A *node* is a step or a block as it is written. A *place* is a node at one point of the run: within a loop each
iteration has places of its own. A place is known by its path: the ids from the outermost block down, with the count
of each loop's iteration, `build[2]/review`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ottod.errors import ConfigError, Failure
from ottod.protocol.workflows import MAX_ITERATIONS, MAX_STEPS, FailurePolicy, Mode, Step, WorkflowSpec
from ottod.settings.workflow_tree import graph_needs

MAX_DEPTH = 32
"""Blocks within blocks."""

PlaceState = Literal[
    "waiting", "asking", "resting", "ready", "running", "stopping", "completed", "failed", "skipped", "cancelled"
]
ENDED: frozenset[PlaceState] = frozenset({"completed", "failed", "skipped", "cancelled"})
BUSY: frozenset[PlaceState] = frozenset({"running", "stopping"})
"""Of a step in one of these there is a session."""

Verdict = Literal["", "completed", "failed"]


class Node:
    """A step, or a block with nodes within. `needs` are the places of nodes of the same graph, by index."""

    def __init__(self, step: Step, nodes: tuple[Node, ...], *, is_top: bool = False) -> None:
        self.step = step
        self.nodes = nodes
        self.is_top = is_top
        self.needs: tuple[int, ...] = ()
        if step.mode == "graph":
            wanted = graph_needs(step.steps)
            for node in nodes:
                node.needs = tuple(i for i, other in enumerate(nodes) if other.step.id in wanted[node.step.id])

    @property
    def is_block(self) -> bool:
        return self.step.mode is not None

    @property
    def mode(self) -> Mode | None:
        return self.step.mode

    @property
    def policy(self) -> FailurePolicy:
        return self.step.on_failure

    @property
    def max_iterations(self) -> int:
        return self.step.max_iterations or MAX_ITERATIONS

    @property
    def quorum(self) -> int:
        """How many nodes have to complete where not all do: more than half, unless it is said."""
        return 1 if self.policy == "first_success" else self.step.quorum or len(self.nodes) // 2 + 1


def plant(spec: WorkflowSpec) -> Node:
    """The tree of a workflow; its top is the outermost block. Raises ConfigError for one that cannot be run."""
    top = Step(
        id="workflow",
        mode=spec.mode,
        steps=spec.steps,
        on_failure=spec.on_failure,
        quorum=spec.quorum,
        max_iterations=spec.max_iterations,
        until=spec.until,
        on_exhausted=spec.on_exhausted,
        timeout_s=spec.timeout_s,
    )
    count = [0]
    return Node(top, tuple(_grow(step, count, 1) for step in spec.steps), is_top=True)


def _grow(step: Step, count: list[int], depth: int) -> Node:
    count[0] += 1
    if count[0] > MAX_STEPS or depth > MAX_DEPTH:
        raise ConfigError(f"a workflow has at most {MAX_STEPS} steps and blocks, and {MAX_DEPTH} within each other")
    return Node(step, tuple(_grow(each, count, depth + 1) for each in step.steps))


def nodes_below(node: Node) -> Iterator[Node]:
    """The node and all within it, in the order in which they are written."""
    yield node
    for each in node.nodes:
        yield from nodes_below(each)


def any_round(path: str) -> str:
    """The path of a place without the iteration of the innermost loop around it: `build[]/review`."""
    before, bracket, behind = path.rpartition("[")
    return f"{before}[]{behind.partition(']')[2]}" if bracket else path


def blocks_around(spec: WorkflowSpec, path: str) -> list[tuple[str, Step]]:
    """The blocks that a step's path leads through, each with its own path, the outermost first; without the top.

    The path may come from anywhere: what is not there ends it.
    """
    found: list[tuple[str, Step]] = []
    nodes, before = spec.steps, ""
    *parts, _ = path.split("/")
    for part in parts:
        name = part.partition("[")[0]
        if name:
            block = next((step for step in nodes if step.id == name and step.mode is not None), None)
            if block is None:
                return found
            found.append((before + name, block))
            nodes = block.steps
        before += f"{part}/"
    return found


class Place:
    """A node at one point of the run."""

    def __init__(self, path: str, node: Node, above: Place | None) -> None:
        self.path = path
        self.node = node
        self.above = above
        self.state: PlaceState = "waiting"
        self.places: list[Place] = []
        self.iteration = 0
        self.attempt = 0
        self.due_ns: int | None = None
        """When its time-out, or the delay before its next attempt, is over."""
        self.has_leave = node.step.approval is None
        self.failure: Failure | None = None
        self.verdict: Verdict = ""
        """Of a block: what it ends as, once everything within it has ended."""
        self.why: Literal["", "timeout", "abandoned"] = ""
        """Of a step: why it is being stopped."""
        self.session = ""

    @property
    def is_step(self) -> bool:
        return not self.node.is_block

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_bad(self) -> bool:
        """Whether its end is a failure of the block that it is in."""
        return self.state in ("failed", "cancelled") and not self.node.step.optional

    @property
    def loop_count(self) -> int:
        """The iteration of the innermost loop around it; 0 outside of loops."""
        above = self.above
        while above is not None:
            if above.node.mode == "loop":
                return above.iteration
            above = above.above
        return 0

    def begin_nodes(self) -> None:
        """Gives the nodes within a block their places: once, or for the next iteration."""
        self.iteration += 1
        count = f"[{self.iteration}]" if self.node.mode == "loop" else ""
        prefix = f"{self.path}{count}/" if self.path or count else ""
        self.places = [Place(prefix + node.step.id, node, self) for node in self.node.nodes]

    def below(self) -> Iterator[Place]:
        """The places within it, each before those within itself, in the order in which they are written."""
        for place in self.places:
            yield place
            yield from place.below()


NO_CONDITION = "its condition does not hold"
"""Why a place is skipped that is skipped for good."""


def revive(block: Place, skipped: dict[str, str], ends: dict[str, str]) -> None:
    """Opens a block again that has not completed, and gives back their turn to the places within that had not either.

    `skipped` (reasons by path) and `ends` (by id of the node) are of the whole workflow, and forget those.
    """
    block.state, block.verdict, block.failure, block.why = "running", "", None, ""
    ends.pop(block.node.step.id, None)
    # Where a number of them has to complete, one whose failure counts as none is wanted as well.
    needs_all = block.node.policy in ("fail_fast", "wait_all")
    for place in block.places:
        if place.state == "completed" or (needs_all and place.state == "failed" and place.node.step.optional):
            continue
        if place.state == "skipped" and skipped.get(place.path) == NO_CONDITION:
            continue
        if place.places:
            revive(place, skipped, ends)
            continue
        skipped.pop(place.path, None)
        ends.pop(place.node.step.id, None)
        place.state, place.failure, place.why, place.due_ns = "waiting", None, "", None
        place.attempt = place.iteration = 0


def verdict_on(block: Place) -> Verdict:
    """What the ends within a block so far make of it; empty while that is open."""
    places, policy = block.places, block.node.policy
    left = sum(not place.has_ended for place in places)
    if policy in ("quorum", "first_success"):
        done = sum(place.state == "completed" for place in places)
        if done >= block.node.quorum:
            return "completed"
        return "failed" if done + left < block.node.quorum else ""
    bad = any(place.is_bad for place in places)
    if bad and (policy == "fail_fast" or not left):
        return "failed"
    return "" if left else "completed"


def why_failed(block: Place) -> Failure:
    """The failure of a block whose verdict that is."""
    first = next((place.failure for place in block.places if place.is_bad and place.failure is not None), None)
    if block.node.policy in ("fail_fast", "wait_all") and first is not None:
        return first
    done = sum(place.state == "completed" for place in block.places)
    text = f"{block.path or 'the workflow'}: {done} of {len(block.places)} completed, {block.node.quorum} had to"
    return Failure(code="quorum", message=text + (f"; {first.message}" if first is not None else ""))


def next_places(block: Place) -> tuple[list[Place], list[tuple[Place, str]]]:
    """Of a block that goes on: the places whose turn it is, and those that never have one, with the reason."""
    waiting = [place for place in block.places if place.state == "waiting"]
    match block.node.mode:
        case "parallel":
            return waiting, []
        case "graph":
            return _next_of_graph(block, waiting)
        case _:
            is_busy = any(place.state != "waiting" and not place.has_ended for place in block.places)
            return ([] if is_busy else waiting[:1]), []


def _next_of_graph(block: Place, waiting: list[Place]) -> tuple[list[Place], list[tuple[Place, str]]]:
    ready, lost = [], []
    for place in waiting:
        needed = [block.places[index] for index in place.node.needs]
        missing = next((n for n in needed if n.has_ended and not _is_given(n)), None)
        if missing is not None:
            lost.append((place, f"{missing.node.step.id} was needed, and {_ended_as(missing)}"))
        elif all(n.has_ended for n in needed):
            ready.append(place)
    if not ready and not lost and all(place.has_ended or place.state == "waiting" for place in block.places):
        # Each waits for another: what checks definitions refuses that, and here it must not wait for ever.
        lost = [(place, "what it needs waits for it") for place in waiting]
    return ready, lost


def _is_given(place: Place) -> bool:
    return place.state == "completed" or (place.state == "failed" and place.node.step.optional)


def _ended_as(place: Place) -> str:
    return {"failed": "failed", "skipped": "was skipped", "cancelled": "was cancelled"}[place.state]
