"""The tables of the decision graph: all of a call or nothing, once, within bounds, in one project."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.decisions import DecisionFilter, FoundDecisions, NewEdge, NewNode, NodeChange
from ottod.storage import decision_graph
from ottod.storage.artifact_index import ArtifactIndex
from ottod.storage.database import Database
from ottod.storage.decision_graph import Author, DecisionGraph, Entry, Refusal

AUTHOR = Author(session="s-0000000001", agent="architect", tree="s-0000000001", project="/p", at_ns=1000)
OTHER = Author(session="s-0000000002", agent="coder", tree="s-0000000001", project="/p", at_ns=2000)
ELSEWHERE = Author(session="s-0000000003", agent="coder", tree="s-0000000003", project="/q", at_ns=3000)
DAY = DecisionFilter(project="/p")


def run(base: Path, work: Callable[[DecisionGraph], Awaitable[None]]) -> None:
    async def life() -> None:
        database = Database.open(base / "otto.db")
        try:
            await work(DecisionGraph(database))
        finally:
            await database.flush()
            database.close()

    asyncio.run(life())


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"d-{n:010}" for n in numbers)


def entry(*nodes: NewNode, first: int = 0, **more: object) -> Entry:
    """A call whose nodes are numbered from `first` on."""
    return Entry(ids=ids(*range(first, first + len(nodes))), nodes=nodes, **more)  # type: ignore[arg-type]


GOAL = NewNode(kind="goal", title="log in by mail", ref="g")
DECISION = NewNode(kind="decision", title="Use Tokens", text="not cookies: ÄPFEL", confidence=80, ref="d")
LEFT, RIGHT = NewNode(kind="option", title="tokens", ref="l"), NewNode(kind="option", title="cookies", ref="r")
EDGES = (
    NewEdge(source="g", kind="leads_to", target="d"),
    NewEdge(source="d", kind="chosen", target="l"),
)
WHOLE = entry(GOAL, DECISION, LEFT, RIGHT, edges=EDGES, key="k")


async def logged(graph: DecisionGraph, call: Entry, author: Author = AUTHOR) -> FoundDecisions:
    found = await graph.log(call, author)
    assert isinstance(found, FoundDecisions), found
    return found


async def refused(graph: DecisionGraph, call: Entry, author: Author = AUTHOR) -> Refusal:
    found = await graph.log(call, author)
    assert isinstance(found, Refusal), found
    return found


async def names(graph: DecisionGraph, **wanted: object) -> list[str]:
    found = await graph.query(DecisionFilter(**{"project": "/p", **wanted}))  # type: ignore[arg-type]
    assert isinstance(found, FoundDecisions), found
    return [node.title for node in found.nodes]


def test_a_call_is_made_once(tmp_path: Path) -> None:
    """The same key of the same session gives the same nodes, over a restart too; another session's is its own."""

    async def first(graph: DecisionGraph) -> None:
        found = await logged(graph, WHOLE)
        assert [node.node for node in found.nodes] == list(ids(0, 1, 2, 3))
        assert [(e.source, e.kind, e.target) for e in found.edges] == [
            (*ids(0), "leads_to", *ids(1)),
            (*ids(1), "chosen", *ids(2)),
        ]

    async def again(graph: DecisionGraph) -> None:
        found = await logged(graph, Entry(ids=ids(9), nodes=(GOAL,), key="k"))
        assert [node.node for node in found.nodes] == list(ids(0, 1, 2, 3))
        await logged(graph, Entry(ids=ids(9), nodes=(GOAL,), key="k"), OTHER)
        assert len(await names(graph)) == 5
        await graph.forget_calls(AUTHOR.session)
        assert [n.node for n in (await logged(graph, Entry(ids=ids(8), nodes=(GOAL,), key="k"))).nodes] == [*ids(8)]

    run(tmp_path, first)
    run(tmp_path, again)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (entry(GOAL, DECISION, edges=(*EDGES[:1], NewEdge(source="g", kind="chosen", target="d"))), "bad_edge"),
        (entry(GOAL, edges=(NewEdge(source="g", kind="leads_to", target="nobody"),)), "no_such_node"),
        (entry(GOAL, edges=(NewEdge(source="g", kind="supersedes", target="d-0000000099"),)), "no_such_node"),
        (entry(GOAL, GOAL), "bad_node"),
        (entry(GOAL, changes=(NodeChange(node="d-0000000099", status="abandoned"),)), "no_such_node"),
        (entry(NewNode(kind="goal", title="x", artifacts=("none.md",))), "no_such_artifact"),
    ],
)
def test_all_or_nothing(tmp_path: Path, call: Entry, code: str) -> None:
    """If one part of a call is wrong, nothing of it is kept, nor its key."""

    async def work(graph: DecisionGraph) -> None:
        await logged(graph, entry(DECISION, first=99), ELSEWHERE)
        assert (await refused(graph, call)).code == code
        assert await names(graph) == []
        assert len((await logged(graph, WHOLE)).nodes) == 4

    run(tmp_path, work)


