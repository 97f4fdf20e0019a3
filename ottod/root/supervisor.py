"""Starts sessions, watches their workers, stops them, and proves that they are gone.

One session, one worker at a time. What root does about a worker's end is decided here; so far every end of a
worker is the end of its session, with a typed cause. Everything that may block (files, the database, walks
through /proc) happens on threads; the loop only routes.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace

from ottod.core.projection import fold
from ottod.errors import OttoError, RefusedError
from ottod.ids import key_from_bytes, session_id
from ottod.isolation.processes import ProcessId, identify, kill_survivors
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.control import SessionInfo, SessionStartedResult, StartSession, StopResult
from ottod.protocol.events import Event, SessionCreated, SessionExited
from ottod.protocol.worker import Birth, DeliverInput, StopTurn, births
from ottod.root.hub import Hub
from ottod.root.reaper import Exit
from ottod.root.resolve import Resolved, Resolver
from ottod.root.session_table import Incarnation, Session, SessionTable
from ottod.root.vitals import Vitals, is_starved, look
from ottod.root.worker_gate import WorkerGate
from ottod.root.zygote_client import Lease, ZygoteClient
from ottod.settings.daemon import DaemonSettings
from ottod.storage.database import Database
from ottod.storage.database_rows import Incarnation as IncarnationRow

DRAIN_TIMEOUT_S = 2.0
"""The longest wait for a dead worker's last messages."""
DRAIN_POLL_S = 0.005
TERM_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
PROOF_TIMEOUT_S = 5.0
"""The longest that killing a session's leftovers may take before they are reported as remaining."""
COMMAND_TIMEOUT_S = 10.0
MAX_LEFTOVERS = 100_000
WATCH_S = 1.0
EXAMINATION_S = 2.0
"""How long a silent worker is watched before it is called hung."""
STARVED_LIMIT = 10
"""A worker that gets no processor is given up after this many times `hung_after_s`."""
PRUNE_EVERY = 20
"""Sessions that end between two looks for surplus ones."""
PRUNE_BATCH = 200
REMEMBERED_KEYS = 10_000
TITLE_CHARS = 80


