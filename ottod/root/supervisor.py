"""What can be done to sessions: start, speak to, wait for, stop, remove.

One session, one worker at a time. How a worker comes into the world is in `births`, how a session leaves it in
`burials`, who looks after silent workers in `watch`. So far every end of a worker is the end of its session, with a
typed cause. Everything that may block (files, the database, walks through /proc) happens on threads; the loop only
routes.
"""

from __future__ import annotations

import asyncio
import signal
from collections import OrderedDict

from msgspec.structs import replace

from ottod.errors import OttoError, RefusedError
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.control import SessionStartedResult, StartSession, StopResult
from ottod.protocol.worker import DeliverInput, StopTurn
from ottod.root.births import Births
from ottod.root.burials import Burials
from ottod.root.context import RootContext
from ottod.root.resolve import Resolver
from ottod.root.session_table import Session
from ottod.root.watch import Watch

TERM_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
LAST_RESORT_S = 15.0
"""After SIGKILL: the longest wait for the end and its proof."""
COMMAND_TIMEOUT_S = 10.0
REMEMBERED_KEYS = 10_000


class Supervisor:
    """All sessions of this root."""

    def __init__(
        self, context: RootContext, *, resolver: Resolver, worker_endpoint: str, private_dirs: tuple[str, ...]
    ) -> None:
        self._c = context
        self._burials = Burials(context)
        self._births = Births(
            context, self._burials, resolver=resolver, worker_endpoint=worker_endpoint, private_dirs=private_dirs
        )
        self._watch = Watch(context)
        self._keys: OrderedDict[str, asyncio.Future[SessionStartedResult]] = OrderedDict()
        context.gate.on_lost = self._worker_unfit

    @property
    def started(self) -> int:
        """Sessions started since root's birth."""
        return self._births.started

    # ------------------------------------------------------------ starting

    async def start(self, request: StartSession) -> SessionStartedResult:
        """Creates a session and lets its worker be born. Answers once the session is durable.

        Raises: OttoError with the code that says why not.
        """
        if not request.key:
            return await self._create(request)
        known = self._keys.get(request.key)
        if known is not None:
            return replace(await asyncio.shield(known), existing=True)
        future: asyncio.Future[SessionStartedResult] = self._c.loop.create_future()
        self._keys[request.key] = future
        while len(self._keys) > REMEMBERED_KEYS:
            self._keys.popitem(last=False)
        try:
            result = await self._create(request)
        except BaseException as error:
            self._keys.pop(request.key, None)
            future.set_exception(error if isinstance(error, OttoError) else RefusedError("the start was abandoned"))
            future.exception()
            raise
        future.set_result(result)
        return result

    async def _create(self, request: StartSession) -> SessionStartedResult:
        session = await self._births.create(request)
        return SessionStartedResult(session=session.id, from_offset=session.info.first_offset)

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
        failure = await self._c.gate.command(
            session, DeliverInput(text=text, sender=sender), timeout_s=COMMAND_TIMEOUT_S
        )
        if failure is not None:
            raise RefusedError(failure.message, code=failure.code, mend=failure.mend)

    async def _until_ready(self, session: Session) -> None:
        deadline_s = self._c.loop.time() + self._c.settings.sessions.start_timeout_s
        while session.info.state == "starting" and self._c.loop.time() < deadline_s:
            await asyncio.sleep(0.01)

    async def wait(self, session: Session, *, idle: bool) -> None:
        """Returns when the session has ended, or, with `idle`, when it waits for input."""
        while not session.has_ended and not (idle and session.info.state == "idle"):
            future: asyncio.Future[None] = self._c.loop.create_future()
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
            grace_s = shutdown.grace_s if shutdown is not None else None
            if grace_s is None:
                grace_s = self._c.settings.sessions.stop_grace_s
            grace_s = 0.0 if shutdown is not None and shutdown.brutal else grace_s
        self._begin_stop(session, grace_s=grace_s, reason=reason, cause=cause)
        try:
            async with asyncio.timeout(grace_s + TERM_GRACE_S + LAST_RESORT_S):
                await self.wait(session, idle=False)
        except TimeoutError:
            # Not even SIGKILL ends it: it is stuck in the kernel. The truth is an answer too.
            pids = (session.info.pid,) if session.info.pid else ()
            return StopResult(session=session.id, cause=Cause(kind=cause, message=reason), remaining_pids=pids)
        assert session.info.cause is not None
        return StopResult(session=session.id, cause=session.info.cause, remaining_pids=session.info.remaining_pids)

    def _begin_stop(self, session: Session, *, grace_s: float, reason: str, cause: CauseKind) -> None:
        is_first = session.stop_cause is None
        if is_first:
            session.stop_cause, session.stop_reason = cause, reason
            self._c.table.update(session, replace(session.info, state="stopping"))
        incarnation = session.incarnation
        if incarnation is None:
            return
        if grace_s <= 0 or incarnation.identity is None:
            incarnation.send_signal(signal.SIGKILL)
            return
        if is_first:
            order = StopTurn(reason=reason, cause="daemon_stop" if cause == "daemon_stop" else "cancelled")
            self._c.spawn(self._order_stop(session, order))
        session.timers.append(self._c.loop.call_later(grace_s, incarnation.send_signal, signal.SIGTERM))
        session.timers.append(
            self._c.loop.call_later(grace_s + TERM_GRACE_S, incarnation.send_signal, signal.SIGKILL)
        )

    async def _order_stop(self, session: Session, order: StopTurn) -> None:
        failure = await self._c.gate.command(session, order, timeout_s=COMMAND_TIMEOUT_S)
        if failure is not None and not session.has_ended:
            self._c.log(f"{session.id}: stop: {failure.message}")

    def _worker_unfit(self, session: Session, why: str) -> None:
        incarnation = session.incarnation
        if incarnation is not None and incarnation.end_intent is None:
            incarnation.end_intent = "crashed"
            session.stop_reason = session.stop_reason or why
            incarnation.send_signal(signal.SIGKILL)

    async def stop_all(self, *, grace_s: float) -> None:
        """Ends every session with cause `daemon_stop`; nothing new starts from here on."""
        self._births.is_closed = True
        sessions = self._c.table.live
        await asyncio.gather(
            *(self.stop(s, grace_s=grace_s, reason="the daemon stops", cause="daemon_stop") for s in sessions)
        )
        await self._c.wait_for_tasks()

    def close(self) -> None:
        self._watch.close()

    # ------------------------------------------------------------ the past

    async def bury_leftovers(self) -> int:
        """Ends what an earlier root left behind; gives the number of sessions."""
        return await self._burials.bury_leftovers()

    async def prune(self) -> int:
        """Forgets ended sessions beyond those that are to be retained."""
        return await self._burials.prune()

    async def remove(self, session: Session) -> None:
        """Forgets an ended session and deletes its files. Raises RefusedError while it lives."""
        if not session.has_ended:
            raise RefusedError(
                f"{session.id} has not ended", code="session_live", mend=f"ottoctl stop {session.id} first"
            )
        await self._burials.forget(session.id)
