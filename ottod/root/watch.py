"""Looks after workers: whose heartbeat has stopped, who uses more than it may, who has left its enclosure."""

from __future__ import annotations

import asyncio
import functools
import signal
import time

from msgspec.structs import replace

from ottod.errors import OttoError
from ottod.isolation.enclosure import LOOK_S, Enclosure, Reading
from ottod.isolation.processes import ProcessId, is_alive
from ottod.root.context import RootContext
from ottod.root.session_table import Incarnation, Session
from ottod.root.vitals import Vitals, look, may_speak

WATCH_S = 1.0
EXAMINATION_S = 2.0
"""How long a silent worker is watched before it is called hung."""
LEFT_CHECK_S = 5.0
"""Between two searches for processes that have left their control group."""
STARVED_LIMIT = 10
"""A worker that gets no processor, or does not find its way to this daemon, is given up after this many times
`hung_after_s`."""


class Watch:
    """Two timers for all workers: one for their hearts, one for what they use."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._handle = context.loop.call_later(WATCH_S, self._watch)
        self._left_due_s = 0.0
        self._looking = context.loop.create_task(self._look_at_usage())

    def close(self) -> None:
        self._handle.cancel()
        self._looking.cancel()

    # ------------------------------------------------------------ hearts

    def _watch(self) -> None:
        """Looks after workers whose heartbeat has stopped."""
        self._note_seqs()
        now_s = self._c.loop.time()
        overdue_s = now_s - self._c.settings.sessions.hung_after_s
        for session in self._c.table.live:
            incarnation = session.incarnation
            if incarnation is None or incarnation.is_dead or incarnation.end_intent is not None:
                continue
            if incarnation.identity is None:
                is_overdue = 0 < incarnation.adopt_by_s < now_s
            else:
                is_overdue = incarnation.last_heard_s < overdue_s
            if is_overdue and not incarnation.is_examined:
                incarnation.is_examined = True
                self._c.spawn(self._examine(session, incarnation))
        self._handle = self._c.loop.call_later(WATCH_S, self._watch)

    def _note_seqs(self) -> None:
        """Notes in the database how far each session has got: the ring may forget it, and no seq is used twice."""
        last_offset = self._c.hub.head - 1
        for session in self._c.table.live:
            last_seq = session.next_seq - 1
            if last_seq != session.info.last_seq:
                self._c.table.update(session, replace(session.info, last_seq=last_seq, last_offset=last_offset))
        self._c.database.note_offset_nowait(last_offset)

    async def _examine(self, session: Session, incarnation: Incarnation) -> None:
        """Kills a worker that hangs; waits on one that the machine gives no processor, or that is on its way."""
        assert incarnation.lease is not None
        pid, heard_s = incarnation.lease.pid, incarnation.last_heard_s
        before = await self._look(pid)
        await asyncio.sleep(EXAMINATION_S)
        after = await self._look(pid)
        incarnation.is_examined = False
        if session.incarnation is not incarnation or incarnation.is_dead or incarnation.last_heard_s > heard_s:
            return
        silence_s = self._c.loop.time() - heard_s
        has_come = incarnation.identity is not None
        may_be_well = before is not None and after is not None and may_speak(before, after, has_come=has_come)
        if may_be_well and silence_s < STARVED_LIMIT * self._c.settings.sessions.hung_after_s:
            return
        what = "no heartbeat for" if has_come else "it did not come to the new daemon in"
        self._give_up(session, incarnation, f"{what} {silence_s:.0f} s")

    def _give_up(self, session: Session, incarnation: Incarnation, why: str) -> None:
        incarnation.end_intent = "hung"
        self._c.log(why, session=session.id)
        incarnation.send_signal(signal.SIGKILL)

    async def _look(self, pid: int) -> Vitals | None:
        return await self._c.in_thread(functools.partial(look, pid, now_s=time.monotonic()))

    # ------------------------------------------------------------ usage

    async def _look_at_usage(self) -> None:
        """Reads all enclosures, again and again: more often while somebody nears a cap that only looking holds."""
        delay_s = LOOK_S
        while True:
            await asyncio.sleep(delay_s)
            live = {s.id: s for s in self._c.table.live if s.enclosure is not None and s.incarnation is not None}
            if not live:
                delay_s = LOOK_S
                continue
            enclosures = [s.enclosure for s in live.values() if s.enclosure is not None]
            workers = {
                s.id: ProcessId(s.incarnation.lease.pid, s.incarnation.start_ticks)
                for s in live.values()
                if s.incarnation is not None and s.incarnation.lease is not None and s.incarnation.is_ready
            }
            is_search_due = self._c.loop.time() >= self._left_due_s
            if is_search_due:
                self._left_due_s = self._c.loop.time() + LEFT_CHECK_S
            try:
                readings, escaped = await self._c.in_thread(self._read, enclosures, workers, is_search_due)
            except (OttoError, OSError) as error:
                self._c.log(f"enclosures: {error}")
                continue
            for session_id, reading in readings.items():
                self._judge(live[session_id], reading)
            for session_id, pids in escaped.items():
                self._escaped(live[session_id], pids)
            delay_s = self._c.enclosures.next_look_s(readings.values())

    def _read(
        self, enclosures: list[Enclosure], workers: dict[str, ProcessId], with_search: bool
    ) -> tuple[dict[str, Reading], dict[str, list[int]]]:
        """On a thread: what all use, and, if it is time, who could not be kept in its control group.

        A process that has left is taken back, with what it will start; its session is ended only if that fails.
        """
        readings = self._c.enclosures.read_all(enclosures)
        left = self._c.enclosures.escaped(workers, enclosures) if with_search else {}
        leaves = {each.session: each for each in enclosures}
        return readings, {s: out for s, found in left.items() if (out := _take_back(leaves[s], found))}

    def _judge(self, session: Session, reading: Reading) -> None:
        session.reading = reading
        incarnation = session.incarnation
        if incarnation is None or incarnation.is_dead or incarnation.end_intent is not None:
            return
        if reading.is_over_memory:
            incarnation.end_intent = "memory"
            self._c.log(f"{reading.memory_bytes >> 20} MiB, more than its cap; killed", session=session.id)
            incarnation.send_signal(signal.SIGKILL)
        elif reading.is_over_pids:
            incarnation.end_intent = "crashed"
            incarnation.end_reason = f"{reading.tasks} tasks at once, more than its cap"
            incarnation.send_signal(signal.SIGKILL)

    def _escaped(self, session: Session, pids: list[int]) -> None:
        """A process outside of its control group has no cap."""
        incarnation = session.incarnation
        if incarnation is None or incarnation.is_dead:
            return
        if incarnation.is_ready and incarnation.end_intent is None:
            incarnation.end_intent = "crashed"
            incarnation.end_reason = f"process {pids[0]} left the session's control group"
            incarnation.send_signal(signal.SIGKILL)


def _take_back(enclosure: Enclosure, processes: list[ProcessId]) -> list[int]:
    """The pids of those that are still outside."""
    outside = []
    for process in processes:
        try:
            enclosure.admit(process.pid)
        except OttoError:
            if is_alive(process):
                outside.append(process.pid)
    return outside
