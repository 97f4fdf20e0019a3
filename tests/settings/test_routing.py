"""Who gets a task: names, filters, ranks, ties; and how well that does on the shipped agents."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import Route
from ottod.settings.agent_file import read_agent
from ottod.settings.agents import BUILTIN_DIR
from ottod.settings.routing import FIELD_WEIGHTS, LENGTH_SHARE, SATURATION, lacks, rank, route, stem, stems
from tests.settings.routing_tasks import ROUTING_TASKS

SHIPPED = [read_agent(file) for file in sorted(BUILTIN_DIR.iterdir())]
RIGHT = 41
"""Of the tasks, as measured when they were first tried; the page says which."""

AGENTS = [
    AgentSpec(name="cook", description="Cooks soup and pasta", tags=("kitchen",), tools=("shell",)),
    AgentSpec(name="baker", description="Bakes bread", tags=("Kitchen", "oven"), tools=("grep", "mcp__*")),
    AgentSpec(name="guard", description="Guards the door", hints=("who may come in",)),
]


def test_the_shipped_agents_get_their_tasks() -> None:
    """At least as many as when it was measured first, of at least forty; every shipped agent has a task."""
    results = [route(task, SHIPPED).agent == expected for task, expected in ROUTING_TASKS]
    assert len(results) >= 40 and sum(results) >= RIGHT
    assert {expected for _, expected in ROUTING_TASKS} == {agent.name for agent in SHIPPED}
    assert len({task for task, _ in ROUTING_TASKS}) == len(ROUTING_TASKS)


def test_it_is_deterministic() -> None:
    """The same answer with all its reasons, in whatever order the agents are given."""
    shuffled = list(SHIPPED)
    random.Random(7).shuffle(shuffled)
    for task, _ in ROUTING_TASKS:
        assert route(task, SHIPPED) == route(task, shuffled)


def test_names_win() -> None:
    """The caller's, then those in the task; the first that is there."""
    assert route("bake bread", AGENTS, names=("nobody", "guard")).agent == "guard"
    found = route("ask @cook to bake bread", AGENTS)
    assert (found.agent, found.reason) == ("cook", "the task names it")
    assert route("write to me@cook.example about bread", AGENTS).reason == "it fits the words best"
    missing = route("bake bread", AGENTS, names=("nobody",))
    assert (missing.agent, missing.reason) == ("", "there is no nobody")


def test_a_name_in_the_task_does_not_make_up_for_what_is_wanted() -> None:
    """Who is named and lacks a tag or a tool is left out like anybody else; the caller's own word stands."""
    want = Route(tags=("oven",))
    found = route("@cook and @nobody, bake it with @baker", AGENTS, want=want)
    assert (found.agent, found.reason) == ("baker", "the task names it")
    found = route("@cook, bake it", AGENTS, want=want)
    assert (found.agent, found.reason) == ("baker", "nobody else has all that is wanted")
    assert found.filtered[0].reason == "lacks the tag 'oven'"
    flow = AgentSpec(name="flow", kind="workflow")
    assert route("@flow bakes bread", [*AGENTS, flow]).agent == "baker"
    assert route("x", AGENTS, want=want, names=("cook",)).agent == "cook"


def test_tags_and_tools_filter() -> None:
    """All of them must be there; patterns of tools count; who is left out is told why."""
    found = route("cook soup", AGENTS, want=Route(tags=("kitchen",), tools=("mcp__x",)))
    assert (found.agent, found.reason) == ("baker", "nobody else has all that is wanted")
    assert {item.agent: item.reason for item in found.filtered} == {
        "cook": "lacks the tool 'mcp__x'",
        "guard": "lacks the tag 'kitchen', the tool 'mcp__x'",
    }
    nobody = route("x", AGENTS, want=Route(tags=("garden",)))
    assert (nobody.agent, nobody.reason) == ("", "nobody has all that is wanted")
    tied = route("zzz", AGENTS, want=Route(tags=("kitchen",)))
    assert tied.agent == "baker" and "first by name" in tied.reason


