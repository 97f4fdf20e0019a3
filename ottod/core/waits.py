"""Who waits for whom, and whether that can ever come to an end.

Theory of operation. A session's turn goes on when everything that its calls wait for has happened: the turn of one
that it asked, the end of those that it awaits, or of any of them. A session ends when its turn is over and all below
it have ended. So a turn and an end are nodes, each of which needs something of other nodes; what can happen is the
least set that holds every node whose needs are met by the set. A new wait after which the turn of who waits is not
in the set would never be over. It is refused, with the sessions that wait for each other in a circle.

Time-outs do not count: that a wait will be given up is no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

MAX_NODES = 20_000
"""Looked at for one wait; nothing is refused that would take more."""


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """One call that waits for others: for their answers, or `for_end`; for all, or for `any` of them."""

    asker: str
    targets: tuple[str, ...]
    for_end: bool = False
    any: bool = False


class Node(NamedTuple):
    """The end of a session, or its turn's."""

    session: str
    is_end: bool


Below = Callable[[str], Iterable[str]]
"""The live sessions that one has started."""
IsLive = Callable[[str], bool]


class Waits:
    """All waits that are open, by the keys of their calls."""

    def __init__(self) -> None:
        self._waits: dict[str, Wait] = {}
        self._of: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, key: str, wait: Wait) -> None:
        """A call waits. The same key again is the same call."""
        self.end(key)
        self._waits[key] = wait
        self._of.setdefault(wait.asker, set()).add(key)

    def end(self, key: str) -> None:
        """It waits no more."""
        wait = self._waits.pop(key, None)
        if wait is not None:
            keys = self._of[wait.asker]
            keys.discard(key)
            if not keys:
                del self._of[wait.asker]

    def drop(self, asker: str) -> None:
        """None of a session's calls waits any more: its worker is gone."""
        for key in list(self._of.get(asker, ())):
            self.end(key)

    def ended(self, session: str) -> None:
        """A session has ended: it waits for nobody, and who waited for its end alone does not, either."""
        self.drop(session)
        for key, wait in list(self._waits.items()):
            if wait.for_end and wait.targets == (session,):
                self.end(key)

    # ------------------------------------------------------------ what can happen

    def circle(self, wait: Wait, *, below: Below, is_live: IsLive) -> tuple[str, ...]:
        """The sessions that would wait for each other if this wait began, the first one again at the end; or none."""
        start = Node(wait.asker, False)
        needs = self._needs(start, wait, below, is_live)
        if needs is None:
            return ()
        happens = _least(needs)
        return () if start in happens else _walk(start, needs, happens)

    def _needs(
        self, start: Node, new: Wait, below: Below, is_live: IsLive
    ) -> dict[Node, list[tuple[Node, ...]]] | None:
        """What each node that matters needs: of each group one. None if there are too many."""
        needs: dict[Node, list[tuple[Node, ...]]] = {}
        reached = [start]
        while reached:
            node = reached.pop()
            if node in needs:
                continue
            if len(needs) >= MAX_NODES:
                return None
            groups: list[tuple[Node, ...]] = []
            needs[node] = groups
            if not is_live(node.session):
                continue
            if node.is_end:
                groups.append((Node(node.session, False),))
                groups.extend((Node(child, True),) for child in below(node.session))
            else:
                waits = [self._waits[key] for key in self._of.get(node.session, ())]
                for wait in (*waits, *([new] if node == start else [])):
                    groups += _groups(wait)
            reached += [each for group in groups for each in group]
        return needs


def _groups(wait: Wait) -> list[tuple[Node, ...]]:
    nodes = tuple(Node(target, wait.for_end) for target in wait.targets)
    if wait.any:
        return [nodes] if nodes else []
    return [(node,) for node in nodes]


def _least(needs: dict[Node, list[tuple[Node, ...]]]) -> set[Node]:
    """The least set that holds every node each of whose groups has a member in the set."""
    happens: set[Node] = set()
    grows = True
    while grows:
        grows = False
        for node, groups in needs.items():
            if node not in happens and all(any(each in happens for each in group) for group in groups):
                happens.add(node)
                grows = True
    return happens


def _walk(start: Node, needs: dict[Node, list[tuple[Node, ...]]], happens: set[Node]) -> tuple[str, ...]:
    """From a node that does not happen to one that it needs and that does not either, until one comes again."""
    path: list[Node] = []
    node = start
    while node not in path:
        path.append(node)
        group = next(g for g in needs[node] if not any(each in happens for each in g))
        node = group[0]
    sessions = [each.session for each in (*path[path.index(node) :], node)]
    return _without_repeats(sessions)


def _without_repeats(sessions: Sequence[str]) -> tuple[str, ...]:
    return tuple(s for n, s in enumerate(sessions) if n == 0 or sessions[n - 1] != s)
