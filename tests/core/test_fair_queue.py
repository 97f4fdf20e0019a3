"""The fair queue: trees take turns, then sessions, then calls in the order they came; and nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ottod.core.fair_queue import FairQueue, Waiting


def call(ticket: int, place: str, model: str = "m") -> Waiting:
    """`place` is tree and session: `A1` is session A1 of tree A."""
    return Waiting(ticket=ticket, session=place, tree=place[0], model=model)


def order(places: list[str]) -> list[str]:
    """In which order calls of these places are served when all wait at once."""
    queue = FairQueue()
    for ticket, place in enumerate(places):
        queue.push(call(ticket, place))
    served = []
    while (first := queue.first()) is not None:
        served.append(queue.serve(first.ticket).session)
    return served


@pytest.mark.parametrize(
    ("places", "served"),
    [
        ([], []),
        (["A1", "A1", "A1"], ["A1", "A1", "A1"]),
        (["A1", "A1", "B1"], ["A1", "B1", "A1"]),
        (["A1", "A2", "A3", "B1"], ["A1", "B1", "A2", "A3"]),
        (["A1", "A1", "A2", "B1", "B1"], ["A1", "B1", "A2", "B1", "A1"]),
        (["A1", "B1", "C1", "A2", "B2", "C2"], ["A1", "B1", "C1", "A2", "B2", "C2"]),
    ],
)
def test_trees_take_turns_then_sessions(places: list[str], served: list[str]) -> None:
    """A tree with many calls is served as often as a tree with one."""
    assert order(places) == served


def test_a_call_that_cannot_begin_keeps_its_place() -> None:
    """It is passed over, and served first when it can begin."""
    queue = FairQueue()
    queue.push(call(1, "A1", "paused"))
    queue.push(call(2, "B1"))
    queue.push(call(3, "A1"))
    first = queue.first(lambda w: w.model != "paused")
    assert first is not None and first.ticket == 3
    queue.serve(first.ticket)
    second = queue.first(lambda w: w.model != "paused")
    assert second is not None and second.ticket == 2
    queue.serve(2)
    third = queue.first()
    assert third is not None and third.ticket == 1


def test_a_ticket_waits_once() -> None:
    """The same ticket twice is a defect."""
    queue = FairQueue()
    queue.push(call(1, "A1"))
    with pytest.raises(AssertionError):
        queue.push(call(1, "B1"))


def test_a_call_that_is_gone_is_dropped_quietly() -> None:
    """Whoever waits no more may be dropped, twice too."""
    queue = FairQueue()
    queue.push(call(1, "A1"))
    assert queue.drop(1) == call(1, "A1")
    assert queue.drop(1) is None
    assert (len(queue), queue.first()) == (0, None)


PLACES = st.sampled_from(["A1", "A2", "A3", "B1", "B2", "C1", "D1"])


@given(st.lists(PLACES, max_size=40))
def test_while_two_trees_wait_they_are_served_alike(places: list[str]) -> None:
    """At no moment has one waiting tree had two calls more than another that waits as well."""
    served = order(places)
    left = Counter(place[0] for place in places)
    had: Counter[str] = Counter()
    for place in served:
        had[place[0]] += 1
        left[place[0]] -= 1
        counts = [had[tree] for tree in left if left[tree] > 0]
        assert not counts or max(counts) - min(counts) <= 1
    assert sorted(served) == sorted(places)


class NaiveQueue:
    """The same in lists: the rotation of trees, of each tree its rotation of sessions, of each session its calls."""

    def __init__(self) -> None:
        self.rotation: list[str] = []
        self.sessions: dict[str, list[str]] = {}
        self.calls: dict[str, list[Waiting]] = {}

    def push(self, w: Waiting) -> None:
        if w.tree not in self.rotation:
            self.rotation.append(w.tree)
        if w.session not in self.sessions.setdefault(w.tree, []):
            self.sessions[w.tree].append(w.session)
        self.calls.setdefault(w.session, []).append(w)

    def next(self, models: set[str]) -> Waiting | None:
        for tree in self.rotation:
            for session in self.sessions[tree]:
                for w in self.calls[session]:
                    if w.model in models:
                        return w
        return None

    def remove(self, w: Waiting, *, served: bool) -> None:
        self.calls[w.session].remove(w)
        if not self.calls[w.session]:
            self.sessions[w.tree].remove(w.session)
        elif served:
            self.sessions[w.tree].append(self.sessions[w.tree].pop(self.sessions[w.tree].index(w.session)))
        if not self.sessions[w.tree]:
            self.rotation.remove(w.tree)
        elif served:
            self.rotation.append(self.rotation.pop(self.rotation.index(w.tree)))


class QueueMachine(RuleBasedStateMachine):
    """Against the naive one, with models that come and go; and how long anybody is passed over."""

    @initialize()
    def begin(self) -> None:
        self.queue, self.naive, self.ticket = FairQueue(), NaiveQueue(), 0
        self.all: dict[int, Waiting] = {}
        self.overtaken: Counter[str] = Counter()

    @rule(place=PLACES, model=st.sampled_from("mn"))
    def push(self, place: str, model: str) -> None:
        self.ticket += 1
        waiting = call(self.ticket, place, model)
        self.queue.push(waiting)
        self.naive.push(waiting)
        self.all[self.ticket] = waiting

    @precondition(lambda self: self.all)
    @rule(models=st.sets(st.sampled_from("mn")))
    def serve(self, models: set[str]) -> None:
        first = self.queue.first(lambda w: w.model in models)
        assert first == self.naive.next(models)
        if first is None:
            return
        self.queue.serve(first.ticket)
        self.naive.remove(first, served=True)
        del self.all[first.ticket]
        could = {w.tree for w in self.all.values() if models == {"m", "n"}}
        for tree in could - {first.tree}:
            self.overtaken[tree] += 1
        self.overtaken[first.tree] = 0
        assert max(self.overtaken.values(), default=0) < 4 * 4, "a tree that could be served was not"

    @precondition(lambda self: self.all)
    @rule(which=st.integers(0, 1000))
    def drop(self, which: int) -> None:
        waiting = list(self.all.values())[which % len(self.all)]
        assert self.queue.drop(waiting.ticket) == waiting
        self.naive.remove(waiting, served=False)
        del self.all[waiting.ticket]
        if not any(w.tree == waiting.tree for w in self.all.values()):
            self.overtaken[waiting.tree] = 0

    @invariant()
    def nothing_is_lost(self) -> None:
        """It holds what came and has not gone, in the order of coming."""
        assert list(self.queue) == list(self.all.values())
        assert len(self.queue) == len(self.all)


TestQueue = QueueMachine.TestCase
TestQueue.settings = hypothesis_settings(max_examples=60, stateful_step_count=50, deadline=None)