class Supervisor:
    """All sessions of this root."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        settings: DaemonSettings,
        table: SessionTable,
        hub: Hub,
        gate: WorkerGate,
        zygote: ZygoteClient,
        database: Database,
        resolver: Resolver,
        threads: ThreadPoolExecutor,
        sessions_dir: Path,
        worker_endpoint: str,
        private_dirs: tuple[str, ...],
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._table = table
        self._hub = hub
        self._gate = gate
        self._zygote = zygote
        self._database = database
        self._resolver = resolver
        self._threads = threads
        self._sessions_dir = sessions_dir
        self._worker_endpoint = worker_endpoint
        self._private_dirs = private_dirs
        self._log = log
        self._keys: OrderedDict[str, asyncio.Future[SessionStartedResult]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._starting = 0
        self._ended = 0
        self.started = 0
        gate.on_ready = self._worker_ready
        gate.on_lost = self._worker_unfit
        self._watch_handle = loop.call_later(WATCH_S, self._watch)

    # ------------------------------------------------------------ starting

    async def start(self, request: StartSession) -> SessionStartedResult:
        """Creates a session and lets its worker be born. Answers once the session is durable.

        Raises: OttoError with the code that says why not.
        """
        if not request.key:
            return await self._start(request)
        known = self._keys.get(request.key)
        if known is not None:
            return replace(await asyncio.shield(known), existing=True)
        future: asyncio.Future[SessionStartedResult] = self._loop.create_future()
        self._keys[request.key] = future
        while len(self._keys) > REMEMBERED_KEYS:
            self._keys.popitem(last=False)
        try:
            result = await self._start(request)
        except BaseException as error:
            self._keys.pop(request.key, None)
            future.set_exception(error if isinstance(error, OttoError) else RefusedError("the start was abandoned"))
            future.exception()
            raise
        future.set_result(result)
        return result

    async def _start(self, request: StartSession) -> SessionStartedResult:
        if self._is_stopping:
            raise RefusedError("the daemon is stopping", code="stopping", mend="start it again, then retry")
        limit = self._settings.sessions.max_live
        if self._table.live_count + self._starting >= limit:
            raise RefusedError(
                f"{limit} sessions are live already",
                code="too_many_sessions",
                mend="wait for some to end, or raise sessions.max_live in the daemon's configuration",
            )
        self._starting += 1
        try:
            key = self._new_key()
            directory = self._sessions_dir / session_id(key)
            resolved = await self._loop.run_in_executor(self._threads, self._resolver.resolve, request, directory)
            session = Session(self._new_info(key, request, resolved, directory), resolved.spec)
            if self._is_stopping:
                self._threads.submit(shutil.rmtree, directory, True)
                raise RefusedError("the daemon is stopping", code="stopping", mend="start it again, then retry")
            self._table.add(session)
        finally:
            self._starting -= 1
        self.started += 1
        first_offset = self._record(session, self._created_event(session, resolved))
        self._table.update(session, replace(session.info, first_offset=first_offset))
        # The worker is born while the row is written; the client hears of the session only when it is.
        self._run(self._give_birth(session, request, resolved, directory))
        try:
            await self._database.put_session(session.info, durable=False)
        except OttoError as error:
            self._begin_stop(session, grace_s=0.0, reason=error.message, cause="start_failed")
            raise
        return SessionStartedResult(session=session.id, from_offset=first_offset)

    def _new_key(self) -> int:
        while True:
            key = key_from_bytes(os.urandom(8))
            if self._table.get(session_id(key)) is None and self._hub.ring.last_seq(key) == 0:
                return key

    def _new_info(self, key: int, request: StartSession, resolved: Resolved, directory: Path) -> SessionInfo:
        return SessionInfo(
            session=session_id(key),
            agent=resolved.spec.name,
            model=f"{resolved.models[0].provider}:{resolved.models[0].model}",
            state="starting",
            kind=resolved.spec.kind,
            title=(request.title or " ".join(request.task.split()))[:TITLE_CHARS],
            task=request.task,
            cwd=resolved.cwd,
            parent=request.parent,
            mode=request.mode,
            run_mode=request.run_mode,
            incarnation=1,
            created_at_ns=time.time_ns(),
            agent_source=resolved.spec.source,
            agent_digest=resolved.spec.digest,
            journal=str(directory / "journal"),
        )

    @staticmethod
    def _created_event(session: Session, resolved: Resolved) -> SessionCreated:
        info = session.info
        return SessionCreated(
            agent=info.agent,
            model=info.model,
            kind=resolved.spec.kind,
            title=info.title,
            cwd=info.cwd,
            parent=info.parent,
            run_mode="headless" if info.run_mode == "headless" else "interactive",
            agent_digest=info.agent_digest,
        )

    async def _give_birth(self, session: Session, request: StartSession, resolved: Resolved, directory: Path) -> None:
        try:
            lease = await self._zygote.lease()
        except OttoError as error:
            self._finish(session, Cause(kind="start_failed", message=error.message, code=error.code), result="")
            return
        incarnation = Incarnation(number=1, secret=os.urandom(32), generation=lease.generation)
        incarnation.lease = lease
        incarnation.last_heard_s = self._loop.time()
        incarnation.started_at_ns = time.time_ns()
        session.incarnation = incarnation
        self._table.update(session, replace(session.info, pid=lease.pid))
        lease.adopt(lambda exit_: self._worker_exited(session, incarnation, exit_))
        if session.stop_cause is not None:
            self._kill_worker(session)
            return
        birth = Birth(
            session=session.id,
            incarnation=incarnation.number,
            secret=incarnation.secret,
            next_seq=session.next_seq,
            endpoint=self._worker_endpoint,
            spec=resolved.spec,
            models=resolved.models,
            api_keys=resolved.api_keys,
            task=request.task,
            mode=request.mode,
            run_mode=request.run_mode,
            cwd=resolved.cwd,
            env=resolved.env,
            session_dir=str(directory),
            private_dirs=self._private_dirs,
            generation=lease.generation,
            priority=self._settings.sessions.worker_priority,
            heartbeat_s=self._settings.sessions.heartbeat_s,
            orphan_grace_s=self._settings.sessions.orphan_grace_s,
            journal_sync=self._settings.journal.sync,
        )
        session.timers.append(
            self._loop.call_later(self._settings.sessions.start_timeout_s, self._start_timed_out, session)
        )
        await self._send_birth(lease, births.encode(birth))
        await self._note_incarnation(session, incarnation, lease.pid)

    async def _send_birth(self, lease: Lease, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(lease.channel, len(data).to_bytes(4, "big") + data)
        except OSError as error:
            # The worker is dead or dying; its exit is what counts, and it is on its way.
            self._log(f"worker {lease.pid} did not take its birth: {error.strerror}")

    async def _note_incarnation(self, session: Session, incarnation: Incarnation, pid: int) -> None:
        identity = await self._loop.run_in_executor(self._threads, identify, pid)
        incarnation.start_ticks = identity.start_ticks if identity is not None else 0
        if session.incarnation is not incarnation:
            return
        try:
            await self._database.put_incarnation(self._row(session, incarnation))
        except OttoError as error:
            self._log(f"{session.id}: {error}")

    @staticmethod
    def _row(session: Session, incarnation: Incarnation) -> IncarnationRow:
        return IncarnationRow(
            session=session.id,
            incarnation=incarnation.number,
            pid=incarnation.lease.pid if incarnation.lease is not None else 0,
            start_time_ticks=incarnation.start_ticks,
            started_at_ns=incarnation.started_at_ns,
        )

    def _worker_ready(self, session: Session) -> None:
        session.cancel_timers()
        if session.stop_cause is not None:
            self._kill_worker(session)

    def _start_timed_out(self, session: Session) -> None:
        if session.incarnation is not None and session.incarnation.identity is None:
            session.incarnation.end_intent = "start_failed"
            self._kill_worker(session)

    def _worker_unfit(self, session: Session, why: str) -> None:
        if session.incarnation is not None and session.incarnation.end_intent is None:
            session.incarnation.end_intent = "crashed"
            session.stop_reason = session.stop_reason or why
            self._kill_worker(session)

    def _watch(self) -> None:
        """Looks after workers whose heartbeat has stopped."""
        overdue_s = self._loop.time() - self._settings.sessions.hung_after_s
        for session in self._table.live:
            incarnation = session.incarnation
            if incarnation is None or incarnation.identity is None or incarnation.end_intent is not None:
                continue
            if incarnation.last_heard_s < overdue_s and not incarnation.is_examined:
                incarnation.is_examined = True
                self._run(self._examine(session, incarnation))
        self._watch_handle = self._loop.call_later(WATCH_S, self._watch)

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
        silence_s = self._loop.time() - heard_s
        starved = before is not None and after is not None and is_starved(before, after)
        if starved and silence_s < STARVED_LIMIT * self._settings.sessions.hung_after_s:
            return
        incarnation.end_intent = "hung"
        self._log(f"{session.id}: no heartbeat for {silence_s:.0f} s")
        self._kill_worker(session)

    async def _look(self, pid: int) -> Vitals | None:
        return await self._loop.run_in_executor(self._threads, functools.partial(look, pid, now_s=time.monotonic()))

    # ------------------------------------------------------------ input

    async def send_input(self, session: Session, text: str, sender: str) -> None:
        """Delivers a message to a live session. Raises RefusedError."""
        if session.has_ended or session.stop_cause is not None:
            raise RefusedError(
                f"{session.id} has ended or is stopping and hears nothing more",
                code="session_ended",
                mend="start a new session",
            )
        await self._until_ready(session)
        failure = await self._gate.command(
            session, DeliverInput(text=text, sender=sender), timeout_s=COMMAND_TIMEOUT_S
        )
        if failure is not None:
            raise RefusedError(failure.message, code=failure.code, mend=failure.mend)

    async def _until_ready(self, session: Session) -> None:
        deadline_s = self._loop.time() + self._settings.sessions.start_timeout_s
        while session.info.state == "starting" and self._loop.time() < deadline_s:
            await asyncio.sleep(0.01)

    async def wait(self, session: Session, *, idle: bool) -> None:
        """Returns when the session has ended, or, with `idle`, when it waits for input."""
        while not session.has_ended and not (idle and session.info.state == "idle"):
            future: asyncio.Future[None] = self._loop.create_future()
            waiters = session.idle_waiters if idle else session.end_waiters
            waiters.append(future)
            try:
                await future
            finally:
                if future in waiters:
                    waiters.remove(future)

    # ------------------------------------------------------------ stopping

    async def stop(
        self, session: Session, *, grace_s: float | None, reason: str, cause: CauseKind = "cancelled"
    ) -> StopResult:
        """Stops a session and gives the proof. A second stop joins the first, and may shorten its grace."""
        if session.has_ended:
            assert session.info.cause is not None
            return StopResult(
                session=session.id,
                cause=session.info.cause,
                remaining_pids=session.info.remaining_pids,
                already_ended=True,
            )
        if grace_s is None:
            shutdown = session.spec.restart.shutdown if session.spec is not None else None
            grace_s = self._settings.sessions.stop_grace_s if shutdown is None else shutdown.grace_s
            grace_s = 0.0 if shutdown is not None and shutdown.brutal else grace_s
        self._begin_stop(session, grace_s=grace_s, reason=reason, cause=cause)
        await self.wait(session, idle=False)
        assert session.info.cause is not None
        return StopResult(session=session.id, cause=session.info.cause, remaining_pids=session.info.remaining_pids)

    def _begin_stop(self, session: Session, *, grace_s: float, reason: str, cause: CauseKind) -> None:
        is_first = session.stop_cause is None
        if is_first:
            session.stop_cause, session.stop_reason = cause, reason
            self._table.update(session, replace(session.info, state="stopping"))
        incarnation = session.incarnation
        if incarnation is None:
            return
        if grace_s <= 0 or incarnation.identity is None:
            self._kill_worker(session)
            return
        if is_first:
            order = StopTurn(reason=reason, cause="daemon_stop" if cause == "daemon_stop" else "cancelled")
            self._run(self._order_stop(session, order))
        session.timers.append(self._loop.call_later(grace_s, self._terminate_worker, session))
        session.timers.append(self._loop.call_later(grace_s + TERM_GRACE_S, self._kill_worker, session))

    async def _order_stop(self, session: Session, order: StopTurn) -> None:
        failure = await self._gate.command(session, order, timeout_s=COMMAND_TIMEOUT_S)
        if failure is not None and not session.has_ended:
            self._log(f"{session.id}: stop: {failure.message}")

    def _terminate_worker(self, session: Session) -> None:
        incarnation = session.incarnation
        if incarnation is not None and incarnation.lease is not None and incarnation.lease.child is not None:
            incarnation.lease.child.send_signal(signal.SIGTERM)

    def _kill_worker(self, session: Session) -> None:
        incarnation = session.incarnation
        if incarnation is not None and incarnation.lease is not None and incarnation.lease.child is not None:
            incarnation.lease.child.send_signal(signal.SIGKILL)

    async def stop_all(self, *, grace_s: float) -> None:
        """Ends every session with cause `daemon_stop`; nothing new starts from here on."""
        self._is_stopping = True
        sessions = self._table.live
        await asyncio.gather(
            *(self.stop(s, grace_s=grace_s, reason="the daemon stops", cause="daemon_stop") for s in sessions)
        )
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        self._watch_handle.cancel()

    # ------------------------------------------------------------ the end

    def _worker_exited(self, session: Session, incarnation: Incarnation, exit_: Exit) -> None:
        if session.incarnation is incarnation and not session.has_ended:
            self._run(self._bury(session, incarnation, exit_))

    async def _bury(self, session: Session, incarnation: Incarnation, exit_: Exit) -> None:
        """From the worker's death to the session's end: hear it out, kill what it left, say so once."""
        session.cancel_timers()
        deadline_s = self._loop.time() + DRAIN_TIMEOUT_S
        while not self._gate.has_drained(incarnation) and self._loop.time() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        self._gate.forget(incarnation)
        if incarnation.lease is not None:
            incarnation.lease.channel.close()
        remaining = await self._end_processes(session.id)
        said = incarnation.exiting
        cause = self._cause(session, incarnation, exit_)
        self._finish(
            session,
            cause,
            result=said.result if said is not None else "",
            truncated=said.truncated if said is not None else False,
            remaining=remaining,
        )
        try:
            await self._database.put_session(session.info)
            row = self._row(session, incarnation)
            await self._database.put_incarnation(replace(row, ended_at_ns=time.time_ns(), cause=cause))
            self._ended += 1
            if self._ended % PRUNE_EVERY == 0:
                await self.prune()
        except OttoError as error:
            self._log(f"{session.id}: {error}")

    async def _end_processes(self, session: str, known: Sequence[ProcessId] = ()) -> list[ProcessId]:
        """Kills what is alive of a session, on a thread; gives what remains."""
        end = functools.partial(kill_survivors, session, deadline_s=PROOF_TIMEOUT_S, known=known)
        return await self._loop.run_in_executor(self._threads, end)

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

    def _finish(
        self,
        session: Session,
        cause: Cause,
        *,
        result: str,
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
        self._record(session, event)
        session.release_waiters()

    def _record(self, session: Session, event: Event) -> int:
        """Appends an event of root's own to a session that has no worker, and folds it."""
        at_ns = time.time_ns()
        seq = session.next_seq
        offset = self._hub.append_event(session.key, seq, session.info.incarnation, event, at_ns)
        session.next_seq = seq + 1
        info = fold(session.info, event, at_ns)
        self._table.update(session, replace(info, last_seq=seq, last_offset=offset))
        return offset

    # ------------------------------------------------------------ after a restart of root

    async def bury_leftovers(self) -> int:
        """Ends the sessions that an earlier root left alive in the database, and kills what is left of them."""
        leftovers = await self._database.sessions(limit=MAX_LEFTOVERS)
        workers = await self._database.live_incarnations()
        for info in leftovers:
            known = [ProcessId(w.pid, w.start_time_ticks) for w in workers if w.session == info.session]
            remaining = await self._end_processes(info.session, known)
            last_seq = max(info.last_seq, self._hub.ring.last_seq(Session(info, None).key))
            session = Session(replace(info, last_seq=last_seq), None)
            self._table.add(session)
            cause = Cause(kind="daemon_stop", message="the daemon had ended before the session did")
            self._finish(session, cause, result="", remaining=remaining)
            await self._database.put_session(session.info)
        return len(leftovers)

    async def remove(self, session: Session) -> None:
        """Forgets an ended session and deletes its files. Raises RefusedError while it lives."""
        if not session.has_ended:
            raise RefusedError(
                f"{session.id} has not ended", code="session_live", mend=f"ottoctl stop {session.id} first"
            )
        await self._forget(session.id)

    async def prune(self) -> int:
        """Forgets ended sessions beyond those that are to be retained; gives their number."""
        surplus = await self._database.surplus_sessions(self._settings.sessions.retain_ended, limit=PRUNE_BATCH)
        for surplus_id in surplus:
            await self._forget(surplus_id)
        return len(surplus)

    async def _forget(self, session_id: str) -> None:
        await self._database.delete_session(session_id)
        self._table.forget(session_id)
        await self._loop.run_in_executor(self._threads, shutil.rmtree, self._sessions_dir / session_id, True)

    def _run(self, coroutine: object) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a supervision task failed", "exception": error, "task": task}
            self._loop.call_exception_handler(context)
