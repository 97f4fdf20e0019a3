"""What an earlier root left behind: its workers are adopted, what cannot be adopted is ended or begun again.

A worker is known by pid and start time, which the database holds, and proves itself by the secret of its incarnation.
It outlives root, so most sessions only change hands: their state is what the database knew plus what the ring has
beyond that, and their seq goes on where the ring stops. A session whose worker is gone ends as `daemon_stop`, or, if
its restart policy allows, gets its next incarnation; neither is booked against anybody. A stop that was under way is
carried on: it wins over everything.

Source: DESIGN §4 and ADR 0012.
"""

from __future__ import annotations

import functools
import time
from math import inf

import msgspec
from msgspec.structs import replace

from ottod.core.projection import fold
from ottod.errors import UNDECODABLE, OttoError, RemoteProtocolError
from ottod.ids import session_key
from ottod.isolation.enclosure import Enclosure
from ottod.isolation.processes import ProcessId, is_alive
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.records import LANE_STATE, decode_payload, split_run
from ottod.protocol.results import SessionInfo
from ottod.root.audit import audit_entries
from ottod.root.births import Births
from ottod.root.burials import INHERITED_STOP, PROOF_TIMEOUT_S, Burials
from ottod.root.context import RootContext
from ottod.root.creations import announce
from ottod.root.groups import Groups
from ottod.root.loss import Loss
from ottod.root.plan import SessionPlan, plan_decoder
from ottod.root.reaper import Reaper
from ottod.root.session_table import Incarnation, Session
from ottod.root.stops import Stops
from ottod.root.zygote_client import Lease
from ottod.storage.database_rows import Incarnation as IncarnationRow

MAX_SESSIONS = 100_000
ADOPTION_S = 15.0
"""How long a live worker may take to say hello to a new root before it is taken for hung."""
SPARED_S = 90.0
"""For a worker whose session is not on record any more to end its turn and go: it is told when it says hello."""
SEQ_MARGIN = 1_000_000
"""More events than a session can emit between two notes of its seq."""
CHUNK_BYTES = 8 * 1024 * 1024


