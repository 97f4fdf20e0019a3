"""From a worker's death to the session's end: hear it out, kill what it left, prove it, say so once."""

from __future__ import annotations

import asyncio
import functools
import shutil
import time
from collections.abc import Sequence

from msgspec.structs import replace

from ottod.errors import OttoError
from ottod.isolation.processes import ProcessId, kill_survivors
from ottod.protocol.cause import Cause
from ottod.protocol.events import SessionExited
from ottod.root.context import RootContext
from ottod.root.reaper import Exit
from ottod.root.session_table import Incarnation, Session
from ottod.storage.database_rows import Incarnation as IncarnationRow

DRAIN_TIMEOUT_S = 2.0
"""The longest wait for a dead worker's last messages."""
DRAIN_POLL_S = 0.005
PROOF_TIMEOUT_S = 5.0
"""The longest that killing a session's leftovers may take before they are reported as remaining."""
MAX_LEFTOVERS = 100_000
SEQ_MARGIN = 1_000_000
"""More events than a session can emit between two notes of its seq."""
PRUNE_EVERY = 20
"""Sessions that end between two looks for surplus ones."""
PRUNE_BATCH = 200


class Burials:
    """Ends sessions, once each."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._ended = 0

    def worker_exited(self, session: Session, incarnation: Incarnation, exit_: Exit) -> None:
        if session.incarnation is incarnation and not session.has_ended:
            self._c.spawn(self._bury(session, incarnation, exit_))

    async def _bury(self, session: Session, incarnation: Incarnation, exit_: Exit) -> None:
        """From the worker's death to the session's end: hear it out, kill what it left, say so once."""
        session.cancel_timers()
        deadline_s = self._c.loop.time() + DRAIN_TIMEOUT_S
        while not self._c.gate.has_drained(incarnation) and self._c.loop.time() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        self._c.gate.forget(incarnation)
        if incarnation.lease is not None:
            incarnation.lease.channel.close()
        remaining = await self._end_processes(session.id)
        said = incarnation.exiting
        cause = self._cause(session, incarnation, exit_)
        self.finish(
            session,
            cause,
            result=said.result if said is not None else "",
            truncated=said.truncated if said is not None else False,
            remaining=remaining,
        )
        try:
            await self._c.database.put_session(session.info)
            row = incarnation_row(session, incarnation)
            await self._c.database.put_incarnation(replace(row, ended_at_ns=time.time_ns(), cause=cause))
            self._ended += 1
            if self._ended % PRUNE_EVERY == 0:
                await self.prune()
        except OttoError as error:
            self._c.log(f"{session.id}: {error}")

    async def _end_processes(self, session: str, known: Sequence[ProcessId] = ()) -> list[ProcessId]:
        """Kills what is alive of a session, on a thread; gives what remains."""
        end = functools.partial(kill_survivors, session, deadline_s=PROOF_TIMEOUT_S, known=known)
        return await self._c.in_thread(end)

    @staticmethod
    def _cause(session: Session, incarnation: Incarnation, exit_: Exit) -> Cause:
        said = incarnation.exiting
        if said is not None:
            return said.cause
        if session.stop_cause is not None:
            return Cause(kind=session.stop_cause, message=session.stop_reason, signal=exit_.signal)
        intent = incarnation.end_intent
        if intent == "hung":
            return Cause(kind="hung", message="the worker's heartbeat stopped", signal=exit_.signal)
        if intent == "start_failed" or incarnation.identity is None:
            how = exit_.signal or f"exit status {exit_.status}"
            message = "the worker was not ready in time" if intent else f"the worker died before it was ready: {how}"
            return Cause(kind="start_failed", message=message, signal=exit_.signal, status=exit_.status)
        if exit_.signal:
            message = session.stop_reason or f"the worker was killed by {exit_.signal}"
            return Cause(kind="crashed", message=message, signal=exit_.signal)
        return Cause(kind="crashed", message="the worker left without a word", status=exit_.status)

    def finish(
        self,
        session: Session,
        cause: Cause,
        *,
        result: str = "",
        truncated: bool = False,
        remaining: Sequence[ProcessId] = (),
    ) -> None:
        """The session's one `session.exited`."""
        assert not session.has_ended
        now_ns = time.time_ns()
        event = SessionExited(
            cause=cause,
            result=result,
            usage=session.info.usage,
            duration_ms=(now_ns - session.info.created_at_ns) // 1_000_000,
            incarnations=session.info.incarnation,
            remaining_pids=tuple(p.pid for p in remaining),
            truncated=truncated,
        )
        session.cancel_timers()
        session.incarnation = None
        self._c.record(session, event)
        session.release_waiters()

    # ------------------------------------------------------------ after a restart of root

    async def bury_leftovers(self) -> int:
        """Ends the sessions that an earlier root left alive in the database, and kills what is left of them."""
        leftovers = await self._c.database.sessions(limit=MAX_LEFTOVERS)
        workers = await self._c.database.live_incarnations()
        for info in leftovers:
            known = [ProcessId(w.pid, w.start_time_ticks) for w in workers if w.session == info.session]
            remaining = await self._end_processes(info.session, known)
            in_ring = self._c.hub.ring.last_seq(Session(info, None).key)
            # The database knows where a session was a second ago at most; the ring, if it still has it, exactly.
            last_seq = in_ring if in_ring >= info.last_seq else info.last_seq + SEQ_MARGIN
            last_seq += self._lost_events()
            session = Session(replace(info, last_seq=last_seq), None)
            self._c.table.add(session)
            cause = Cause(kind="daemon_stop", message="the daemon had ended before the session did")
            self.finish(session, cause, remaining=remaining)
            await self._c.database.put_session(session.info)
        return len(leftovers)

    def _lost_events(self) -> int:
        """The most events of one session that a power failure can have taken: their seqs may have been seen."""
        lost = self._c.hub.ring.recovery.lost
        return lost[1] - lost[0] + 1 if lost is not None else 0

    # ------------------------------------------------------------ forgetting

    async def prune(self) -> int:
        """Forgets ended sessions beyond those that are to be retained; gives their number."""
        surplus = await self._c.database.surplus_sessions(self._c.settings.sessions.retain_ended, limit=PRUNE_BATCH)
        for surplus_id in surplus:
            await self.forget(surplus_id)
        return len(surplus)

    async def forget(self, session_id: str) -> None:
        """Deletes an ended session: its row, its place in memory, its files."""
        await self._c.database.delete_session(session_id)
        self._c.table.forget(session_id)
        await self._c.in_thread(shutil.rmtree, self._c.sessions_dir / session_id, True)


def incarnation_row(session: Session, incarnation: Incarnation) -> IncarnationRow:
    """What the database keeps of a worker's process."""
    return IncarnationRow(
        session=session.id,
        incarnation=incarnation.number,
        pid=incarnation.lease.pid if incarnation.lease is not None else 0,
        start_time_ticks=incarnation.start_ticks,
        started_at_ns=incarnation.started_at_ns,
    )
