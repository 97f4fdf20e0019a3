"""The worker's line to root: events out in batches, commands in, a heartbeat from the real loop.

On an idle line an event leaves at once. Behind it a batch gathers until the end of the loop iteration, or, when
root says that it is busy, for some milliseconds. Nothing is forgotten before root has acknowledged it, and what root
may owe is bounded: producers wait in `room()`.

The line outlives root. While nobody answers, events are kept and the heart beats fast; the next root does not know
this address and asks for a hello, which it answers with how far the ring got, and everything behind that is said
again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import zmq
from msgspec.structs import replace

from ottod.core.outbox import Outbox
from ottod.core.redaction import Redactor
from ottod.errors import Failure, RefusedError, RemoteProtocolError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.birth import Birth
from ottod.protocol.events import ContentDelta, Event, SessionStarted, SessionStateChanged, UsageUpdated
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
    WorkerHello,
    WorkerMessage,
    WorkerRejected,
    WorkerWelcome,
    root_to_worker,
    worker_messages,
)
from ottod.protocol.worker_requests import RequestReply, WorkerRequest, WorkerRequestBody
from ottod.transport.socket import Socket, connect_dealer

QUEUE_MESSAGES = 256
CHECK_S = 0.02
"""The longest that a command may wait because sending an event hid its arrival."""
IDLE_NS = 500_000
"""An event that comes this long after the last batch left goes by itself, at once."""
RETRY_S = 0.005
"""How soon to try again when the socket takes nothing."""
ORPHAN_BEAT_S = 0.05
"""Between heartbeats while root is away: how soon the next one can hear of this worker."""
ADOPTED_BEAT_S = 0.5
"""The longest between two heartbeats of a worker that has outlived a root: it has no channel that tells of the next
death."""
HELLO_PATIENCE_S = 0.25
"""A hello that was not answered for so long is said again when root asks for one."""
MAX_REQUESTS = 256
"""That may wait for root's answer."""

WORDLESS = frozenset({SessionStarted, UsageUpdated})
"""Events that hold numbers, and names from the configuration: there is nothing in them to look for."""

T = TypeVar("T")
OnCommand = Callable[[CommandBody], Awaitable[Failure | None]]


