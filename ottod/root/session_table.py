"""Root's table of sessions: the live ones, and the ended ones that were lately of interest."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, OrderedDict
from collections.abc import Callable

from ottod.errors import OttoError
from ottod.ids import normalise_prefix, session_key
from ottod.protocol.cause import CauseKind
from ottod.protocol.control import SessionInfo
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker import Exiting
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

    def send_signal(self, signum: signal.Signals) -> None:
        """Signals the worker, if there is one; it cannot reach another process."""
        if self.lease is not None and self.lease.child is not None:
            self.lease.child.send_signal(signum)


class Session:
    """A session as root holds it. `next_seq` is the seq that the next event must have."""

    def __init__(self, info: SessionInfo, spec: AgentSpec | None) -> None:
        self.info = info
        self.spec = spec
        self.key = session_key(info.session)
        self.next_seq = info.last_seq + 1
        self.incarnation: Incarnation | None = None
        self.stop_cause: CauseKind | None = None
        """Set once a stop was asked for. It is never unset: a stop wins."""
        self.stop_reason = ""
        self.timers: list[asyncio.TimerHandle] = []
        self.end_waiters: list[asyncio.Future[None]] = []
        self.idle_waiters: list[asyncio.Future[None]] = []

    @property
    def id(self) -> str:
        return self.info.session

    @property
    def has_ended(self) -> bool:
        return self.info.state == "ended"

    def cancel_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

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


class SessionTable:
    """Sessions by id, key and prefix. `on_change` hears of every new state of a session."""

    def __init__(self, on_change: Callable[[SessionInfo], None]) -> None:
        self._on_change = on_change
        self._live: dict[str, Session] = {}
        self._ended: OrderedDict[str, Session] = OrderedDict()

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
        self._on_change(session.info)

    def get(self, session_id: str) -> Session | None:
        return self._live.get(session_id) or self._ended.get(session_id)

    def update(self, session: Session, info: SessionInfo) -> None:
        """Replaces what is known of a session."""
        if info is session.info:
            return
        session.info = info
        if info.state == "ended" and self._live.pop(session.id, None) is not None:
            self._ended[session.id] = session
            while len(self._ended) > KEPT_ENDED:
                self._ended.popitem(last=False)
        self._on_change(info)

    def forget(self, session_id: str) -> None:
        """Drops an ended session from memory; it need not be there."""
        self._ended.pop(session_id, None)

    def find(self, prefix: str) -> Session:
        """The one session in memory with this id prefix. Raises NoSuchSession, AmbiguousPrefix, BadSessionId."""
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
