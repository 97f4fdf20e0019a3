"""Root's table of sessions: the live ones, and the ended ones that were lately of interest."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, OrderedDict
from collections.abc import Callable

from ottod.core.fallback import STAND_INS
from ottod.core.stop_ladder import StopLadder
from ottod.errors import OttoError
from ottod.ids import normalise_prefix, session_key
from ottod.isolation.enclosure import Enclosure, Reading
from ottod.isolation.processes import ProcessId
from ottod.protocol.birth import ChildNotice
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.results import SessionInfo
from ottod.protocol.worker import Exiting
from ottod.root.loss import Loss
from ottod.root.plan import SessionPlan
from ottod.root.zygote_client import Lease

KEPT_ENDED = 100
"""Ended sessions kept in memory; the database has them all."""


class NoSuchSession(OttoError):
    """No session has this id or prefix."""

    code = "no_such_session"


class AmbiguousPrefix(OttoError):
    """Several sessions start with this prefix."""

    code = "ambiguous_session"


class Incarnation:
    """One worker process of a session. `identity` is its socket's, once it has said hello."""

    def __init__(self, *, number: int, secret: bytes, generation: int) -> None:
        self.number = number
        self.secret = secret
        self.generation = generation
        self.lease: Lease | None = None
        self.identity: bytes | None = None
        self.start_ticks = 0
        self.started_at_ns = 0
        self.started_s = 0.0
        self.last_heard_s = 0.0
        self.is_examined = False
        self.is_over = False
        """Its worker is dead and heard out; nothing more is taken from it."""
        self.exiting: Exiting | None = None
        self.acked_seq = 0
        self.unacked_by_root_bytes = 0
        self.held_memory_bytes = 0
        self.end_intent: CauseKind | None = None
        """Why root is about to kill it, if it is."""
        self.end_reason = ""
        """The same in words, where its intent does not say it."""
        self.verdict: Cause | None = None
        """The cause of its end, whatever it says itself: its group gave up."""
        self.is_for_restart = False
        """It is stopped because its group restarts, and its session goes on."""
        self.is_ready = False
        """It has said hello to some root."""
        self.knows_undo = False
        """It can be told to fail and to undo what it did: it said so with its hello."""
        self.open_requests: set[int] = set()
        """Its requests that root has not answered."""
        self.adopt_by_s = 0.0
        """An earlier root's worker must say hello to this one until then; 0 for root's own."""

    @property
    def is_dead(self) -> bool:
        """Its process has ended; what it left may still be on the way out."""
        return self.lease is not None and self.lease.exited is not None

    def send_signal(self, signum: signal.Signals) -> None:
        """Signals the worker, if there is one; it cannot reach another process."""
        if self.lease is not None and self.lease.child is not None:
            self.lease.child.send_signal(signum)


