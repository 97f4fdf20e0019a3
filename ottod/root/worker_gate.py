"""The worker socket: who may speak, what they say, and what they are told.

A worker is known by the secret of its incarnation, which only it and root have; until it has shown it nothing of
it is listened to. Batches are appended in the order of their seq: an older one is a repetition and only
acknowledged, a newer one than expected means that the worker lost count and ends it.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from ottod.core.projection import fold
from ottod.errors import Failure, RemoteProtocolError
from ottod.isolation.processes import ProcessId, identify
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.events import Event, LogWarning, Unknown
from ottod.protocol.records import HEADER_BYTES, LANE_STATE, decode_payload, parse_unsealed
from ottod.protocol.results import SessionInfo
from ottod.protocol.worker import (
    KIND_BATCH,
    KIND_MESSAGE,
    Ack,
    Command,
    CommandBody,
    CommandReply,
    ExitAck,
    Exiting,
    Heartbeat,
    RootToWorker,
    WorkerHello,
    WorkerRejected,
    WorkerWelcome,
    root_to_worker,
    worker_messages,
)
from ottod.protocol.worker_requests import RequestReply, WorkerRequest
from ottod.root.hub import Hub
from ottod.root.session_table import Incarnation, Session, SessionTable
from ottod.root.worker_claims import bounded, check_entries
from ottod.transport.socket import Socket

ACK_BYTES = 64 * 1024
"""A worker that has this much unacknowledged is answered at once, others by the sweep."""
ACK_PERIOD_S = 0.2
WINDOW_BUSY_SHARE = 0.6
"""When root spends more than this share of its time on the worker socket, workers are told to batch longer."""
WINDOW_MAX_US = 5_000
MAX_LOGGED = 100
"""Strangers' messages that are worth a line in the log."""
MAX_LEAP = 1_000_000
"""More events than a worker can have had acknowledged that root knows nothing of."""
MAX_REQUESTS = 256
"""Of one worker that may be open at once."""

OnReady = Callable[[Session, bool], None]
"""`is_adopted`: it comes from an earlier root."""
OnEntries = Callable[[Session, int, Sequence[tuple[int, Event | Unknown]]], None]
"""State events as they come, with the first one's seq."""
OnRequest = Callable[[Session, Incarnation, WorkerRequest], None]