class Link:
    """One incarnation's connection. Unborn it is only a connected socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: str) -> None:
        self._loop = loop
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        raw = connect_dealer(self._context, endpoint, queue_messages=QUEUE_MESSAGES)
        self._socket = Socket(raw, loop=loop, on_message=self._handle, check_after_s=CHECK_S)
        self._birth: Birth | None = None
        self._outbox: Outbox | None = None
        self._is_welcome = False
        self._is_flush_due = False
        self._window_s = 0.0
        self._left_ns = 0
        self._room: asyncio.Event = asyncio.Event()
        self._room.set()
        self._farewell: asyncio.Future[None] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._beat_due_s = 0.0
        self._welcomed: asyncio.Future[None] = loop.create_future()
        self._hello_said_s = 0.0
        self._beat_s = 0.0
        self._last_word: Exiting | None = None
        self._requests: dict[int, tuple[WorkerRequestBody, asyncio.Future[RequestReply]]] = {}
        self._next_request = 1
        self.on_command: OnCommand | None = None
        self.on_root: Callable[[WorkerWelcome], None] = lambda welcome: None
        self.on_rejected: Callable[[], None] = lambda: None
        self.read_fsyncs: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """How often the journal was forced to disk, and how long that took in nanoseconds, since the birth."""
        self._told_fsyncs = 0, 0
        self._redactor: Redactor | None = None
        self.on_event: Callable[[Event], None] | None = None
        """Hears of every event but pieces of streams, as it is sent."""
        self.on_resumed: Callable[[int], None] = lambda turn: None
        """A turn that has been told of goes on."""
        self.traceparent_of: Callable[[str], str] = lambda key: ""
        """The span of a tool call, by its key, for what is started below it."""

    def open(self, birth: Birth, key: int) -> None:
        """Becomes the line of one incarnation and says hello."""
        self._birth = birth
        self._outbox = Outbox(
            session_key=key,
            incarnation=birth.incarnation,
            next_seq=birth.next_seq,
            max_unacked_bytes=birth.max_unacked_bytes,
        )
        self._say_hello()
        self._beat_s = birth.heartbeat_s
        self._beat_due_s = self._loop.time() + self._beat_s
        self._beat = self._loop.call_at(self._beat_due_s, self._heartbeat)

    @property
    def outbox(self) -> Outbox:
        assert self._outbox is not None, "the link is not open"
        return self._outbox

    @property
    def last_seq(self) -> int:
        return self.outbox.next_seq - 1

    @property
    def redactor(self) -> Redactor:
        """Takes out of a text what the session must not say. Made when first asked for: idle sessions say nothing."""
        if self._redactor is None:
            birth = self._birth
            assert birth is not None, "the link is not open"
            self._redactor = Redactor.of(birth.secrets, has_shapes=birth.redact_shapes)
        return self._redactor

    def redacted(self, value: T) -> T:
        """A text, or a struct with texts in it, without secrets."""
        return self.redactor.value(value)

    # ------------------------------------------------------------ out

    def emit(self, event: Event) -> int:
        """Sends an event as soon as the batching window allows. Gives its seq.

        Secrets are taken out of it, but not of pieces of a stream: whoever streams redacts, over the cuts between
        them.
        """
        kind = type(event)
        if (
            kind is not ContentDelta
            and kind not in WORDLESS
            and (
                kind is not SessionStateChanged or event.reason  # type: ignore[union-attr]
            )
        ):
            event = self.redactor.value(event)
        if self.on_event is not None and kind is not ContentDelta:
            self.on_event(event)
        outbox = self.outbox
        now_ns = time.time_ns()
        if now_ns - self._left_ns > IDLE_NS and self._is_welcome and not self._window_s and not outbox.has_unsent:
            # The line is idle: this event leaves now. More of them in a hurry will share a batch.
            self._left_ns = now_ns
            if not self._socket.send([KIND_BATCH + outbox.emit_alone(event, now_ns)]):
                outbox.untake(1)
                self._flush_later()
            return outbox.next_seq - 1
        seq = outbox.emit(event, now_ns)
        if not self._is_flush_due:
            self._is_flush_due = True
            if self._window_s:
                self._loop.call_later(self._window_s, self._flush)
            else:
                self._loop.call_soon(self._flush)
        return seq

    async def room(self) -> None:
        """Waits while root owes more acknowledgements than the bound allows."""
        if self.outbox.is_full:
            self._room.clear()
            await self._room.wait()

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self._is_welcome or self._socket.is_closed:
            return
        outbox = self.outbox
        self._left_ns = time.time_ns()
        records = outbox.take()
        for sent, record in enumerate(records):
            if not self._socket.send([KIND_BATCH + record]):
                outbox.untake(len(records) - sent)
                self._flush_later()
                return

    def _flush_later(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_later(RETRY_S, self._flush)

    def _send(self, message: WorkerMessage) -> bool:
        return self._socket.send([KIND_MESSAGE + worker_messages.encode(message)])

    def _say_hello(self) -> None:
        birth = self._birth
        assert birth is not None
        hello = WorkerHello(
            protocol=PROTOCOL_VERSION,
            session=birth.session,
            incarnation=birth.incarnation,
            secret=birth.secret,
            pid=os.getpid(),
            unacked_seq=self.outbox.acked_seq + 1,
            knows_undo=True,
        )
        self._hello_said_s = self._loop.time()
        if not self._socket.is_closed and not self._send(hello):
            self._loop.call_later(RETRY_S, self._say_hello)

    def _heartbeat(self) -> None:
        now_s = self._loop.time()
        lag_ms = max(0.0, now_s - self._beat_due_s) * 1000
        if self._is_welcome:
            self._send_heartbeat(lag_ms)
        elif now_s - self._hello_said_s > HELLO_PATIENCE_S:
            # The root that had heard the last one may have died before it could answer.
            self._say_hello()
        self._set_beat(self._beat_s)

    def _send_heartbeat(self, lag_ms: float = 0.0) -> None:
        count, took_ns = self.read_fsyncs()
        told_count, told_ns = self._told_fsyncs
        beat = Heartbeat(
            lag_ms=lag_ms,
            unacked_bytes=self.outbox.held_bytes,
            fsync_count=count - told_count,
            fsync_ns=took_ns - told_ns,
        )
        if self._send(beat):
            self._told_fsyncs = count, took_ns

    def _set_beat(self, period_s: float) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._beat_s = period_s
        self._beat_due_s = self._loop.time() + period_s
        self._beat = self._loop.call_at(self._beat_due_s, self._heartbeat)

    def orphaned(self) -> None:
        """Root seems to be gone: makes itself heard often, so that the next one finds this worker soon."""
        self._set_beat(ORPHAN_BEAT_S)

    async def welcomed(self) -> None:
        """Waits for root's welcome."""
        await asyncio.shield(self._welcomed)

    async def request(self, body: WorkerRequestBody) -> str:
        """Asks root for something about a child; gives the child's id. As `ask`."""
        return (await self.ask(body)).child

    async def ask(self, body: WorkerRequestBody) -> RequestReply:
        """Asks root for something; gives its answer. Raises RefusedError with root's reason. As `hear`."""
        reply = await self.hear(body)
        if reply.failure is not None:
            raise RefusedError(reply.failure.message, code=reply.failure.code, mend=reply.failure.mend)
        return reply

    async def hear(self, body: WorkerRequestBody) -> RequestReply:
        """Asks root for something and waits for the answer, whatever it is, over root's death if need be.

        Raises: RefusedError if too many requests wait.
        """
        if len(self._requests) >= MAX_REQUESTS:
            raise RefusedError(f"{MAX_REQUESTS} requests wait for the daemon already", code="too_many_requests")
        number, self._next_request = self._next_request, self._next_request + 1
        future: asyncio.Future[RequestReply] = self._loop.create_future()
        self._requests[number] = self.redacted(body), future
        try:
            self._ask(number)
            return await future
        finally:
            self._requests.pop(number, None)

    def _ask(self, number: int) -> None:
        """Sends a request that still waits. One that cannot leave now leaves after the next welcome or try."""
        if number not in self._requests or not self._is_welcome or self._socket.is_closed:
            return
        if not self._send(WorkerRequest(id=number, body=self._requests[number][0])):
            self._loop.call_later(RETRY_S, self._ask, number)

    def _answered(self, reply: RequestReply) -> None:
        _, future = self._requests.get(reply.id, (None, None))
        if future is not None and not future.done():
            future.set_result(reply)

    async def say_farewell(self, exiting: Exiting, *, timeout_s: float) -> None:
        """Gets every event and the last word acknowledged, by this root or the next; gives up after `timeout_s`."""
        self._farewell = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self.welcomed()
                self._flush()
                self._last_word = self.redacted(exiting)
                # What a short session did since its last heartbeat, if it had one at all.
                self._send_heartbeat()
                self._say_last_word()
                await self._farewell
        except TimeoutError:
            pass  # Root does not answer; what it lacks is lost with this process, and root will say so.

    def _say_last_word(self) -> None:
        if self._last_word is None or not self._is_welcome or self._socket.is_closed:
            return
        if self.outbox.has_unsent or not self._send(replace(self._last_word, last_seq=self.last_seq)):
            self._loop.call_later(RETRY_S, self._say_last_word)

    # ------------------------------------------------------------ in

    def _handle(self, frames: list[bytes]) -> None:
        if len(frames) != 1 or frames[0][:1] != KIND_MESSAGE:
            return  # An empty probe: root asks the socket, not the session.
        try:
            message = root_to_worker.decode(memoryview(frames[0])[1:])
        except RemoteProtocolError:
            return
        match message:
            case Ack():
                self._acknowledged(message)
            case Command():
                self._loop.create_task(self._obey(message))
            case ExitAck():
                if self._farewell is not None and not self._farewell.done():
                    self._farewell.set_result(None)
            case RequestReply():
                self._answered(message)
            case WorkerWelcome():
                self._welcome(message)
            case WorkerRejected():
                self._rejected(message)

    def _welcome(self, message: WorkerWelcome) -> None:
        outbox = self.outbox
        outbox.rewind()
        outbox.ack(min(message.acked_seq, self.last_seq))
        self._is_welcome = True
        assert self._birth is not None
        if self._welcomed.done():
            self._set_beat(min(self._birth.heartbeat_s, ADOPTED_BEAT_S))
        else:
            self._welcomed.set_result(None)
        self.on_root(message)
        if not outbox.is_full:
            self._room.set()
        self._flush()
        for number in list(self._requests):
            self._ask(number)
        self._say_last_word()

    def _rejected(self, message: WorkerRejected) -> None:
        if message.failure.code != "hello_required":
            self.on_rejected()
        elif self._is_welcome or self._loop.time() - self._hello_said_s > HELLO_PATIENCE_S:
            # A new root has never heard of this address. Several messages may each have been answered so.
            self._is_welcome = False
            self._say_hello()

    def _acknowledged(self, ack: Ack) -> None:
        outbox = self.outbox
        if ack.seq <= self.last_seq:
            outbox.ack(ack.seq)
        self._window_s = ack.window_us / 1e6
        if not outbox.is_full:
            self._room.set()

    async def _obey(self, command: Command) -> None:
        assert self.on_command is not None
        failure = await self.on_command(command.body)
        # What the order brought about is told before it is acknowledged: this process may die right after.
        self._flush()
        # A stop may have been obeyed to the end before its turn to be answered came: the last word was the answer.
        if not self._socket.is_closed:
            self._send(CommandReply(id=command.id, failure=self.redacted(failure)))

    def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._socket.close(linger_ms=200)
        self._context.term()