class Session:
    """A session as root holds it. `next_seq` is the seq that the next event must have."""

    def __init__(self, info: SessionInfo, plan: SessionPlan | None) -> None:
        self.info = info
        self.plan = plan
        self.key = session_key(info.session)
        self.next_seq = info.last_seq + 1
        self.noted_seq = 0
        """The newest seq that an earlier root had noted in the database: it was used, whatever the ring still has."""
        self.incarnation: Incarnation | None = None
        self.enclosure: Enclosure | None = None
        self.reading: Reading | None = None
        """Of its enclosure, at the last look."""
        self.is_refused = False
        """Its rows could not be written: it never came to be."""
        self.is_being_born = False
        self.clearing: asyncio.Future[list[ProcessId]] | None = None
        """Its worker ended while there was no root: gives what remains of it when the rest has been killed. Until it
        is decided what follows from that, the session neither ends nor begins anew."""
        self.announced = asyncio.Event()
        """Its rows are written and `session.created` is out."""
        self.stop_cause: CauseKind | None = None
        """Set once a stop was asked for. It is never unset: a stop wins."""
        self.is_stop_inherited = False
        """An earlier root began to stop it; `stop_cause` follows when this one takes that up."""
        self.stop_reason = ""
        """Why it was asked to stop."""
        self.stop_deadline_s = 0.0
        """When the loop's clock passes it, signals follow."""
        self.stop_ladder: StopLadder | None = None
        """The stop of its present worker, if that has begun."""
        self.is_killed = False
        """Its stop allows no grace."""
        self.is_halting = False
        """Its worker, once born, is to be stopped again: its group restarts."""
        self.is_ending = False
        """Its end has been decided; what is below it ends first."""
        self.last_loss: Loss | None = None
        """How its last worker was lost, while it has none."""
        self.lost_to: CauseKind | None = None
        """The cause that its present incarnation follows."""
        self.memory_kills_seen = 0
        """Of the kills that its enclosure counts, those that ended earlier workers."""
        self.proof = ""
        """How it is known that nothing of it is left, once it has ended."""
        self.stopped_below: list[str] = []
        """The sessions below it that its stop ended, in the order of their ends."""
        self._abandonment: asyncio.TimerHandle | None = None
        self.is_top = True
        """Nobody above it supervises it: it has no parent, or the parent has ended."""
        self.has_had_children = False
        self.children: dict[str, Session] = {}
        """Live child sessions, in the order of their starts."""
        self.timers: list[asyncio.TimerHandle] = []
        self.end_waiters: list[asyncio.Future[None]] = []
        self.idle_waiters: list[asyncio.Future[None]] = []

    @property
    def id(self) -> str:
        return self.info.session

    @property
    def is_workflow(self) -> bool:
        """Whether it carries out a workflow."""
        return self.plan is not None and self.plan.workflow is not None

    @property
    def has_ended(self) -> bool:
        return self.info.state == "ended"

    def abandon_later(self, timer: asyncio.TimerHandle) -> None:
        """Sets the timer after which its children have waited long enough for its next worker."""
        self.cancel_abandonment()
        self._abandonment = timer

    def cancel_abandonment(self) -> None:
        if self._abandonment is not None:
            self._abandonment.cancel()
            self._abandonment = None

    def notices(self) -> tuple[ChildNotice, ...]:
        """Its live children, as a new worker must know them."""
        return tuple(child_notice(child.info) for child in self.children.values())

    def cancel_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    @property
    def is_stopping(self) -> bool:
        return self.stop_cause is not None or self.is_stop_inherited

    @property
    def is_unsettled(self) -> bool:
        """On the way between two states that another root could take over."""
        worker = self.incarnation
        return self.is_being_born or (worker is not None and not worker.is_ready and worker.identity is None)

    def line_up(self) -> list[Session]:
        """This session and all below it, each behind everything below it, the newest child first: the stop order."""
        out: list[Session] = []
        for child in reversed(self.children.values()):
            out += child.line_up()
        return [*out, self]

    async def until_ended(
        self, loop: asyncio.AbstractEventLoop, *, or_idle: bool = False, or_parked: bool = False
    ) -> None:
        """Returns when the session has ended, or, if that is asked for, when it waits for input or is parked."""
        others = {"idle"} if or_idle else set[str]()
        others |= {"parked"} if or_parked else set()
        while not self.has_ended and self.info.state not in others:
            future: asyncio.Future[None] = loop.create_future()
            waiters = self.idle_waiters if others else self.end_waiters
            waiters.append(future)
            try:
                await future
            finally:
                if future in waiters:
                    waiters.remove(future)

    def release_waiters(self) -> None:
        """Wakes those who wait for idleness, and, when the session has ended, those who wait for the end."""
        waiting = list(self.idle_waiters)
        self.idle_waiters.clear()
        if self.has_ended:
            waiting += self.end_waiters
            self.end_waiters.clear()
        for future in waiting:
            if not future.done():
                future.set_result(None)


