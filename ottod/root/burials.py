"""From a worker's death to the proof that nothing of it is left, and a session's one last word.

Whether the session goes on is decided in `groups`; here is what happens in either case: the dead worker is heard out,
what it left is killed, the end is proved, and the cause is named.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from ottod.errors import OttoError
from ottod.isolation.enclosure import Enclosure, Reading
from ottod.isolation.processes import ProcessId, kill_survivors
from ottod.isolation.protected import release_stale
from ottod.protocol.cause import Cause
from ottod.protocol.events import SessionExited
from ottod.root.artifacts import Artifacts
from ottod.root.context import RootContext
from ottod.root.decisions import Decisions
from ottod.root.loss import Loss
from ottod.root.process import remove_all_forgotten, remove_forgotten, remove_tree
from ottod.root.reaper import Exit
from ottod.root.session_table import Incarnation, Session
from ottod.storage.database_rows import Incarnation as IncarnationRow
from ottod.storage.journal_files import compress_ended

DRAIN_TIMEOUT_S = 2.0
"""The longest wait for a dead worker's last messages."""
DRAIN_POLL_S = 0.005
PROOF_TIMEOUT_S = 5.0
"""The longest that killing a session's leftovers may take before they are reported as remaining."""
INHERITED_STOP = "the stop that the last daemon began"
CLOSE_UP_ATTEMPTS = 5
CLOSE_UP_AGAIN_S = 1.0
"""Between two attempts to end and measure a session, when the machine is out of descriptors, say."""
PRUNE_EVERY = 20
"""Sessions that end between two looks for surplus ones."""
PRUNE_BATCH = 200


