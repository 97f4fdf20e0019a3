"""Looks after workers whose heartbeat has stopped."""

from __future__ import annotations

import asyncio
import functools
import signal
import time

from msgspec.structs import replace

from ottod.root.context import RootContext
from ottod.root.session_table import Incarnation, Session
from ottod.root.vitals import Vitals, is_starved, look

WATCH_S = 1.0
EXAMINATION_S = 2.0
"""How long a silent worker is watched before it is called hung."""
STARVED_LIMIT = 10
"""A worker that gets no processor is given up after this many times `hung_after_s`."""


class Watch:
    """One timer for all workers."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._handle = context.loop.call_later(WATCH_S, self._watch)

    def close(self) -> None:
        self._handle.cancel()

    def _watch(self) -> None:
        """Looks after workers whose heartbeat has stopped."""
        self._note_seqs()
        overdue_s = self._c.loop.time() - self._c.settings.sessions.hung_after_s
        for session in self._c.table.live:
            incarnation = session.incarnation
            if incarnation is None or incarnation.identity is None or incarnation.end_intent is not None:
                continue
            if incarnation.last_heard_s < overdue_s and not incarnation.is_examined:
                incarnation.is_examined = True
                self._c.spawn(self._examine(session, incarnation))
        self._handle = self._c.loop.call_later(WATCH_S, self._watch)

    def _note_seqs(self) -> None:
        """Notes in the database how far each session has got: the ring may forget it, and no seq is used twice."""
        for session in self._c.table.live:
            last_seq = session.next_seq - 1
            if last_seq != session.info.last_seq:
                self._c.table.update(session, replace(session.info, last_seq=last_seq))

    async def _examine(self, session: Session, incarnation: Incarnation) -> None:
        """Kills a worker that hangs; waits on one that the machine gives no processor."""
        assert incarnation.lease is not None
        pid, heard_s = incarnation.lease.pid, incarnation.last_heard_s
        before = await self._look(pid)
        await asyncio.sleep(EXAMINATION_S)
        after = await self._look(pid)
        incarnation.is_examined = False
        if session.incarnation is not incarnation or incarnation.last_heard_s > heard_s:
            return
        silence_s = self._c.loop.time() - heard_s
        starved = before is not None and after is not None and is_starved(before, after)
        if starved and silence_s < STARVED_LIMIT * self._c.settings.sessions.hung_after_s:
            return
        incarnation.end_intent = "hung"
        self._c.log(f"{session.id}: no heartbeat for {silence_s:.0f} s")
        incarnation.send_signal(signal.SIGKILL)

    async def _look(self, pid: int) -> Vitals | None:
        return await self._c.in_thread(functools.partial(look, pid, now_s=time.monotonic()))