class Inheritance(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an earlier root's sessions."""

    adopted: int = 0
    resumed: int = 0
    ended: int = 0
    waiting: int = 0
    """Restarting or parked: they had no worker, and need none yet."""

    @property
    def total(self) -> int:
        return self.adopted + self.resumed + self.ended + self.waiting

    def describe(self) -> str:
        """One line for people."""
        counts = {"adopted": self.adopted, "begun again": self.resumed, "ended (daemon_stop)": self.ended}
        counts["waiting"] = self.waiting
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


class Adoption:
    """Takes over once, at boot, before any client is heard."""

    def __init__(
        self,
        context: RootContext,
        *,
        births: Births,
        burials: Burials,
        groups: Groups,
        stops: Stops,
        reaper: Reaper,
    ) -> None:
        self._c = context
        self._births = births
        self._burials = burials
        self._groups = groups
        self._stops = stops
        self._reaper = reaper
        self._open: list[IncarnationRow] = []
        """The incarnations that nobody has seen end, by session and number."""
        self._rows: dict[str, IncarnationRow] = {}
        """Of each session the newest of them."""
        self._adopted: list[Session] = []
        self._bereft: list[Session] = []
        self._unbooked: list[Session] = []
        """Their ends are in the ring, and root died before they were in its books."""

    async def take_over(self) -> int:
        """Puts every session of the database that has not ended into the table, and takes on the workers that live.

        Gives their number. Before the worker socket is there: who comes too early would be sent away.
        """
        infos = await self._c.database.sessions(limit=MAX_SESSIONS)
        self._open = await self._c.database.live_incarnations()
        self._rows = {row.session: row for row in self._open}
        if not infos:
            return 0
        plans = await self._c.database.live_plans()
        noted = {info.session: info.last_seq for info in infos}
        infos = await self._c.in_thread(self._fold_ring, infos, await self._c.database.noted_offset())
        for info in infos:
            if info.state == "ended":
                self._unbooked.append(Session(info, self._plan(info, plans.get(info.session))))
                self._c.table.add_ended(self._unbooked[-1])
        sessions = [self._restore(info, plans.get(info.session)) for info in infos if info.state != "ended"]
        for session in sessions:
            session.noted_seq = noted[session.id]
        self._link(sessions)
        self._groups.restore(await self._c.database.supervision())
        for session in sessions:
            if await self._adopt(session, self._rows.get(session.id)):
                self._adopted.append(session)
            else:
                session.clearing = self._c.loop.create_future()
                self._bereft.append(session)
        for session in self._adopted:
            # Not before: what follows from the end of one may concern others, and be wrong about who has a worker.
            self._attend(session)
        self._c.instruments.adopted(len(self._adopted))
        return len(self._adopted)

    async def settle(self) -> Inheritance:
        """Ends or begins again the sessions whose workers are gone. The others are at work meanwhile."""
        await self._sweep()
        counts = {"adopted": len(self._adopted), "resumed": 0, "ended": 0, "waiting": 0}
        for session in self._bereft:
            if not session.has_ended:
                counts[await self._without_worker(session, self._rows.get(session.id))] += 1
        await self._book_ends()
        for session in self._unbooked:
            await self._burials.settle(session)
        self._groups.resume_orders()
        for session in self._adopted:
            if session.info.halt is not None and not session.is_stopping:
                self._stops.stop_worker(session)
        for session in (*self._adopted, *self._bereft):
            if session.is_stop_inherited and not session.has_ended and session.stop_cause is None:
                self._stops.begin_for(session, INHERITED_STOP, "cancelled")
        self._open, self._rows, self._adopted, self._bereft, self._unbooked = [], {}, [], [], []
        return Inheritance(**counts)

    # ------------------------------------------------------------ what was known

    def _fold_ring(self, infos: list[SessionInfo], noted_offset: int) -> list[SessionInfo]:
        """On a thread, before anybody else uses the ring: the sessions as their newest events have them."""
        ring = self._c.hub.ring
        # Whatever the ring has forgotten wholly was noted before: then the rows of such sessions are exact.
        is_noted = ring.is_same_boot and ring.recovery.is_intact and ring.forgotten_offset <= noted_offset
        return [
            self._with_seq(key, self._fold_newest(key, info), is_noted=is_noted)
            for info in infos
            for key in (session_key(info.session),)
        ]

    def _fold_newest(self, key: int, info: SessionInfo) -> SessionInfo:
        """The session as its row and its newest events have it. A stop that has begun is not undone by either."""
        newest = self._fold_ring_onto(key, info)
        was_stopping = info.state == "stopping" and info.halt is None
        return replace(newest, state="stopping") if was_stopping and newest.state != "ended" else newest

    def _fold_ring_onto(self, key: int, info: SessionInfo) -> SessionInfo:
        """What the ring has of one session beyond its row: at most what came in a second or so."""
        ring, cursor, known_seq = self._c.hub.ring, info.last_offset, info.last_seq
        if ring.last_seq(key) <= known_seq or cursor >= ring.head_offset:
            return info
        while True:
            chunk = ring.read(cursor, session_key=key, max_bytes=CHUNK_BYTES)
            for run in chunk.items:
                if isinstance(run, bytes):
                    info = self._fold_run(info, run, known_seq)
            if chunk.caught_up:
                return info
            cursor = chunk.next_cursor

    def _fold_run(self, info: SessionInfo, run: bytes, known_seq: int) -> SessionInfo:
        for header, payload in split_run(run):
            if header.lane != LANE_STATE or header.last_seq <= known_seq:
                continue
            try:
                entries = decode_payload(payload)
            except RemoteProtocolError:
                continue  # Its checksum holds, so a worker sent it so; it was delivered as it is.
            for entry in audit_entries(info, header.first_seq, entries):
                self._c.database.put_audit_nowait(entry)
            for at_ns, event in entries:
                info = fold(info, event, at_ns)
        return info

    def _with_seq(self, key: int, info: SessionInfo, *, is_noted: bool) -> SessionInfo:
        """The database knows where a session was a second ago at most; the ring, if it still has it, exactly."""
        in_ring = self._c.hub.ring.last_seq(key)
        is_exact = in_ring >= info.last_seq or (in_ring == 0 and is_noted)
        last_seq = max(in_ring, info.last_seq) if is_exact else info.last_seq + SEQ_MARGIN
        return replace(info, last_seq=last_seq + self._lost_events())

    def _lost_events(self) -> int:
        """The most events of one session that a power failure can have taken: their seqs may have been seen."""
        lost = self._c.hub.ring.recovery.lost
        return lost[1] - lost[0] + 1 if lost is not None else 0

    def _plan(self, info: SessionInfo, packed: bytes | None) -> SessionPlan | None:
        if packed is None:
            return None
        try:
            return plan_decoder.decode(packed)
        except UNDECODABLE as error:
            self._c.log(f"its plan cannot be read, so it cannot go on: {error}", session=info.session)
            return None

    def _restore(self, info: SessionInfo, packed: bytes | None) -> Session:
        session = Session(info, self._plan(info, packed))
        session.is_stop_inherited = info.state == "stopping" and info.halt is None
        self._c.table.add(session)
        if not info.last_seq:
            # Root died between its row and its first event.
            announce(self._c, session)
        session.announced.set()
        return session

    def _link(self, sessions: list[Session]) -> None:
        """Children to their parents, in the order of their starts."""
        for session in sorted(sessions, key=lambda s: s.info.created_at_ns):
            parent = self._c.table.get(session.info.parent) if session.info.parent else None
            if parent is not None and not parent.has_ended:
                session.is_top = False
                parent.children[session.id] = session
                parent.has_had_children = True

    # ------------------------------------------------------------ workers

    async def _adopt(self, session: Session, row: IncarnationRow | None) -> bool:
        """Takes on a worker that lives. It is heard as soon as it says hello with its secret."""
        if row is None or session.plan is None or row.incarnation != session.info.incarnation:
            return False
        process = ProcessId(row.pid, row.start_time_ticks)
        lease = Lease(row.pid, None, row.generation)
        try:
            lease.child = self._reaper.adopt(process, lease.handle_exit)
        except (OSError, OverflowError):
            return False  # The number of a damaged row may be no pid at all.
        incarnation = Incarnation(number=row.incarnation, secret=row.secret, generation=row.generation)
        incarnation.lease = lease
        incarnation.start_ticks = row.start_time_ticks
        incarnation.started_at_ns = row.started_at_ns
        incarnation.started_s = incarnation.last_heard_s = self._c.loop.time()
        incarnation.is_ready = session.info.state != "starting"
        incarnation.adopt_by_s = inf
        if session.info.halt is not None:
            incarnation.is_for_restart, incarnation.verdict = True, session.info.halt.verdict
        session.incarnation = incarnation
        await self._reopen(session, process)
        return True

    def _attend(self, session: Session) -> None:
        """From now on its worker's end is heard of."""
        incarnation = session.incarnation
        assert incarnation is not None and incarnation.lease is not None
        incarnation.lease.adopt(lambda exit_: self._burials.worker_exited(session, incarnation, exit_))

    def listening(self) -> None:
        """Workers can reach root from now on; their time to come begins."""
        for session in self._c.table.live:
            if session.incarnation is not None and session.incarnation.adopt_by_s:
                session.incarnation.adopt_by_s = session.incarnation.last_heard_s = self._c.loop.time()
                session.incarnation.adopt_by_s += ADOPTION_S

    async def _reopen(self, session: Session, worker: ProcessId) -> None:
        assert session.plan is not None
        caps = self._births.caps(session.plan)
        try:
            enclosure = await self._c.in_thread(self._c.enclosures.reopen, session.id, caps)
            if enclosure is None:
                enclosure = await self._c.in_thread(self._c.enclosures.open, session.id, caps)
                await self._c.in_thread(enclosure.admit, worker.pid)
            elif enclosure.kind == "watchdog":
                await self._c.in_thread(enclosure.admit, worker.pid)
            else:
                session.memory_kills_seen = await self._c.in_thread(_kills_before, enclosure, worker)
            session.enclosure = enclosure
        except OttoError as error:
            self._c.log(f"adopted without its cap: {error}", session=session.id)

    async def _without_worker(self, session: Session, row: IncarnationRow | None) -> str:
        """A session whose worker is gone, if it had one. Gives the count that it belongs to."""
        known = [ProcessId(row.pid, row.start_time_ticks)] if row is not None else []
        remaining = await self._clear(session, known)
        if session.clearing is not None:
            session.clearing.set_result(remaining)
        lost_to = await self._lost_to(session)
        if session.has_ended or session.is_ending:
            return "ended"  # Its group has been stopped meanwhile.
        session.clearing = None
        stopped = session.is_stopping
        message = "the daemon had ended before the session did"
        cause = Cause(kind="cancelled" if stopped else "daemon_stop", message=message)
        loss = Loss(cause=cause, remaining=tuple(remaining))
        if stopped or remaining or session.plan is None:
            self._groups.end(session, loss)
            return "ended"
        if session.info.state == "parked":
            return "waiting"
        session.lost_to, session.last_loss = lost_to, loss
        halt = session.info.halt
        if (halt is not None and halt.verdict is not None) or self._groups.is_stopped_for_restart(session):
            self._groups.halted(session, loss)
            return "ended" if session.is_ending or session.has_ended else "waiting"
        if self._groups.has_given_up(session):
            # It had been unparked, and root died before its node was told.
            self._groups.unpark(session)
            return "resumed"
        if self._groups.is_waiting(session):
            return "waiting"
        policy = session.info.restart
        if not (policy == "permanent" or policy == "transient"):
            self._groups.end(session, loss)
            return "ended"
        self._groups.next_incarnation(session)
        return "resumed"

    async def _lost_to(self, session: Session) -> CauseKind:
        """What its last worker was lost to: to root's death, unless that one had been buried before."""
        if session.id in self._rows:
            return "daemon_stop"
        past = await self._c.database.incarnations(session.id)
        cause = past[-1].cause if past else None
        return cause.kind if cause is not None else "daemon_stop"

    async def _book_ends(self) -> None:
        """Every incarnation that was not adopted has ended, also of sessions whose own end is in the books."""
        adopted = {session.id for session in self._adopted}
        for row in self._open:
            if row.session in adopted and row is self._rows[row.session]:
                continue
            session = self._c.table.get(row.session)
            is_last = session is not None and session.info.incarnation == row.incarnation
            cause = session.info.cause if session is not None and is_last else None
            try:
                ended = replace(row, ended_at_ns=time.time_ns(), cause=cause)
                await self._c.database.put_incarnation(ended, durable=False)
            except OttoError as error:
                self._c.log(f"incarnation {row.incarnation}: {error}", session=row.session)

    async def _clear(self, session: Session, known: list[ProcessId]) -> list[ProcessId]:
        """Ends whatever is left of a session without its worker; gives what remains."""
        if not any(is_alive(each) for each in known) and session.info.state in ("parked", "restarting"):
            return []
        try:
            caps = self._births.caps(session.plan) if session.plan is not None else None
            leaf = await self._c.in_thread(self._c.enclosures.reopen, session.id, caps) if caps is not None else None
            if leaf is not None:
                remaining = await self._c.in_thread(
                    functools.partial(leaf.kill, deadline_s=PROOF_TIMEOUT_S, known=known)
                )
                if not remaining:
                    await self._c.in_thread(leaf.close)
                return remaining
        except OttoError as error:
            self._c.log(str(error), session=session.id)
        return await self._burials.end_processes(session.id, known)

    async def _sweep(self) -> None:
        """Removes cgroups of sessions that nobody knows. Those that are only not on record any more get time first.

        Root sends their workers away, who note where they stand, and go. Not at once: it is not they who are damaged.
        """
        strangers = await self._c.in_thread(self._c.enclosures.strangers, {s.id for s in self._c.table.live})
        unreadable = set(await self._c.database.unreadable_sessions())
        for session in sorted(unreadable):
            self._c.log("what is on record of it cannot be read: it is given up, its journal stays", session=session)
        recovery = self._c.database.recovery
        # Also by an earlier root, which may have ended before their time was over.
        is_anew = bool(recovery.moved_aside) or time.time_ns() - recovery.begun_anew_at_ns < SPARED_S * 1e9
        spared = [each for each in strangers if is_anew or each in unreadable]
        if spared:
            self._c.log(f"control groups of sessions that are not on record any more: {', '.join(spared)}")
            self._c.loop.call_later(SPARED_S, lambda: self._c.spawn(self._end(spared)))
        await self._end([each for each in strangers if each not in spared])

    async def _end(self, strangers: list[str]) -> None:
        for swept in await self._c.in_thread(self._c.enclosures.sweep, strangers):
            self._c.log("its control group was left behind, and has been ended and removed", session=swept)


def _kills_before(enclosure: Enclosure, worker: ProcessId) -> int:
    """On a thread: how often the enclosure's processes were killed for memory before this worker was there.

    A kill takes all of them along, so it outlived none; if it is dead by now, one of them may have been its own.
    """
    kills = enclosure.read().memory_kills
    return kills if is_alive(worker) else 0
