"""Defects to be found: each is root with one mistake built in. A simulator that misses them would find nothing.

A mutant replaces one of root's parts by a subclass; what a part makes for itself is given another class after it was
made. The mistakes are of the kind that reviews miss: a check that is left out, a moment too early, a case forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from ottod.isolation.processes import ProcessId
from ottod.protocol.events import Event
from ottod.protocol.records import parse_unsealed
from ottod.protocol.results import SessionInfo
from ottod.protocol.specs import Group
from ottod.protocol.worker import Ack, RootToWorker, WorkerWelcome
from ottod.root.adoption import Adoption
from ottod.root.burials import Burials
from ottod.root.control_gate import ControlGate
from ottod.root.groups import Groups
from ottod.root.hub import Hub, Subscription
from ottod.root.loss import Loss
from ottod.root.nodes import Nodes
from ottod.root.session_table import Session
from ottod.root.supervisor import Supervisor
from ottod.root.worker_gate import WorkerGate
from tests.simulation.enclosures import SimEnclosure
from tests.simulation.root import Parts


class ForgetsDuplicates(WorkerGate):
    """Takes a batch that comes again for a new one."""

    def _batch(self, identity: bytes, record: memoryview) -> None:
        known = self._by_identity.get(identity)
        if known is not None:
            known[0].next_seq = parse_unsealed(record).first_seq
        super()._batch(identity, record)


class AcknowledgesAhead(WorkerGate):
    """Acknowledges one event more than is in the ring."""

    def _send(self, identity: bytes, message: RootToWorker) -> bool:
        if isinstance(message, Ack):
            message = Ack(seq=message.seq + 1, window_us=message.window_us)
        return super()._send(identity, message)


class WelcomesTooFar(WorkerGate):
    """Tells a worker that says hello that everything it has is in the ring."""

    def _send(self, identity: bytes, message: RootToWorker) -> bool:
        if isinstance(message, WorkerWelcome):
            message = WorkerWelcome(protocol=message.protocol, acked_seq=message.acked_seq + 2)
        return super()._send(identity, message)


class DropsWhenFull(Hub):
    """Takes a full queue for a sent message."""

    def _send(self, sub: Subscription, parts: list[bytes | memoryview]) -> bool:
        return self._send_records(sub.client, sub.id, parts) != "gone"


class SkipsTheBacklog(Hub):
    """Lets a subscription that fell behind go on with what is new."""

    def _pump(self, sub: Subscription) -> bool:
        if sub.credit > 0 and sub.end is None:
            sub.cursor = max(sub.cursor, self.head - 3)
        return super()._pump(sub)


class AnswersTwice(ControlGate):
    """Answers a request again when a client asks twice."""

    def _request(self, client: Any, request: Any) -> None:
        super()._request(client, request)
        if request.id % 7 == 0:
            super()._request(client, request)


class KillsNothing(SimEnclosure):
    """Proves the end of a session without looking."""

    def kill(self, *, deadline_s: float, known: Iterable[ProcessId] = ()) -> list[ProcessId]:
        return []


class ForgetfulGroups(Groups):
    """Does not tell a session's node that the session is stopped for good, and restarts it."""

    def stop_requested(self, session: Session) -> None:
        pass

    def _lost(self, session: Session, loss: Loss, event: Any, *, has_spoken: bool = False) -> None:
        session.stop_cause = None
        super()._lost(session, loss, event, has_spoken=has_spoken)


class GenerousNodes(Nodes):
    """Never finds that it is too much."""

    def _group(self, key: str) -> Group:
        return Group(max_restarts=1000, period_s=1.0)


class AmnesicGroups(Groups):
    """Loses its timers when it is restored."""

    def resume_orders(self) -> None:
        pass


class WritesTwice(Groups):
    """Says that a worker is lost, and then what follows from it."""

    def _move(self, session: Session, state: Any, reason: str, *after: Event) -> None:
        for event in after:
            self._c.record(session, event)
        super()._move(session, state, reason)


class ForgetsWhy(Adoption):
    """Does not know why an earlier root was stopping a worker."""

    def _restore(self, info: SessionInfo, packed: bytes | None) -> Session:
        return super()._restore(replace(info, halt=None), packed)


class TrustsTheRow(Adoption):
    """Goes on with the seq that the database knows, not with the ring's."""

    def _with_seq(self, key: int, info: SessionInfo, *, is_noted: bool) -> SessionInfo:
        return info


class HastyBurials(Burials):
    """Says that a session has ended before what is left of it has been looked for."""

    def worker_exited(self, session: Session, incarnation: Any, exit_: Any) -> None:
        assert session.incarnation is not None
        if session.incarnation is incarnation and not session.has_ended and not session.children:
            session.incarnation = None
            self.on_lost(session, incarnation, Loss(cause=self._cause(session, incarnation, exit_)))


def _supervisor(
    groups: type[Groups] = Groups,
    adoption: type[Adoption] = Adoption,
    burials: type[Burials] = Burials,
    nodes: type[Nodes] = Nodes,
) -> type[Supervisor]:
    _check_overrides(groups, adoption, burials, nodes)

    class Mutant(Supervisor):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._groups.__class__ = groups
            self._adoption.__class__ = adoption
            self._burials.__class__ = burials
            self._groups._nodes.__class__ = nodes

    return Mutant


def _check_overrides(*mutants: type) -> None:
    """A mutant that overrides what is not there any more changes nothing, and would be called undetectable."""
    for mutant in mutants:
        for name in vars(mutant) if mutant.__module__ == __name__ else ():
            if not name.startswith("__") and not any(hasattr(base, name) for base in mutant.__bases__):
                raise AttributeError(
                    f"{mutant.__name__} overrides {name}, which {mutant.__bases__[0].__name__} has not"
                )


def _parts(**replaced: Any) -> type[Parts]:
    _check_overrides(*replaced.values())
    return type("Mutant", (Parts,), replaced)


MUTANTS: dict[str, type[Parts]] = {
    "forgets-duplicates": _parts(gate=ForgetsDuplicates),
    "acknowledges-ahead": _parts(gate=AcknowledgesAhead),
    "welcomes-too-far": _parts(gate=WelcomesTooFar),
    "drops-when-full": _parts(hub=DropsWhenFull),
    "skips-the-backlog": _parts(hub=SkipsTheBacklog),
    "answers-twice": _parts(control=AnswersTwice),
    "kills-nothing": _parts(enclosure=KillsNothing),
    "restarts-after-stop": _parts(supervisor=_supervisor(groups=ForgetfulGroups)),
    "restarts-for-ever": _parts(supervisor=_supervisor(nodes=GenerousNodes)),
    "loses-timers": _parts(supervisor=_supervisor(groups=AmnesicGroups)),
    "writes-twice": _parts(supervisor=_supervisor(groups=WritesTwice)),
    "forgets-why": _parts(supervisor=_supervisor(adoption=ForgetsWhy)),
    "reuses-seqs": _parts(supervisor=_supervisor(adoption=TrustsTheRow)),
    "buries-in-haste": _parts(supervisor=_supervisor(burials=HastyBurials)),
}
