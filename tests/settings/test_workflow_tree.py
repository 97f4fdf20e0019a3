"""What stands before what in a workflow, against the slow way to say the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from ottod.protocol.workflows import Output, Step, WorkflowInput, WorkflowSpec
from ottod.settings.workflow_tree import befores, cycles, graph_needs, ordered, places, reaches

NAMES = st.sampled_from("abcdef")
GRAPHS = st.dictionaries(NAMES, st.frozensets(NAMES, max_size=4), max_size=6).map(
    lambda raw: {node: frozenset(raw.keys() & needs - {node}) for node, needs in raw.items()}
)


def naive_befores(needs: Mapping[str, frozenset[str]], node: str) -> set[str]:
    found: set[str] = set()
    for _ in needs:
        found |= set(needs[node]).union(*(needs[other] for other in found))
    return found


@given(GRAPHS)
def test_an_order_is_one_and_exists_unless_there_is_a_circle(needs: dict[str, frozenset[str]]) -> None:
    """Every node comes after its needs; some order of all exists exactly if no circle is found."""
    order = ordered(needs)
    for node in order:
        assert needs[node] <= set(order[: order.index(node)])
    possible = any(
        all(needs[node] <= set(order[:i]) for i, node in enumerate(order)) for order in permutations(sorted(needs))
    )
    assert possible == (len(order) == len(needs)) == (not cycles(needs))


@given(GRAPHS)
def test_circles_are_circles(needs: dict[str, frozenset[str]]) -> None:
    """Each needs the next and the last the first; no node is on two; the first is reached by no shorter way."""
    found = cycles(needs)
    for circle in found:
        assert all(other in needs[one] for one, other in zip(circle, [*circle[1:], circle[0]], strict=True))
    nodes = [node for circle in found for node in circle]
    assert len(nodes) == len(set(nodes))


@given(GRAPHS)
def test_what_comes_before_is_all_of_it(needs: dict[str, frozenset[str]]) -> None:
    """As by walking the needs again and again."""
    before = befores(needs)
    for node in ordered(needs):
        assert before[node] == naive_befores(needs, node)


@st.composite
def trees(draw: st.DrawFn) -> WorkflowSpec:
    """A workflow with blocks of all modes, whose nodes leave and take a few artifacts."""
    count = iter(range(1000))

    def node(depth: int) -> Step:
        name = f"n{next(count)}"
        artifacts = st.lists(st.sampled_from("pqrst"), max_size=2, unique=True)
        if depth == 0 or draw(st.booleans()):
            outputs = tuple(Output(name=left) for left in draw(artifacts))
            return Step(id=name, agent="a", inputs=tuple(draw(artifacts)), outputs=outputs)
        mode = draw(st.sampled_from(("sequential", "parallel", "loop", "graph")))
        return Step(id=name, mode=mode, steps=tuple(node(depth - 1) for _ in range(draw(st.integers(0, 3)))))

    steps = tuple(node(2) for _ in range(draw(st.integers(0, 3))))
    mode = draw(st.sampled_from(("sequential", "parallel", "loop", "graph")))
    return WorkflowSpec(name="w", mode=mode, steps=steps, inputs=(WorkflowInput(name="p"),))


@given(trees())
def test_what_a_node_may_look_at(spec: WorkflowSpec) -> None:
    """It grows from block to node; a step sees nothing that its rivals leave, and in a graph all that it takes."""
    reach = reaches(spec)
    for place in places(spec):
        here = reach[place.path]
        assert "p" in here.artifacts
        if not place.around:
            continue
        block = place.around[-1]
        outer = reach[place.path[:-2]]
        assert outer.artifacts <= here.artifacts and outer.nodes <= here.nodes
        own = {place.node.id} if isinstance(place.node, Step) else set()
        if block.mode == "parallel":
            assert here == outer
        elif block.mode == "sequential":
            later = {step.id for step in block.steps[int(place.path[-1]) :]}
            assert not later & (here.nodes - outer.nodes)
        elif block.mode == "loop":
            assert own <= here.nodes
        else:
            needs = graph_needs(block.steps)
            assert not cycles(needs) or own
            assert needs[next(iter(own))] <= here.nodes