class Burials:
    """Buries workers and ends sessions, each once. `on_lost` decides what becomes of a session without its worker."""

    def __init__(self, context: RootContext, artifacts: Artifacts, decisions: Decisions) -> None:
        self._c = context
        self._artifacts = artifacts
        self._decisions = decisions
        self._ended = 0
        self._unsettled: dict[str, asyncio.Future[None]] = {}
        """Of ended sessions that are not put away yet: each is set when that is done."""
        self.on_lost: Callable[[Session, Incarnation, Loss], None] = lambda session, incarnation, loss: None
        self.on_ended: Callable[[Session], None] = lambda session: None
        self.on_worker_gone: Callable[[Session], None] = lambda session: None
        """Called when a dead worker has been heard out, before anything follows from its death."""

    def worker_exited(self, session: Session, incarnation: Incarnation, exit_: Exit) -> None:
        """Called once for every incarnation, after its process has ended."""
        if session.incarnation is incarnation and not session.has_ended:
            self._c.spawn(self._bury(session, incarnation, exit_))

    async def _bury(self, session: Session, incarnation: Incarnation, exit_: Exit) -> None:
        session.cancel_timers()
        deadline_s = self._c.loop.time() + DRAIN_TIMEOUT_S
        while not self._c.gate.has_drained(incarnation) and self._c.loop.time() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        self._c.gate.forget(incarnation)
        self.on_worker_gone(session)
        known = []
        if incarnation.lease is not None:
            incarnation.lease.close()
            known.append(ProcessId(incarnation.lease.pid, incarnation.start_ticks))
        reading, remaining = await self._end_all(session, known)
        session.reading = reading or session.reading
        said = incarnation.exiting
        cause = self._cause(session, incarnation, exit_)
        loss = Loss(
            cause=cause,
            result=said.result if said is not None else "",
            truncated=said.truncated if said is not None else False,
            is_json=said.is_json if said is not None else False,
            whole=said.whole if said is not None else "",
            remaining=tuple(remaining),
        )
        if reading is not None:
            session.memory_kills_seen = reading.memory_kills
        self._c.instruments.incarnation_exited(cause.kind)
        if cause.kind == "memory":
            self._c.instruments.memory_killed()
        session.incarnation = session.stop_ladder = None
        self.on_lost(session, incarnation, loss)
        try:
            row = incarnation_row(session, incarnation)
            await self._c.database.put_incarnation(replace(row, ended_at_ns=time.time_ns(), cause=cause))
        except OttoError as error:
            self._c.log(str(error), session=session.id)

    async def _end_all(self, session: Session, known: list[ProcessId]) -> tuple[Reading | None, Sequence[ProcessId]]:
        """What the session used, and what remains of it; if nobody can tell, pid 0 remains."""
        for _ in range(CLOSE_UP_ATTEMPTS):
            try:
                return await self._c.in_thread(_close_up, session.enclosure, session.id, known)
            except (OSError, OttoError) as error:
                self._c.log(f"its end cannot be looked at: {error}", session=session.id)
            await asyncio.sleep(CLOSE_UP_AGAIN_S)
        return None, [ProcessId(0, 0)]

    def _cause(self, session: Session, incarnation: Incarnation, exit_: Exit) -> Cause:
        said, verdict = incarnation.exiting, incarnation.verdict
        if verdict is not None:
            return verdict
        if said is not None:
            return said.cause
        if session.is_stopping:
            reason = session.stop_reason or INHERITED_STOP
            return Cause(kind=session.stop_cause or "cancelled", message=reason, signal=exit_.signal)
        intent = incarnation.end_intent
        reading = session.reading
        if intent == "memory" or (reading is not None and reading.memory_kills > session.memory_kills_seen):
            return _memory_cause(session, exit_)
        if intent == "hung":
            return Cause(kind="hung", message="the worker's heartbeat stopped", signal=exit_.signal)
        if intent == "start_failed" or not incarnation.is_ready:
            how = exit_.signal or f"exit status {exit_.status}"
            message = "the worker was not ready in time" if intent else f"the worker died before it was ready: {how}"
            return Cause(kind="start_failed", message=message, signal=exit_.signal, status=exit_.status)
        if exit_.signal:
            message = incarnation.end_reason or f"the worker was killed by {exit_.signal}"
            return Cause(kind="crashed", message=message, signal=exit_.signal)
        message = incarnation.end_reason or "the worker left without a word"
        return Cause(kind="crashed", message=message, status=exit_.status)

    async def end_processes(self, session: str, known: Sequence[ProcessId]) -> list[ProcessId]:
        """Kills what is alive of a session that has no enclosure; gives what remains."""
        return (await self._c.in_thread(_close_up, None, session, known))[1]

    def finish(self, session: Session, loss: Loss) -> None:
        """The session's one `session.exited`."""
        assert not session.has_ended
        now_ns = time.time_ns()
        event = SessionExited(
            cause=loss.cause,
            result=loss.result,
            usage=session.info.usage,
            duration_ms=(now_ns - session.info.created_at_ns) // 1_000_000,
            incarnations=session.info.incarnation,
            remaining_pids=tuple(p.pid for p in loss.remaining),
            truncated=loss.truncated,
            is_json=loss.is_json and not loss.truncated,
            whole=loss.whole,
        )
        session.cancel_timers()
        session.incarnation = None
        session.proof = _proof(session.enclosure, loss)
        self._c.instruments.session_exited(loss.cause.kind)
        self._c.record(session, event)
        self.on_ended(session)
        # Before anybody hears of it: who waited for the end may ask for it to be forgotten at once.
        self._unsettled[session.id] = self._c.loop.create_future()
        session.release_waiters()
        self._c.spawn(self.settle(session))

    async def settle(self, session: Session) -> None:
        """What need not be done before those who wait are told. Once more does no harm."""
        settled = self._unsettled.setdefault(session.id, self._c.loop.create_future())
        try:
            await self._put_away(session)
        finally:
            self._unsettled.pop(session.id, None)
            settled.set_result(None)
        self._ended += 1
        if self._ended % PRUNE_EVERY == 0:
            try:
                await self.prune()
            except OttoError as error:
                self._c.log(str(error), session=session.id)

    async def _put_away(self, session: Session) -> None:
        enclosure, session.enclosure = session.enclosure, None
        if enclosure is not None and not session.info.remaining_pids:
            try:
                await self._c.in_thread(enclosure.close)
            except OttoError as error:
                self._c.log(str(error), session=session.id)
        # Its journal is kept until it is forgotten; what its tools left in their temporary directory is nobody's.
        temporary = self._c.sessions_dir / session.id / "tmp"
        if not await self._c.in_thread(remove_tree, temporary):
            self._say_left(temporary)
        if session.plan is not None and _may_have_left_placeholders(session):
            await self._c.in_thread(release_stale, session.plan.cwd)
        try:
            await self._c.database.put_session(session.info)
        except OttoError as error:
            self._c.log(str(error), session=session.id)
        if self._c.settings.journal.compress_ended and not session.info.remaining_pids:
            await self._compress(session.id)

    async def _compress(self, session_id: str) -> None:
        """Nobody writes its journal any more. One that cannot be compressed stays as it is."""
        try:
            await self._c.in_thread(compress_ended, self._c.sessions_dir / session_id)
        except OttoError as error:
            self._c.log(str(error), session=session_id)

    # ------------------------------------------------------------ forgetting

    async def prune(self) -> int:
        """Forgets ended sessions beyond those that are to be retained; gives their number."""
        surplus = await self._c.database.surplus_sessions(self._c.settings.sessions.retain_ended, limit=PRUNE_BATCH)
        for surplus_id in surplus:
            await self.forget(surplus_id)
        return len(surplus)

    async def forget(self, session_id: str) -> None:
        """Deletes an ended session: its row, its place in memory, its files; with a tree's last one its artifacts.

        What has just ended is put away first: that writes its row and its files, which would be there again.
        """
        if (settled := self._unsettled.get(session_id)) is not None:
            await asyncio.shield(settled)
        tree = await self._artifacts.tree_on_record(session_id)
        await self._c.database.delete_session(session_id)
        await self._artifacts.session_forgotten(tree)
        await self._decisions.session_forgotten(session_id)
        self._c.table.forget(session_id)
        if left := await self._c.in_thread(remove_forgotten, self._c.sessions_dir / session_id):
            self._say_left(left)

    async def sweep(self) -> None:
        """Removes what an earlier daemon could not remove of sessions that were forgotten, or did not come to."""
        for left in await self._c.in_thread(remove_all_forgotten, self._c.sessions_dir):
            self._say_left(left)

    def _say_left(self, path: Path) -> None:
        self._c.log(f"{path} cannot be removed whole: see what in it may not be changed, and remove it by hand")