def child_notice(info: SessionInfo) -> ChildNotice:
    """What a parent is told of a child as it is now."""
    return ChildNotice(
        child=info.session,
        agent=info.agent,
        title=info.title,
        cause=info.cause,
        result=info.result,
        name=info.name,
        whole=info.whole,
    )


class SessionTable:
    """Sessions by id, key and prefix. `on_change` hears of every new state of a session."""

    def __init__(self, on_change: Callable[[SessionInfo], None]) -> None:
        self._on_change = on_change
        self._live: dict[str, Session] = {}
        self._ended: OrderedDict[str, Session] = OrderedDict()
        self._named: dict[str, Session] = {}
        """Those that live and that a client named."""

    @property
    def live(self) -> list[Session]:
        return list(self._live.values())

    @property
    def ended(self) -> list[Session]:
        """Ended sessions in memory, oldest end first."""
        return list(self._ended.values())

    @property
    def live_count(self) -> int:
        return len(self._live)

    def add(self, session: Session) -> None:
        self._live[session.id] = session
        if session.info.is_named:
            self._named[session.info.name] = session
        self._on_change(session.info)

    def discard(self, session: Session) -> None:
        """Drops a session that never came to be."""
        self._live.pop(session.id, None)
        self._unname(session)

    def named(self, name: str) -> Session | None:
        """The session that lives and was given this name by a client."""
        return self._named.get(name)

    def _unname(self, session: Session) -> None:
        if self._named.get(session.info.name) is session:
            del self._named[session.info.name]

    def add_ended(self, session: Session) -> None:
        """A session whose end this root did not see; its row may say otherwise, and is written anew."""
        self._ended[session.id] = session
        self._on_change(session.info)

    def get(self, session_id: str) -> Session | None:
        return self._live.get(session_id) or self._ended.get(session_id)

    def is_a_models(self, info: SessionInfo) -> bool:
        """Whether the newest answer of a session is a model's: nothing stood in for one, nor for its successor's."""
        seen = {info.session}
        while info.model not in STAND_INS:
            if not info.handed_to:
                return True
            session = self.get(info.handed_to)
            if session is None or session.id in seen:
                return False  # Nobody remembers whose it was, or it goes round: workers say who their successors are.
            seen.add(session.id)
            info = session.info
        return False

    def update(self, session: Session, info: SessionInfo) -> None:
        """Replaces what is known of a session."""
        if info is session.info:
            return
        session.info = info
        if info.state == "ended" and self._live.pop(session.id, None) is not None:
            self._ended[session.id] = session
            self._unname(session)
            while len(self._ended) > KEPT_ENDED:
                self._ended.popitem(last=False)
        self._on_change(info)

    def forget(self, session_id: str) -> None:
        """Drops an ended session from memory; it need not be there."""
        self._ended.pop(session_id, None)

    def once_named(self, name: str) -> Session | None:
        """Of those in memory, the one that ended last and was given this name by a client."""
        for session in reversed(self._ended.values()):
            if session.info.is_named and session.info.name == name:
                return session
        return None

    def find(self, prefix: str) -> Session:
        """The one session in memory whose id begins so. Raises NoSuchSession, AmbiguousPrefix, BadSessionId."""
        wanted = normalise_prefix(prefix)
        exact = self.get(wanted)
        if exact is not None:
            return exact
        found = [s for table in (self._live, self._ended) for sid, s in table.items() if sid.startswith(wanted)]
        if not found:
            raise NoSuchSession(f"no session {wanted}", mend="see `ottoctl ps -a`")
        if len(found) > 1:
            some = ", ".join(s.id for s in found[:4])
            raise AmbiguousPrefix(f"{len(found)} sessions start with {wanted}: {some}", mend="type more of the id")
        return found[0]

    def counts(self) -> dict[str, int]:
        """Live sessions by state, and the number of ended ones in memory."""
        counts: Counter[str] = Counter(s.info.state for s in self._live.values())
        counts["ended"] = len(self._ended)
        return dict(counts)