class WorkerGate:
    """Root's end of all workers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, table: SessionTable, hub: Hub, *, log: Callable[[str], None]):
        self._loop = loop
        self._table = table
        self._hub = hub
        self._log = log
        self._socket: Socket | None = None
        self._by_identity: dict[bytes, tuple[Session, Incarnation]] = {}
        self._dirty: set[bytes] = set()
        self._urgent: set[bytes] = set()
        self._commands: dict[int, tuple[Session, asyncio.Future[Failure | None]]] = {}
        # Not from 1: an adopted worker may yet answer what an earlier root ordered.
        self._next_command = int.from_bytes(os.urandom(5), "big") + 1
        self._is_held = False
        self._busy_ns = 0
        self._window_us = 0
        self._sweep_at = loop.time()
        self.on_ready: OnReady = lambda session, is_adopted: None
        self.on_request: OnRequest = lambda session, incarnation, request: None
        self._self = identify(os.getpid()) or ProcessId(os.getpid(), 0)
        self.on_fsyncs: Callable[[int, int], None] = lambda count, took_ns: None
        self.on_event: Callable[[SessionInfo, Event | Unknown, int], None] = lambda info, event, at_ns: None
        """Hears of every event of the state lane once, with the session as it was before it."""
        self.on_entries: OnEntries = lambda session, first_seq, entries: None
        self.on_warning: Callable[[str], None] = lambda code: None
        """Called with the code of each warning that a session gives."""
        self.on_lost: Callable[[Session, str], None] = lambda session, why: None
        self.rejected_messages = 0
        self.batches = 0
        self._sweep_handle = loop.call_later(ACK_PERIOD_S, self._sweep)

    def attach(self, socket: Socket) -> None:
        self._socket = socket

    # ------------------------------------------------------------ incoming

    def handle(self, frames: list[bytes]) -> None:
        """One message from the ROUTER. Never raises for what a worker sent."""
        started = time.perf_counter_ns()
        identity = frames[0]
        try:
            if len(frames) != 2:
                raise RemoteProtocolError(f"a message of {len(frames) - 1} frames; one was expected")
            frame = frames[1]
            kind = frame[:1]
            if kind == KIND_BATCH:
                self._batch(identity, memoryview(frame)[1:])
            elif kind == KIND_MESSAGE:
                self._message(identity, memoryview(frame)[1:])
            else:
                raise RemoteProtocolError("a message of unknown kind")
        except RemoteProtocolError as error:
            self._reject(identity, error)
        self._busy_ns += time.perf_counter_ns() - started

    def _reject(self, identity: bytes, error: RemoteProtocolError) -> None:
        self.rejected_messages += 1
        known = self._by_identity.get(identity)
        if known is not None:
            self._log(f"{known[0].id}: worker broke the protocol: {error}")
            self.on_lost(known[0], f"broke the protocol: {error}")
        elif self.rejected_messages <= MAX_LOGGED:
            self._log(f"worker socket: {error}")

    def _batch(self, identity: bytes, record: memoryview) -> None:
        known = self._by_identity.get(identity)
        if known is None:
            self._send(identity, WorkerRejected(failure=Failure(code="hello_required", message="say hello first")))
            self.rejected_messages += 1
            return
        session, incarnation = known
        header = parse_unsealed(record)
        if header.session_key != session.key or header.incarnation != incarnation.number:
            raise RemoteProtocolError("a batch of another session or incarnation")
        if header.first_seq != session.next_seq:
            if header.last_seq < session.next_seq:
                self._dirty.add(identity)
                return
            raise RemoteProtocolError(f"seq {header.first_seq} came when {session.next_seq} was due")
        entries = decode_payload(record[HEADER_BYTES:]) if header.lane == LANE_STATE else ()
        if header.lane == LANE_STATE:
            check_entries(entries, header.event_count, incarnation, session=session, table=self._table)
        first_offset = self._hub.append(record, header)
        session.next_seq = header.last_seq + 1
        incarnation.last_heard_s = self._loop.time()
        incarnation.unacked_by_root_bytes += len(record)
        self.batches += 1
        self._dirty.add(identity)
        if incarnation.unacked_by_root_bytes >= ACK_BYTES:
            self._urgent.add(identity)
        if entries:
            # Before the row that follows from them: what is written first cannot be missed by a later root.
            self.on_entries(session, header.first_seq, entries)
            self._fold(session, entries, first_offset)

    def _fold(self, session: Session, entries: object, first_offset: int) -> None:
        info = session.info
        for at_ns, event in entries:  # type: ignore[attr-defined]
            self.on_event(info, event, at_ns)
            info = fold(info, event, at_ns)
            if type(event) is LogWarning:
                self.on_warning(event.code)
        if session.is_stopping and info.state != "stopping":
            # What it still does is on the way to its end.
            info = replace(info, state="stopping")
        self._table.update(session, info)
        if info.state in ("idle", "ended"):
            session.release_waiters()

    def _message(self, identity: bytes, data: memoryview) -> None:
        message = worker_messages.decode(data)
        if isinstance(message, WorkerHello):
            self._hello(identity, message)
            return
        known = self._by_identity.get(identity)
        if known is None:
            self._send(identity, WorkerRejected(failure=Failure(code="hello_required", message="say hello first")))
            self.rejected_messages += 1
            return
        session, incarnation = known
        incarnation.last_heard_s = self._loop.time()
        match message:
            case Heartbeat():
                if message.fsync_count:
                    self.on_fsyncs(message.fsync_count, message.fsync_ns)
                incarnation.held_memory_bytes = message.unacked_bytes
                self._dirty.add(identity)
            case CommandReply():
                self._replied(session, message)
            case WorkerRequest():
                self._requested(session, incarnation, message)
            case Exiting():
                if message.last_seq != session.next_seq - 1:
                    raise RemoteProtocolError(f"exits after seq {message.last_seq}, {session.next_seq - 1} is known")
                incarnation.exiting = bounded(message)
                self._send(identity, ExitAck())

    def _requested(self, session: Session, incarnation: Incarnation, request: WorkerRequest) -> None:
        if request.id in incarnation.open_requests:
            return  # Asked again after another hello; the answer is on its way.
        if len(incarnation.open_requests) >= MAX_REQUESTS:
            text = f"{MAX_REQUESTS} requests are open already"
            failure = Failure(code="too_many_requests", message=text, retryable=True)
            if incarnation.identity is not None:
                self._send(incarnation.identity, RequestReply(id=request.id, failure=failure))
        else:
            incarnation.open_requests.add(request.id)
            self.on_request(session, incarnation, request)

    def answer(self, incarnation: Incarnation, reply: RequestReply) -> None:
        """Answers a request. A worker that is away asks again when it is back."""
        incarnation.open_requests.discard(reply.id)
        if incarnation.identity is not None and not incarnation.is_over:
            self._send(incarnation.identity, reply)

    def _replied(self, session: Session, reply: CommandReply) -> None:
        asked, future = self._commands.get(reply.id, (session, None))
        if asked is not session:
            raise RemoteProtocolError(f"an answer to command {reply.id}, which was not given to this session")
        if future is not None and not future.done():
            future.set_result(reply.failure)

    def _hello(self, identity: bytes, hello: WorkerHello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            text = f"worker speaks protocol {hello.protocol}, root speaks {PROTOCOL_VERSION}"
            failure = Failure(code="protocol_mismatch", message=text, mend="restart the daemon after an upgrade")
            self._send(identity, WorkerRejected(failure=failure, protocol=PROTOCOL_VERSION))
            self.rejected_messages += 1
            if self.rejected_messages <= MAX_LOGGED:
                self._log(text)
            return
        session = self._table.get(hello.session)
        incarnation = session.incarnation if session is not None else None
        if (
            session is None
            or incarnation is None
            or incarnation.number != hello.incarnation
            or incarnation.lease is None
            or incarnation.is_over
            or not hmac.compare_digest(incarnation.secret, hello.secret)
        ):
            failure = Failure(code="unknown_worker", message="no such session, incarnation or secret")
            self._send(identity, WorkerRejected(failure=failure, protocol=PROTOCOL_VERSION))
            self.rejected_messages += 1
            return
        is_first = incarnation.identity is None
        if not self._takes_on(identity, session, incarnation, hello):
            return
        if incarnation.identity is not None and incarnation.identity != identity:
            self._by_identity.pop(incarnation.identity, None)
        incarnation.identity, incarnation.knows_undo = identity, hello.knows_undo
        incarnation.last_heard_s = self._loop.time()
        self._by_identity[identity] = (session, incarnation)
        welcome = WorkerWelcome(
            protocol=PROTOCOL_VERSION,
            acked_seq=session.next_seq - 1,
            root_pid=self._self.pid,
            root_start_ticks=self._self.start_ticks,
        )
        self._send(identity, welcome)
        if is_first:
            is_adopted = incarnation.adopt_by_s > 0
            incarnation.is_ready, incarnation.adopt_by_s = True, 0.0
            self.on_ready(session, is_adopted)

    def _takes_on(self, identity: bytes, session: Session, incarnation: Incarnation, hello: WorkerHello) -> bool:
        """Whether the worker and root agree on the next seq; where the ring cannot say, an adopted worker knows best.

        The acknowledgement of what the ring no longer has need not have reached the worker: it may have been frozen,
        or root have died before it was sent. What is noted in the database was used, and is not due again.
        """
        if incarnation.adopt_by_s and self._hub.ring.last_seq(session.key) == 0 and hello.unacked_seq > 0:
            session.next_seq = max(hello.unacked_seq, session.noted_seq + 1)
        if hello.unacked_seq <= session.next_seq:
            return True
        # Events that root had acknowledged are gone: a power failure of the ring alone. They must not be named anew.
        if incarnation.adopt_by_s and hello.unacked_seq < session.next_seq + MAX_LEAP:
            session.next_seq = hello.unacked_seq
            return True
        self._reject(
            identity, RemoteProtocolError(f"says hello at seq {hello.unacked_seq}, {session.next_seq} is due")
        )
        return False

    # ------------------------------------------------------------ outgoing

    def drained(self) -> None:
        """Called when the socket has nothing more for now: acknowledge those who wait for it most."""
        while self._urgent:
            self._ack(self._urgent.pop())

    def hold_until_synced(self) -> None:
        """From now on only `acknowledge` acknowledges: what is not on disk is the worker's to keep."""
        self._is_held = True

    def appended(self) -> dict[bytes, int]:
        """The newest seq in the ring of every worker that waits for an acknowledgement."""
        known = ((identity, self._by_identity.get(identity)) for identity in self._dirty)
        return {identity: pair[0].next_seq - 1 for identity, pair in known if pair is not None}

    def acknowledge(self, synced: dict[bytes, int]) -> None:
        """Acknowledges what `appended` gave before a sync that is now over."""
        for identity, seq in synced.items():
            self._ack(identity, seq)

    def _ack(self, identity: bytes, synced_seq: int | None = None) -> None:
        if self._is_held and synced_seq is None:
            return
        self._dirty.discard(identity)
        known = self._by_identity.get(identity)
        if known is None:
            return
        session, incarnation = known
        newest_seq = session.next_seq - 1
        if synced_seq is not None and synced_seq < newest_seq:
            self._dirty.add(identity)
        incarnation.unacked_by_root_bytes = 0
        incarnation.acked_seq = newest_seq if synced_seq is None else synced_seq
        self._send(identity, Ack(seq=incarnation.acked_seq, window_us=self._window_us))

    def _sweep(self) -> None:
        """Acknowledges everybody who waits, and sets the workers' batching window by how busy root was."""
        now = self._loop.time()
        share = self._busy_ns / 1e9 / max(now - self._sweep_at, 1e-3)
        self._busy_ns, self._sweep_at = 0, now
        if share > WINDOW_BUSY_SHARE:
            self._window_us = min(WINDOW_MAX_US, max(500, self._window_us * 2))
        elif self._window_us:
            self._window_us = self._window_us // 2 if self._window_us > 500 else 0
        for identity in list(self._dirty):
            self._ack(identity)
        self._sweep_handle = self._loop.call_later(ACK_PERIOD_S, self._sweep)

    def _send(self, identity: bytes, message: RootToWorker) -> bool:
        assert self._socket is not None
        return self._socket.send([identity, KIND_MESSAGE + root_to_worker.encode(message)])

    async def command(self, session: Session, body: CommandBody, *, timeout_s: float) -> Failure | None:
        """Orders a worker and waits for its answer; no answer is a failure with code `no_answer`."""
        incarnation = session.incarnation
        if incarnation is None or incarnation.identity is None:
            return Failure(code="not_ready", message=f"{session.id} has no worker that listens yet", retryable=True)
        number, self._next_command = self._next_command, self._next_command + 1
        future: asyncio.Future[Failure | None] = self._loop.create_future()
        self._commands[number] = session, future
        try:
            if not self._send(incarnation.identity, Command(id=number, body=body)):
                return Failure(code="not_ready", message=f"the worker of {session.id} takes no messages")
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return Failure(code="no_answer", message=f"the worker of {session.id} did not answer in {timeout_s} s")
        finally:
            self._commands.pop(number, None)

    def has_drained(self, incarnation: Incarnation) -> bool:
        """Whether everything that a dead worker had sent has been handled."""
        if incarnation.identity is None or self._socket is None:
            return True
        return not self._socket.is_reachable(incarnation.identity)

    def forget(self, incarnation: Incarnation) -> None:
        """The incarnation is over; whatever still comes from its address is rejected."""
        incarnation.is_over = True
        gone = Failure(code="session_ended", message="the session ended before it could answer")
        for session, future in list(self._commands.values()):
            if session.incarnation is incarnation and not future.done():
                future.set_result(gone)
        if incarnation.identity is not None:
            self._by_identity.pop(incarnation.identity, None)
            self._dirty.discard(incarnation.identity)

    def close(self) -> None:
        self._sweep_handle.cancel()
        if self._socket is not None:
            self._socket.close(linger_ms=100)