def _may_have_left_placeholders(session: Session) -> bool:
    """Whether it had a launcher that was killed: one that ends by itself takes along what it had put in place."""
    cause = session.info.cause
    was_killed = cause is not None and (cause.kind in ("crashed", "memory", "hung") or bool(cause.signal))
    return was_killed and session.plan is not None and bool(session.plan.spec.tools)


def _close_up(
    enclosure: Enclosure | None, session: str, known: Sequence[ProcessId]
) -> tuple[Reading | None, list[ProcessId]]:
    """On a thread: what the session used in the end, and the death of everything it left; gives what remains."""
    if enclosure is None:
        end = functools.partial(kill_survivors, session, deadline_s=PROOF_TIMEOUT_S, known=known)
        return None, end()
    # A watchdog's reading would be of a tree whose top is dead; the last look's is better.
    reading = enclosure.read() if enclosure.kind == "cgroup" else None
    return reading, enclosure.kill(deadline_s=PROOF_TIMEOUT_S, known=known)


def _memory_cause(session: Session, exit_: Exit) -> Cause:
    reading = session.reading
    assert reading is not None
    cap, peak, tool = reading.cap_bytes or 0, reading.peak_bytes, session.info.last_tool
    running = "during" if session.info.current_tool else "after"
    message = f"used {peak >> 20} MiB of {cap >> 20} MiB allowed" + (
        f", {running} the tool call {tool}" if tool else ""
    )
    return Cause(kind="memory", message=message, signal=exit_.signal, cap_bytes=cap, peak_bytes=peak, last_tool=tool)


def _proof(enclosure: Enclosure | None, loss: Loss) -> str:
    if loss.remaining:
        return ""
    if enclosure is not None and enclosure.kind == "cgroup":
        return "its cgroup is empty, and no process with its marker is left"
    return "no process of it is left, by pid and start time, by parent, or by marker"


def incarnation_row(session: Session, incarnation: Incarnation) -> IncarnationRow:
    """What the database keeps of a worker's process."""
    return IncarnationRow(
        session=session.id,
        incarnation=incarnation.number,
        pid=incarnation.lease.pid if incarnation.lease is not None else 0,
        start_time_ticks=incarnation.start_ticks,
        started_at_ns=incarnation.started_at_ns,
        secret=incarnation.secret,
        generation=incarnation.generation,
    )
