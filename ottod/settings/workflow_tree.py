"""A workflow as the tree that it is: its nodes with their places, and what flows between them. Pure.

Theory of operation. An artifact's name means one thing in a whole workflow, so that "what may a step take" is a
question about order only. A step may take what the workflow begins with, and what was left before it:

    sequential   by the nodes before it
    loop         by any node of the body: what stands further down is the previous iteration's
    parallel     by nobody beside it
    graph        by the nodes that it needs, and those that they need; whoever leaves an input is needed as well

What a block leaves is what its nodes leave. The same rules hold for what conditions look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ottod.protocol.workflows import Condition, Step, WorkflowSpec
from ottod.settings.yaml_source import DataPath

Node = WorkflowSpec | Step


class Place(NamedTuple):
    """A node, its path in the data of the workflow, and the blocks around it, the outermost first."""

    node: Node
    path: DataPath
    around: tuple[Node, ...]


def places(spec: WorkflowSpec) -> Iterator[Place]:
    """The workflow itself and every node in it, each before those within it, in the order of the file."""
    stack = [Place(spec, (), ())]
    while stack:
        place = stack.pop()
        yield place
        around = (*place.around, place.node)
        for i in range(len(place.node.steps) - 1, -1, -1):
            stack.append(Place(place.node.steps[i], (*place.path, "steps", i), around))


def steps_of(node: Node) -> Iterator[Step]:
    """Every node within a node, in the order of the file; a step itself."""
    if isinstance(node, Step):
        yield node
    for inner in node.steps:
        yield from steps_of(inner)


def is_block(node: Node) -> bool:
    """Whether other nodes stand in it."""
    return node.mode is not None


def left_by(node: Node) -> frozenset[str]:
    """The names of all artifacts that a node, or what is within it, leaves."""
    return frozenset(output.name for step in steps_of(node) for output in step.outputs)


def ids_in(node: Node) -> frozenset[str]:
    """The ids of a node and of all that is within it."""
    return frozenset(step.id for step in steps_of(node))


def taken_by(node: Step) -> frozenset[str]:
    """The names of all artifacts that a node, or what is within it, takes."""
    return frozenset(name for step in steps_of(node) for name in step.inputs)


def graph_needs(steps: Sequence[Step]) -> dict[str, frozenset[str]]:
    """For each node of a graph, the ids of the nodes that must have completed before it.

    Those that it names in `needs` and those that leave what it takes. Names of nodes that are not there are left out.
    """
    ids = {step.id for step in steps}
    leavers: dict[str, set[str]] = {}
    for step in steps:
        for name in left_by(step):
            leavers.setdefault(name, set()).add(step.id)
    return {
        step.id: frozenset(ids.intersection(step.needs)).union(*(leavers.get(name, ()) for name in taken_by(step)))
        - {step.id}
        for step in steps
    }


def befores(needs: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """For each node all that must have completed before it, directly or not; all nodes, if it is on a circle."""
    done: dict[str, frozenset[str]] = {}
    for node in ordered(needs):
        done[node] = needs[node].union(*(done[need] for need in needs[node]))
    return {node: done.get(node, frozenset(needs)) for node in needs}


def ordered(needs: Mapping[str, frozenset[str]]) -> list[str]:
    """The nodes, each after those that it needs; without those that are on a circle or behind one."""
    missing = {node: len(wanted) for node, wanted in needs.items()}
    dependents: dict[str, list[str]] = {}
    for node, wanted in needs.items():
        for need in wanted:
            dependents.setdefault(need, []).append(node)
    order = [node for node, count in missing.items() if not count]
    for node in order:
        for dependent in dependents.get(node, ()):
            missing[dependent] -= 1
            if not missing[dependent]:
                order.append(dependent)
    return order


def cycles(needs: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Circles of needs that share no node, each the shortest through its first: `[a, b]` for a needs b needs a.

    Empty exactly if there is an order.
    """
    stuck = set(needs) - set(ordered(needs))
    found: list[list[str]] = []
    for start in needs:
        if start in stuck:
            circle = _circle(needs, start, stuck)
            stuck -= set(circle)
            if circle:
                found.append(circle)
    return found


def _circle(needs: Mapping[str, frozenset[str]], start: str, within: set[str]) -> list[str]:
    """The shortest way from a node back to itself, without the return; nothing if it is only behind a circle."""
    came_from: dict[str, str] = {}
    waiting = [start]
    for node in waiting:
        for need in sorted(needs[node] & within):
            if need == start:
                way = [node]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if need not in came_from:
                came_from[need] = node
                waiting.append(need)
    return []


class Reach(NamedTuple):
    """What a node may look at: artifacts by name, and ids of nodes, that were left and run before it."""

    artifacts: frozenset[str]
    nodes: frozenset[str]

    def plus(self, *nodes: Node) -> Reach:
        """With what these nodes leave."""
        return Reach(
            self.artifacts.union(*(left_by(node) for node in nodes)),
            self.nodes.union(*(ids_in(node) for node in nodes)),
        )


def reaches(spec: WorkflowSpec) -> dict[DataPath, Reach]:
    """For every node by its path: what it may look at when it begins."""
    reach: dict[DataPath, Reach] = {(): Reach(frozenset(given.name for given in spec.inputs), frozenset())}
    for place in places(spec):
        within = _within(place.node, reach[place.path])
        reach.update(((*place.path, "steps", i), there) for i, there in enumerate(within))
    return reach


def _within(node: Node, here: Reach) -> Iterator[Reach]:
    """What each of a block's nodes may look at, in order."""
    if node.mode == "graph":
        wanted = befores(graph_needs(node.steps))
        for step in node.steps:
            yield here.plus(*(other for other in node.steps if other.id in wanted[step.id] and other.id != step.id))
        return
    if node.mode == "loop":
        here = here.plus(*node.steps)
    for step in node.steps:
        yield here
        if node.mode == "sequential":
            here = here.plus(step)


def conditions(root: Condition, path: DataPath) -> Iterator[tuple[Condition, DataPath]]:
    """A condition and all within it, each with its path."""
    yield root, path
    for key in ("all", "any", "none"):
        for i, inner in enumerate(getattr(root, key)):
            yield from conditions(inner, (*path, key, i))
