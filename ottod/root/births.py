"""From a start request to a worker that has been born."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ottod.errors import OttoError, RefusedError
from ottod.ids import key_from_bytes, session_id
from ottod.isolation.processes import identify
from ottod.protocol.cause import Cause
from ottod.protocol.control import SessionInfo, StartSession
from ottod.protocol.events import SessionCreated
from ottod.protocol.worker import Birth, births
from ottod.root.burials import Burials, incarnation_row
from ottod.root.context import RootContext
from ottod.root.resolve import Resolved, Resolver
from ottod.root.session_table import Incarnation, Session
from ottod.root.zygote_client import Lease

TITLE_CHARS = 80
MAX_NAMES_BYTES = 48 * 1024
"""Of everything that a session is called: its agent, model, directory, title."""


class Births:
    """Creates sessions. `is_closed` refuses new ones."""

    def __init__(
        self,
        context: RootContext,
        burials: Burials,
        *,
        resolver: Resolver,
        worker_endpoint: str,
        private_dirs: tuple[str, ...],
    ) -> None:
        self._c = context
        self._burials = burials
        self._resolver = resolver
        self._worker_endpoint = worker_endpoint
        self._private_dirs = private_dirs
        self._starting = 0
        self.is_closed = False
        self.started = 0
        context.gate.on_ready = self._worker_ready

    async def create(self, request: StartSession) -> Session:
        """Resolves a request, announces the session and lets its worker be born; returns when its row is written.

        Raises: OttoError with the code that says why not.
        """
        if self.is_closed:
            raise RefusedError("the daemon is stopping", code="stopping", mend="start it again, then retry")
        limit = self._c.settings.sessions.max_live
        if self._c.table.live_count + self._starting >= limit:
            raise RefusedError(
                f"{limit} sessions are live already",
                code="too_many_sessions",
                mend="wait for some to end, or raise sessions.max_live in the daemon's configuration",
            )
        self._starting += 1
        try:
            key = self._new_key()
            directory = self._c.sessions_dir / session_id(key)
            resolved = await self._c.in_thread(self._resolver.resolve, request, directory)
            session = Session(self._new_info(key, request, resolved, directory), resolved.spec)
            check_encodable(session.info)
            if self.is_closed:
                self._c.threads.submit(shutil.rmtree, directory, True)
                raise RefusedError("the daemon is stopping", code="stopping", mend="start it again, then retry")
            self._c.table.add(session)
        finally:
            self._starting -= 1
        self.started += 1
        first_offset = self._c.record(session, self._created_event(session, resolved))
        self._c.table.update(session, replace(session.info, first_offset=first_offset))
        # The worker is born while the row is written; the client hears of the session only when it is.
        self._c.spawn(self._give_birth(session, request, resolved, directory))
        try:
            await self._c.database.put_session(session.info, durable=False)
        except OttoError as error:
            session.stop_cause, session.stop_reason = "start_failed", error.message
            if session.incarnation is not None:
                session.incarnation.send_signal(signal.SIGKILL)
            raise
        return session

    def _new_key(self) -> int:
        while True:
            key = key_from_bytes(os.urandom(8))
            if self._c.table.get(session_id(key)) is None and self._c.hub.ring.last_seq(key) == 0:
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
            lease = await self._c.zygote.lease()
        except OttoError as error:
            cause = Cause(kind="start_failed", message=error.message, code=error.code)
            if session.stop_cause is not None:
                cause = Cause(kind=session.stop_cause, message=session.stop_reason)
            self._burials.finish(session, cause)
            return
        try:
            await self._bear(session, request, resolved, directory, lease)
        except Exception as error:
            # A session must not stay in `starting` because of a defect in bringing it to life.
            session.stop_reason = session.stop_reason or f"the birth failed: {error!r}"[:500]
            if session.incarnation is not None:
                session.incarnation.end_intent = "start_failed"
                session.incarnation.send_signal(signal.SIGKILL)
            else:
                lease.channel.close()
                self._burials.finish(session, Cause(kind="start_failed", message=session.stop_reason))
            raise

    async def _bear(
        self, session: Session, request: StartSession, resolved: Resolved, directory: Path, lease: Lease
    ) -> None:
        incarnation = Incarnation(number=1, secret=os.urandom(32), generation=lease.generation)
        incarnation.lease = lease
        incarnation.last_heard_s = self._c.loop.time()
        incarnation.started_at_ns = time.time_ns()
        session.incarnation = incarnation
        self._c.table.update(session, replace(session.info, pid=lease.pid))
        lease.adopt(lambda exit_: self._burials.worker_exited(session, incarnation, exit_))
        if session.stop_cause is not None:
            incarnation.send_signal(signal.SIGKILL)
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
            priority=self._c.settings.sessions.worker_priority,
            heartbeat_s=self._c.settings.sessions.heartbeat_s,
            orphan_grace_s=self._c.settings.sessions.orphan_grace_s,
            journal_sync=self._c.settings.journal.sync,
        )
        session.timers.append(
            self._c.loop.call_later(self._c.settings.sessions.start_timeout_s, self._timed_out, session)
        )
        await self._send_birth(lease, births.encode(birth))
        await self._note_incarnation(session, incarnation, lease.pid)

    async def _send_birth(self, lease: Lease, data: bytes) -> None:
        try:
            await self._c.loop.sock_sendall(lease.channel, len(data).to_bytes(4, "big") + data)
        except OSError as error:
            # The worker is dead or dying; its exit is what counts, and it is on its way.
            self._c.log(f"worker {lease.pid} did not take its birth: {error.strerror}")

    async def _note_incarnation(self, session: Session, incarnation: Incarnation, pid: int) -> None:
        identity = await self._c.in_thread(identify, pid)
        incarnation.start_ticks = identity.start_ticks if identity is not None else 0
        if session.incarnation is not incarnation:
            return
        try:
            await self._c.database.put_incarnation(incarnation_row(session, incarnation))
        except OttoError as error:
            self._c.log(f"{session.id}: {error}")

    def _worker_ready(self, session: Session) -> None:
        session.cancel_timers()
        if session.stop_cause is not None and session.incarnation is not None:
            session.incarnation.send_signal(signal.SIGKILL)

    def _timed_out(self, session: Session) -> None:
        incarnation = session.incarnation
        if incarnation is not None and incarnation.identity is None:
            incarnation.end_intent = "start_failed"
            incarnation.send_signal(signal.SIGKILL)


def check_encodable(info: SessionInfo) -> None:
    """Refuses what no event or reply could carry, before anybody hears of the session. Raises RefusedError."""
    try:
        size = len(msgspec.msgpack.encode(replace(info, task="")))
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"a name is not valid text: {error.object!r}"[:300], code="bad_cwd", mend="use a path in UTF-8"
        ) from error
    if size > MAX_NAMES_BYTES:
        raise RefusedError(f"the session's names take {size} bytes; {MAX_NAMES_BYTES} is the limit", code="too_large")
