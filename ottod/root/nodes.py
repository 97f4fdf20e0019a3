"""The supervisor nodes of this root, and how what they remember outlives it.

One node stands above each top-level session, one is in each session that has children. What a later root must know
(restarts that count, delays that run, a group that gave up) is kept in the database after every step that changed it,
as ages and rests, so that another clock can take it over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from ottod.core.supervision import ChildSpec, NodeSnapshot, SupervisionAction, SupervisionEvent, SupervisorNode
from ottod.errors import UNDECODABLE, OttoError
from ottod.protocol.specs import Group, Restart
from ottod.root.context import RootContext
from ottod.root.session_table import Session

ABOVE, WITHIN = "above:", "within:"
"""The two kinds of node, by the session that they belong to."""


class KeptNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node's snapshot as the database has it, with the wall clock of its making."""

    at_ns: int
    snapshot: NodeSnapshot


kept_nodes: msgspec.msgpack.Decoder[KeptNode] = msgspec.msgpack.Decoder(KeptNode)


class Nodes:
    """All nodes, by key. They are made when they are first needed."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._nodes: dict[str, SupervisorNode] = {}
        self._kept: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, SupervisorNode]]:
        return iter(list(self._nodes.items()))

    def _group(self, key: str) -> Group:
        if key.startswith(WITHIN):
            parent = self._c.table.get(key.removeprefix(WITHIN))
            if parent is not None and parent.plan is not None:
                return parent.plan.spec.group
        allowance = self._c.settings.supervision
        return Group(max_restarts=allowance.max_restarts, period_s=allowance.period_s)

    def get(self, key: str) -> SupervisorNode:
        """The node with this key."""
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = SupervisorNode(group=self._group(key))
        return node

    def now_ns(self) -> int:
        """The clock that all nodes are given: the loop's."""
        return int(self._c.loop.time() * 1e9)

    def step(self, key: str, event: SupervisionEvent) -> list[SupervisionAction]:
        """Tells a node something, and keeps what it remembers of it."""
        actions = self.get(key).step(event, now_ns=self.now_ns(), random=self._c.random())
        self._remember(key)
        return actions

    def forget(self, key: str) -> None:
        """The node's session has ended."""
        if self._nodes.pop(key, None) is not None:
            self._remember(key)

    # ------------------------------------------------------------ across roots

    def _remember(self, key: str) -> None:
        node = self._nodes.get(key)
        snapshot = node.snapshot(now_ns=self.now_ns()) if node is not None else NodeSnapshot()
        is_telling = bool(
            snapshot.restart_ages_ns
            or snapshot.ending
            or snapshot.task
            or any(m.attempt or m.for_good for m in snapshot.members)
        )
        if is_telling:
            self._kept.add(key)
            kept = KeptNode(at_ns=time.time_ns(), snapshot=snapshot)
            self._c.spawn(self._keep(key, msgspec.msgpack.encode(kept)))
        elif key in self._kept:
            self._kept.discard(key)
            self._c.spawn(self._keep(key, b""))

    async def _keep(self, key: str, data: bytes) -> None:
        try:
            await self._c.database.put_supervision(key, data)
        except OttoError as error:
            self._c.log(f"supervision of {key}: {error}")

    def restore(self, kept: dict[str, bytes], members: dict[str, list[Session]]) -> None:
        """Nodes as an earlier root left them; `members` are the live sessions of each, oldest first."""
        for key, data in kept.items():
            self._kept.add(key)
            if key in members:
                self._restore_one(key, data, members[key])
            else:
                self._remember(key)

    def _restore_one(self, key: str, data: bytes, sessions: list[Session]) -> None:
        try:
            node = kept_nodes.decode(data)
        except UNDECODABLE as error:
            self._c.log(f"supervision of {key}: unreadable, its allowance is fresh: {error}")
            return
        away_ns = max(0, time.time_ns() - node.at_ns)
        snapshot = replace(
            node.snapshot,
            restart_ages_ns=tuple(age + away_ns for age in node.snapshot.restart_ages_ns),
            members=tuple(replace(m, remaining_ns=max(0, m.remaining_ns - away_ns)) for m in node.snapshot.members),
        )
        specs = [child_spec(s) for s in sessions]
        self._nodes[key] = SupervisorNode.restore(
            group=self._group(key), children=specs, snapshot=snapshot, now_ns=self.now_ns()
        )


def key_of(session: Session) -> str:
    """The node that supervises the session."""
    return ABOVE + session.id if session.is_top else WITHIN + session.info.parent


def child_spec(session: Session) -> ChildSpec:
    """The session as its node sees it."""
    restart = session.plan.spec.restart if session.plan is not None else Restart()
    return ChildSpec(id=session.id, restart=restart.policy, significant=restart.significant, backoff=restart.backoff)
