"""Who is next: calls that wait, served fairly by session tree, then by session, then in the order they came.

Theory of operation. Two levels of round robin. A tree that begins to wait stands at the end; when one of its calls
is served, the tree goes to the end again, and within it the session. So between two calls of one tree every other
tree that waits has one of its own served, however many sessions or calls any of them has: a team of a hundred
agents and a single agent share a provider half and half. A tree that waits is served after at most one call of each
tree that stood before it.

Not every call can be made now: a model may be paused while its neighbour is not. A call that cannot keeps its place
and its tree's, and is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import msgspec


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A call that waits. Tickets are unique; `since_ns` is monotonic."""

    ticket: int
    session: str
    tree: str
    model: str
    tokens: int = 0
    since_ns: int = 0


class FairQueue:
    """All calls that wait for one provider."""

    def __init__(self) -> None:
        self._trees: OrderedDict[str, OrderedDict[str, OrderedDict[int, Waiting]]] = OrderedDict()
        self._places: dict[int, Waiting] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Waiting]:
        """All that wait, in the order in which they came."""
        return iter(list(self._places.values()))

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._places

    def push(self, waiting: Waiting) -> None:
        """A call begins to wait."""
        assert waiting.ticket not in self._places, "a ticket waits twice"
        self._places[waiting.ticket] = waiting
        sessions = self._trees.setdefault(waiting.tree, OrderedDict())
        sessions.setdefault(waiting.session, OrderedDict())[waiting.ticket] = waiting

    def first(self, can_begin: Callable[[Waiting], bool] = lambda waiting: True) -> Waiting | None:
        """The next call of those that can begin; it keeps its place."""
        for sessions in self._trees.values():
            for calls in sessions.values():
                for waiting in calls.values():
                    if can_begin(waiting):
                        return waiting
        return None

    def serve(self, ticket: int) -> Waiting:
        """Takes a call out, and sends its tree and its session to the end."""
        waiting = self._take(ticket)
        sessions = self._trees.get(waiting.tree)
        if sessions is not None:
            self._trees.move_to_end(waiting.tree)
            if waiting.session in sessions:
                sessions.move_to_end(waiting.session)
        return waiting

    def drop(self, ticket: int) -> Waiting | None:
        """Takes out a call that waits no more; nobody loses or gains a place."""
        return self._take(ticket) if ticket in self._places else None

    def _take(self, ticket: int) -> Waiting:
        waiting = self._places.pop(ticket)
        sessions = self._trees[waiting.tree]
        calls = sessions[waiting.session]
        del calls[ticket]
        if not calls:
            del sessions[waiting.session]
            if not sessions:
                del self._trees[waiting.tree]
        return waiting
