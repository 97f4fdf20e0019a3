"""The rules of the decision graph against a table, and against models that are slow and plain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ottod.core.decisions import (
    JOINS,
    KINDS,
    Edge,
    Thought,
    around,
    before_and_after,
    pending_options,
    refusal,
    status_refusal,
    weigh,
)
from ottod.protocol.decisions import EdgeKind, NodeKind, NodeStatus

EDGE_KINDS: tuple[EdgeKind, ...] = get_args(EdgeKind)
STATUSES: tuple[NodeStatus, ...] = get_args(NodeStatus)
NAMES = tuple("abcdef")

# ---------------------------------------------------------------- what may be joined


JOINED: tuple[tuple[NodeKind, EdgeKind, NodeKind, bool], ...] = (
    ("goal", "leads_to", "decision", True),
    ("decision", "leads_to", "action", True),
    ("action", "leads_to", "outcome", True),
    ("outcome", "leads_to", "goal", True),
    ("revisit", "leads_to", "decision", True),
    ("observation", "leads_to", "revisit", True),
    ("goal", "leads_to", "outcome", False),
    ("action", "leads_to", "option", False),
    ("decision", "chosen", "option", True),
    ("option", "chosen", "decision", False),
    ("decision", "rejected", "option", True),
    ("goal", "rejected", "option", False),
    ("action", "requires", "observation", True),
    ("goal", "requires", "action", False),
    ("outcome", "requires", "goal", False),
    ("observation", "blocks", "action", True),
    ("goal", "blocks", "action", False),
    ("outcome", "enables", "goal", True),
    ("revisit", "enables", "goal", False),
    ("decision", "supersedes", "decision", True),
    ("decision", "supersedes", "option", False),
    ("observation", "supports", "decision", True),
    ("goal", "supports", "decision", False),
    ("revisit", "revises", "decision", True),
    ("decision", "revises", "decision", False),
)


@pytest.mark.parametrize(("source", "edge", "target", "may"), JOINED)
def test_which_edges_join_which_kinds(source: NodeKind, edge: EdgeKind, target: NodeKind, may: bool) -> None:
    """The table says so, and a refusal says what there could be instead."""
    said = refusal({"a": source, "b": target}, [Edge("a", edge, "b")], old_at=lambda node: ())
    assert bool(said) != may
    assert may or f"no {source} {edge} {target}" in said


def test_the_table_is_whole() -> None:
    """Every kind of edge is in it, every kind of node can be an end of one, and nothing is joined to itself."""
    assert set(JOINS) == set(EDGE_KINDS)
    assert {kind for pairs in JOINS.values() for pair in pairs for kind in pair} == set(KINDS)
    for edge, kind in itertools.product(EDGE_KINDS, KINDS):
        assert "itself" in refusal({"a": kind}, [Edge("a", edge, "a")], old_at=lambda node: ())


def test_an_option_is_not_both_chosen_and_rejected() -> None:
    """By the same decision; another decision may see it otherwise."""
    kinds: dict[str, NodeKind] = {"a": "decision", "b": "decision", "o": "option"}
    both = [Edge("a", "chosen", "o"), Edge("a", "rejected", "o")]
    assert "has chosen o already" in refusal(kinds, both, old_at=lambda node: ())
    assert "has chosen o already" in refusal(kinds, both[1:], old_at=lambda node: both[:1])
    assert not refusal(kinds, [both[0], Edge("b", "rejected", "o")], old_at=lambda node: ())


def test_a_circle_is_named() -> None:
    """Also one that goes through edges of several kinds, of which some were there before."""
    kinds: dict[str, NodeKind] = dict.fromkeys("abc", "decision")
    old = [Edge("a", "leads_to", "b"), Edge("c", "requires", "b")]
    said = refusal(kinds, [Edge("a", "supersedes", "c")], old_at=at(old))
    assert said.endswith("circle: c → a → b → c")
    assert not refusal(kinds, [Edge("c", "supersedes", "a")], old_at=at(old))


def at(edges: Sequence[Edge]) -> Callable[[str], list[Edge]]:
    """What is joined to a node."""
    return lambda node: [edge for edge in edges if node in e_ends(edge)]


def e_ends(edge: Edge) -> tuple[str, str]:
    return edge.source, edge.target


kinds_of_nodes = st.fixed_dictionaries({name: st.sampled_from(KINDS) for name in NAMES})
any_edges = st.lists(
    st.builds(Edge, st.sampled_from(NAMES), st.sampled_from(EDGE_KINDS), st.sampled_from(NAMES)), max_size=12
)
possible_edges = any_edges.map(lambda edges: [edge for edge in edges if edge.source != edge.target])


def has_circle(edges: Iterable[Edge]) -> bool:
    """By taking away what nothing comes before, until nothing can be taken away."""
    pairs = {pair for edge in edges if (pair := before_and_after(edge)) is not None}
    while pairs:
        later = {after for _, after in pairs}
        free = {pair for pair in pairs if pair[0] not in later}
        if not free:
            return True
        pairs -= free
    return False


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.one_of(kinds_of_nodes, st.just(dict.fromkeys(NAMES, "decision"))),
    edges=any_edges,
    cut=st.integers(0, 14),
)
def test_what_is_taken_is_in_order(kinds: Mapping[str, NodeKind], edges: list[Edge], cut: int) -> None:
    """Taken one by one, an edge is refused if and only if it does not fit, contradicts, or closes a circle; and a
    call is refused as a whole exactly if one of its edges would be."""
    kept: list[Edge] = []
    for edge in edges:
        said = refusal(kinds, [edge], old_at=at(kept))
        other = {"chosen": "rejected", "rejected": "chosen"}.get(edge.kind)
        wrong = (
            edge.source == edge.target
            or (kinds[edge.source], kinds[edge.target]) not in JOINS[edge.kind]
            or any(e.kind == other and e_ends(e) == e_ends(edge) for e in kept)
            or has_circle([*kept, edge])
        )
        assert bool(said) == wrong, said
        kept += [] if said else [edge]
    old, new = kept[:cut], edges
    at_once = refusal(kinds, new, old_at=at(old))
    so_far, one_by_one = list(old), ""
    for edge in new:
        one_by_one = one_by_one or refusal(kinds, [edge], old_at=at(so_far))
        so_far.append(edge)
    assert bool(at_once) == bool(one_by_one)


def test_what_is_superseded_comes_back_only_when_its_successor_goes() -> None:
    assert "superseded by b" in status_refusal("a", "active", ["b"])
    assert not status_refusal("a", "active", [])
    assert not status_refusal("a", "abandoned", ["b"])


# ---------------------------------------------------------------- how sure one can be

thoughts_of = st.fixed_dictionaries(
    {
        name: st.builds(
            lambda confidence, status, kind: Thought(kind=kind, confidence=confidence, status=status),
            st.one_of(st.none(), st.integers(0, 100)),
            st.sampled_from(STATUSES),
            st.sampled_from(KINDS),
        )
        for name in NAMES
    }
)


def naive(thoughts: Mapping[str, Thought], edges: Sequence[Edge]) -> dict[str, int]:
    """The four lines of the rule, applied from the top until nothing changes: the greatest solution."""
    now = {node: thought.own for node, thought in thoughts.items()}
    while True:
        then = {}
        for node, thought in thoughts.items():
            bounds = [thought.own]
            bounds += [now[e.source] for e in edges if e.kind == "leads_to" and e.target == node]
            bounds += [
                now[e.target] if thoughts[e.target].status == "active" else 0
                for e in edges
                if e.kind in ("requires", "chosen") and e.source == node
            ]
            support = [e.source for e in edges if e.kind == "supports" and e.target == node]
            if support:
                bounds.append(max([0, *(now[s] for s in support if thoughts[s].status == "active")]))
            then[node] = min(bounds)
        if then == now:
            return now
        now = then


@settings(max_examples=150, deadline=None)
@given(thoughts=thoughts_of, edges=possible_edges, data=st.data())
def test_weights_are_those_of_the_rule(
    thoughts: Mapping[str, Thought], edges: list[Edge], data: st.DataObject
) -> None:
    """The same as the plain model's, in whatever order things come; never above a node's own confidence; and who
    holds a node down is no surer than that."""
    weights = weigh(thoughts, edges)
    expected = naive(thoughts, edges)
    assert {node: weight.effective for node, weight in weights.items()} == expected
    for node, weight in weights.items():
        assert 0 <= weight.effective <= thoughts[node].own
        assert bool(weight.because) == (weight.effective < thoughts[node].own)
        if weight.because:
            guilty = thoughts[weight.because]
            assert guilty.own == weight.effective or (weight.effective == 0 and guilty.status != "active")
    shuffled = dict(data.draw(st.permutations(list(thoughts.items()))))
    assert weigh(shuffled, data.draw(st.permutations(edges))) == weights


@settings(max_examples=150, deadline=None)
@given(thoughts=thoughts_of, edges=possible_edges, node=st.sampled_from(NAMES), more=st.integers(0, 100))
def test_weights_are_monotone(thoughts: Mapping[str, Thought], edges: list[Edge], node: str, more: int) -> None:
    """Who is surer of one node is less sure of none; and a node that ends makes nothing surer."""
    before = weigh(thoughts, edges)
    surer = {**thoughts, node: replace(thoughts[node], confidence=max(more, thoughts[node].own))}
    assert all(weigh(surer, edges)[n].effective >= before[n].effective for n in NAMES)
    ended = {**thoughts, node: replace(thoughts[node], status="abandoned")}
    if thoughts[node].status == "active":
        assert all(weigh(ended, edges)[n].effective <= before[n].effective for n in NAMES)


def test_doubt_flows_down() -> None:
    """Through what leads to a node and what it requires; the best support counts; what ended bears nothing."""
    thoughts = {
        "goal": Thought(kind="goal"),
        "seen": Thought(kind="observation", confidence=30),
        "read": Thought(kind="observation", confidence=70),
        "plan": Thought(kind="decision", confidence=90),
        "work": Thought(kind="action", confidence=80),
    }
    edges = [
        Edge("goal", "leads_to", "plan"),
        Edge("seen", "supports", "plan"),
        Edge("plan", "leads_to", "work"),
    ]
    weights = weigh(thoughts, edges)
    assert (weights["plan"].effective, weights["plan"].because) == (30, "seen")
    assert (weights["work"].effective, weights["work"].because) == (30, "seen")
    better = [*edges, Edge("read", "supports", "plan")]
    assert weigh(thoughts, better)["work"].effective == 70
    gone = {**thoughts, "seen": replace(thoughts["seen"], status="abandoned")}
    assert weigh(gone, edges)["work"].effective == 0
    assert weigh(gone, better)["work"].effective == 70


def test_large_graphs_are_weighed_at_once() -> None:
    """A chain as long as a project may have nodes: no recursion, and each is settled once."""
    names = [f"{n:05}" for n in range(5000)]
    thoughts = {name: Thought(kind="decision", confidence=50 if name == "00000" else 90) for name in names}
    edges = [Edge(a, "leads_to", b) for a, b in itertools.pairwise(names)]
    assert all(weight.effective == 50 for weight in weigh(thoughts, edges).values())


# ---------------------------------------------------------------- questions


@settings(max_examples=100, deadline=None)
@given(edges=any_edges, node=st.sampled_from(NAMES), depth=st.integers(0, 4))
def test_around_is_what_steps_reach(edges: list[Edge], node: str, depth: int) -> None:
    reached = {node}
    for _ in range(depth):
        reached |= {b for e in edges for a, b in (e_ends(e), e_ends(e)[::-1]) if a in reached}
    assert around(node, edges, depth) == reached


@settings(max_examples=100, deadline=None)
@given(thoughts=thoughts_of, edges=possible_edges)
def test_pending_options_wait_for_a_decision(thoughts: Mapping[str, Thought], edges: list[Edge]) -> None:
    for node, thought in thoughts.items():
        is_option = thought.kind == "option" and thought.status == "active"
        is_settled = any(
            e.target == node and e.kind in ("chosen", "rejected") and thoughts[e.source].status == "active"
            for e in edges
        )
        assert (node in pending_options(thoughts, edges)) == (is_option and not is_settled)