def test_without_a_word_that_fits_nobody_is_chosen() -> None:
    """A guess would look like an answer."""
    found = route("zzz qqq", AGENTS)
    assert (found.agent, found.reason) == ("", "no word of the task fits any agent")
    assert route("", []).reason == "there are no agents"


def test_equal_scores_go_by_name() -> None:
    """And the reason says so."""
    twins = [AgentSpec(name=name, description="Does the same") for name in ("twin2", "twin1")]
    found = route("do the same", twins)
    assert found.agent == "twin1"
    assert found.reason == "it fits the words best, as well as twin2, and is first by name"


def test_a_hint_ranks_instead_of_the_task() -> None:
    """What the workflow says of whom it wants counts more than what it tells them."""
    assert route("cook soup", AGENTS, want=Route(hint="bread")).agent == "baker"


@pytest.mark.parametrize(
    ("words", "root"),
    [
        ("test tests testing tester tested", "test"),
        ("write writes writing writer", "writ"),
        ("run runs running runner", "run"),
        ("query queries", "query"),
        ("class", "class"),
        ("analysis", "analysis"),
        ("string", "string"),
        ("status", "status"),
        ("über", "über"),
    ],
)
def test_words_meet_at_their_stems(words: str, root: str) -> None:
    """Plurals and forms of verbs; not what only looks like one."""
    assert {stem(word) for word in words.split()} == {root}


def test_words_are_letters_and_digits() -> None:
    """Case, punctuation and words that say nothing do not count."""
    assert stems("Please FIX the `test_login`, in src/app.py!") == ["fix", "test", "login", "src", "app", "py"]


TEXTS = st.lists(st.sampled_from(["bread", "soup", "door", "oven", "bakes", "the", "x"]), max_size=6).map(" ".join)


@given(TEXTS, st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_scores_are_those_of_the_formula(task: str, texts: list[tuple[str, str]]) -> None:
    """BM25 over the weighted fields, as the book has it, summed word by word."""
    agents = [
        AgentSpec(name=f"n{i}", description=description, tags=tuple(tags.split()))
        for i, (description, tags) in enumerate(texts)
    ]
    weights = dict(FIELD_WEIGHTS)
    counts = []
    for agent in agents:
        count: Counter[str] = Counter()
        for field, text in (("name", agent.name), ("tags", " ".join(agent.tags)), ("description", agent.description)):
            for word in stems(text):
                count[word] += weights[field]  # type: ignore[assignment]
        counts.append(count)
    mean = sum(sum(count.values()) for count in counts) / len(counts)
    expected = {}
    for agent, count in zip(agents, counts, strict=True):
        score = 0.0
        for word in set(stems(task)):
            having = sum(word in other for other in counts)
            idf = math.log(1 + (len(counts) - having + 0.5) / (having + 0.5))
            norm = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * sum(count.values()) / mean)
            score += idf * count[word] * (SATURATION + 1) / (count[word] + norm) if count[word] else 0.0
        expected[agent.name] = score
    ranked = rank(task, agents)
    assert {item.agent: item.score for item in ranked} == pytest.approx(expected, abs=0.001)
    assert [(-item.score, item.agent) for item in ranked] == sorted((-item.score, item.agent) for item in ranked)


@given(st.text(max_size=200), st.lists(st.text(max_size=5), max_size=3))
def test_any_text_has_an_answer(task: str, words: list[str]) -> None:
    """Whoever is chosen is one of the agents and has what is wanted; everybody is ranked or left out."""
    want = Route(tags=tuple(words[:1]))
    found = route(task, AGENTS, want=want)
    by_name = {agent.name: agent for agent in AGENTS}
    assert found.agent == "" or found.agent in by_name
    if found.ranked:
        assert not lacks(by_name[found.agent], want) if found.agent else True
        assert {item.agent for item in (*found.ranked, *found.filtered)} == set(by_name)