def test_superseding_and_abandoning(tmp_path: Path) -> None:
    """An edge makes the old node superseded; it becomes active again only when its successor is not."""

    async def work(graph: DecisionGraph) -> None:
        await logged(graph, WHOLE)
        new = NewNode(kind="decision", title="Use keys", ref="n")
        await logged(
            graph, entry(new, first=5, edges=(NewEdge(source="n", kind="supersedes", target=ids(1)[0]),)), OTHER
        )
        (old,) = (await logged(graph, Entry(changes=(NodeChange(node=ids(1)[0], confidence=10),)))).nodes
        assert (old.status, old.confidence, old.reason) == ("superseded", 10, f"superseded by {ids(5)[0]}")
        back = Entry(changes=(NodeChange(node=ids(1)[0], status="active", reason="after all"),))
        assert "abandon that first" in (await refused(graph, back)).message
        await logged(graph, Entry(changes=(NodeChange(node=ids(5)[0], status="abandoned", reason="no"),)))
        (old,) = (await logged(graph, back)).nodes
        assert (old.status, old.reason) == ("active", "after all")
        assert await names(graph, statuses=("abandoned",)) == ["Use keys"]

    run(tmp_path, work)


def test_questions(tmp_path: Path) -> None:
    """By kind, words, author, neighbourhood, weakness, and options that nobody has settled."""

    async def work(graph: DecisionGraph) -> None:
        await logged(graph, WHOLE)
        await logged(graph, entry(NewNode(kind="observation", title="it is slow", confidence=20), first=7), OTHER)
        support = NewEdge(source=ids(7)[0], kind="supports", target=ids(1)[0])
        await logged(graph, Entry(edges=(support,)), OTHER)
        assert await names(graph) == ["it is slow", "cookies", "tokens", "Use Tokens", "log in by mail"]
        assert await names(graph, limit=2) == ["it is slow", "cookies"]
        assert await names(graph, kinds=("goal", "option")) == ["cookies", "tokens", "log in by mail"]
        assert await names(graph, text="äpfel USE") == ["Use Tokens"]
        assert await names(graph, text="100%") == []
        assert await names(graph, session=OTHER.session) == ["it is slow"]
        assert await names(graph, pending=True) == ["cookies"]
        assert await names(graph, weak_below=50) == ["it is slow", "Use Tokens"]
        assert await names(graph, node="d-0000000007", depth=1) == ["it is slow", "Use Tokens"]
        assert await names(graph, node="d-0000000007", depth=0) == ["it is slow"]
        assert await names(graph, project="", tree=AUTHOR.tree, kinds=("goal",)) == ["log in by mail"]
        assert await names(graph, project="", node=ids(0)[0], depth=0) == ["log in by mail"]
        assert await names(graph, project="") == []
        found = await graph.query(DecisionFilter(project="/p", node="d-0000000001", depth=0, has_text=True))
        assert isinstance(found, FoundDecisions)
        (node,) = found.nodes
        assert (node.effective, node.because, node.text) == (20, ids(7)[0], DECISION.text)
        ambiguous, unknown = (
            await graph.query(DecisionFilter(project="/p", node="d-")),
            await graph.query(DecisionFilter(project="/q", node=ids(0)[0])),
        )
        assert isinstance(ambiguous, Refusal) and ambiguous.code == "ambiguous_node"
        assert isinstance(unknown, Refusal) and unknown.code == "no_such_node"

    run(tmp_path, work)


