"""Who waits for whom: a wait is refused exactly when no order of events could end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.waits import Wait, Waits

SESSIONS = ("a", "b", "c", "d", "e")


def ask(asker: str, target: str) -> Wait:
    return Wait(asker=asker, targets=(target,))


def end_of(asker: str, *targets: str, any: bool = False) -> Wait:
    return Wait(asker=asker, targets=targets, for_end=True, any=any)


def circle(
    known: Sequence[Wait], new: Wait, *, children: Mapping[str, Sequence[str]] | None = None, dead: str = ""
) -> tuple[str, ...]:
    waits = Waits()
    for number, wait in enumerate(known):
        waits.begin(str(number), wait)
    return waits.circle(new, below=lambda s: (children or {}).get(s, ()), is_live=lambda s: s not in dead)


@pytest.mark.parametrize(
    ("known", "new", "children", "found"),
    [
        ([], ask("a", "b"), {}, ()),
        ([ask("b", "a")], ask("a", "b"), {}, ("a", "b", "a")),
        ([ask("b", "c"), ask("c", "a")], ask("a", "b"), {}, ("a", "b", "c", "a")),
        ([ask("b", "c")], ask("a", "b"), {}, ()),
        # Two questions to one are no circle.
        ([ask("c", "b")], ask("a", "b"), {}, ()),
        # The child of a parent that waits for its end may not ask it.
        ([end_of("a", "b")], ask("b", "a"), {"a": ["b"]}, ("b", "a", "b")),
        # A parent that is only not done yet can be asked by its child.
        ([], ask("b", "a"), {"a": ["b"]}, ()),
        # Whoever awaits an end awaits those of all below it.
        ([ask("c", "a")], end_of("a", "b"), {"b": ["c"]}, ("a", "b", "c", "a")),
        # Any of several is enough.
        ([ask("b", "a")], end_of("a", "b", "c", any=True), {}, ()),
        ([ask("b", "a"), ask("c", "a")], end_of("a", "b", "c", any=True), {}, ("a", "b", "a")),
        ([ask("b", "a")], end_of("a", "b", "c"), {}, ("a", "b", "a")),
        ([], end_of("a", "a"), {}, ("a",)),
    ],
)
def test_circles(known: list[Wait], new: Wait, children: dict[str, list[str]], found: tuple[str, ...]) -> None:
    """By example."""
    assert circle(known, new, children=children) == found


def test_who_has_ended_holds_nobody_up() -> None:
    """What it waited for does not count."""
    assert circle([ask("b", "a")], end_of("a", "b"), dead="b") == ()


def test_a_wait_is_over_when_it_is_said_so() -> None:
    """By its key, with its asker's worker, or with the end that it waited for."""
    waits = Waits()
    waits.begin("1", ask("b", "a"))
    waits.begin("1", ask("b", "a"))
    waits.begin("2", end_of("b", "c"))
    waits.begin("3", end_of("b", "c", "d"))
    assert len(waits) == 3
    waits.ended("c")
    assert len(waits) == 2
    waits.end("1")
    waits.end("1")
    waits.drop("b")
    assert len(waits) == 0


wait = st.builds(
    Wait,
    asker=st.sampled_from(SESSIONS),
    targets=st.lists(st.sampled_from(SESSIONS), min_size=1, max_size=3, unique=True).map(tuple),
    for_end=st.booleans(),
    any=st.booleans(),
)


def can_be_over(waits: Sequence[Wait], asker: str, children: Mapping[str, Sequence[str]]) -> bool:
    """The naive way: let happen whatever can, one thing at a time, until nothing more can."""
    turns: set[str] = set()
    ends: set[str] = set()
    while True:
        before = len(turns) + len(ends)
        for session in SESSIONS:
            mine = [w for w in waits if w.asker == session]
            if all((any if w.any else all)(t in (ends if w.for_end else turns) for t in w.targets) for w in mine):
                turns.add(session)
            if session in turns and all(child in ends for child in children.get(session, ())):
                ends.add(session)
        if len(turns) + len(ends) == before:
            return asker in turns


@given(st.lists(wait, max_size=8), wait, st.lists(st.sampled_from(["", *SESSIONS]), min_size=5, max_size=5))
def test_a_wait_is_refused_exactly_when_it_could_never_be_over(
    known: list[Wait], new: Wait, parents: list[str]
) -> None:
    """Against a simulation; and the circle that is named is one: each waits for the next."""
    children: dict[str, list[str]] = {}
    for place, parent in enumerate(parents):
        # A session's parent comes before it, as in life.
        if parent and SESSIONS.index(parent) < place:
            children.setdefault(parent, []).append(SESSIONS[place])
    found = circle(known, new, children=children)
    assert bool(found) != can_be_over([*known, new], new.asker, children)
    if len(found) > 1:
        assert found[0] == found[-1]
        for who, whom in pairwise(found):
            waits_for = {t for w in (*known, new) if w.asker == who for t in w.targets}
            assert whom in waits_for | set(children.get(who, ()))


@given(st.lists(wait, max_size=20))
def test_who_is_refused_before_waiting_never_leaves_a_knot(waits: list[Wait]) -> None:
    """If every wait is looked at before it begins, everybody can always go on."""
    begun = Waits()
    taken: list[Wait] = []
    for number, new in enumerate(waits):
        if not begun.circle(new, below=lambda s: (), is_live=lambda s: True):
            begun.begin(str(number), new)
            taken.append(new)
    assert all(can_be_over(taken, session, {}) for session in SESSIONS)