def test_projects_are_apart(tmp_path: Path) -> None:
    """No edge and no change reaches a node of another project, and one is forgotten without the other."""

    async def work(graph: DecisionGraph) -> None:
        await logged(graph, WHOLE)
        assert (
            await refused(graph, Entry(changes=(NodeChange(node=ids(0)[0], status="abandoned"),)), ELSEWHERE)
        ).code
        theirs = entry(DECISION, first=8, edges=(NewEdge(source="d", kind="supersedes", target=ids(1)[0]),))
        assert (await refused(graph, theirs, ELSEWHERE)).code == "no_such_node"
        await logged(graph, entry(DECISION, first=8), ELSEWHERE)
        assert await names(graph, project="/q") == ["Use Tokens"]
        assert await graph.forget_project("/p") == 4
        assert await names(graph) == [] and await names(graph, project="/q") == ["Use Tokens"]
        assert (await logged(graph, WHOLE)).nodes == ()

    run(tmp_path, work)


def test_everything_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of a project and of a tree, edges, characters, remembered calls, and the size of an answer."""

    async def work(graph: DecisionGraph) -> None:
        monkeypatch.setattr(decision_graph, "MAX_TREE_NODES", 5)
        await logged(graph, WHOLE)
        assert (await refused(graph, entry(GOAL, GOAL, first=5))).code == "too_many_decisions"
        monkeypatch.setattr(decision_graph, "MAX_PROJECT_EDGES", 2)
        one_more = NewEdge(source=ids(1)[0], kind="rejected", target=ids(3)[0])
        assert "edges" in (await refused(graph, Entry(edges=(one_more,)))).message
        monkeypatch.setattr(decision_graph, "MAX_PROJECT_BYTES", 60)
        assert "characters" in (await refused(graph, entry(DECISION, first=5))).message
        monkeypatch.setattr(decision_graph, "MAX_PROJECT_NODES", 4)
        full = await refused(graph, entry(GOAL, first=5))
        assert "nodes are the limit of a project" in full.message and "forget --project /p" in full.mend
        # What is full can still be changed.
        await logged(graph, Entry(changes=(NodeChange(node=ids(0)[0], confidence=1),), key="k2"))
        monkeypatch.setattr(decision_graph, "MAX_SESSION_CALLS", 3)
        for number in range(9):
            await logged(graph, Entry(changes=(NodeChange(node=ids(0)[0], confidence=1),), key=f"n{number}"))
        left = await graph._database.read(
            lambda c: [row[0] for row in c.execute("SELECT call FROM decision_calls ORDER BY entry")]
        )
        assert left == ["n6", "n7", "n8"]
        monkeypatch.setattr(decision_graph, "MAX_REPLY_BYTES", 900)
        found = await graph.query(DAY)
        assert isinstance(found, FoundDecisions) and len(found.nodes) == 2 and found.truncated

    run(tmp_path, work)


def test_links_are_kept(tmp_path: Path) -> None:
    """An artifact that is named by its name is kept by its id; sessions and commits as they were given, once."""

    async def work(graph: DecisionGraph) -> None:
        index = ArtifactIndex(graph._database)
        info = ArtifactInfo(artifact="art-0000000001", name="design.md", tree=AUTHOR.tree, digest="0" * 64)
        await index.add(info, sources=(), key="")
        links = NewNode(
            kind="action",
            title="x",
            artifacts=("design.md@1", info.artifact),
            sessions=("s-1", "s-1"),
            commits=("ab",),
        )
        (node,) = (await logged(graph, entry(links))).nodes
        assert (node.artifacts, node.sessions, node.commits) == ((info.artifact,), ("s-1",), ("ab",))
        stranger = await refused(graph, entry(links, first=3), ELSEWHERE)
        assert stranger.code == "no_such_artifact"

    run(tmp_path, work)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40), min_size=1, max_size=6
    )
)
def test_any_text_is_kept_and_found(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Texts come back as they were, whatever is in them, and are found by any word of theirs."""

    async def work(graph: DecisionGraph) -> None:
        nodes = [NewNode(kind="observation", title="t", text=text) for text in texts]
        await logged(graph, entry(*nodes))
        for text in texts:
            for word in text.split()[:2]:
                found = await graph.query(DecisionFilter(project="/p", text=word, has_text=True))
                assert isinstance(found, FoundDecisions) and text in [node.text for node in found.nodes]

    run(tmp_path_factory.mktemp("texts"), work)
