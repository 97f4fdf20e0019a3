"""A worker's line to root: the real protocol and the real outbox, as `ottod.worker.link` speaks it.

Everything emitted is kept until it is acknowledged; when root dies the heart beats fast, the next root asks for a
hello, and everything that the ring lacks is said again. What a worker is and does is in `worker`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ottod.core.outbox import Outbox
from ottod.ids import session_key
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol import events as ev
from ottod.protocol.birth import Birth
from ottod.protocol.worker import (
    KIND_BATCH,
    KIND_MESSAGE,
    Ack,
    Command,
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
from tests.simulation.bus import Frames, Line
from tests.simulation.processes import Process
from tests.simulation.world import Happening

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

QUEUE_MESSAGES = 256
RETRY_S = 0.005
FLUSH_S = 0.001
ORPHAN_BEAT_S = 0.05
ADOPTED_BEAT_S = 0.5
HELLO_PATIENCE_S = 0.25


class Speaker(ABC):
    """What a worker says and hears."""

    def __init__(self, machine: Machine, process: Process) -> None:
        self.machine = machine
        self.world = machine.world
        self.process = process
        self.birth: Birth | None = None
        self._line: Line | None = None
        self._outbox: Outbox | None = None
        self._is_welcome = False
        self._was_welcome = False
        self._is_flush_due = False
        self._hello_said_s = 0.0
        self._beat: Happening | None = None
        self._last_word: Exiting | None = None
        self._requests: dict[int, WorkerRequestBody] = {}

    def open_line(self, birth: Birth) -> None:
        """Becomes the line of one incarnation and says hello."""
        self.birth = birth
        self._outbox = Outbox(
            session_key=session_key(birth.session),
            incarnation=birth.incarnation,
            next_seq=birth.next_seq,
            max_unacked_bytes=birth.max_unacked_bytes,
        )
        self._line = Line(self.machine.worker_endpoint, birth.session, self._hear, limit=QUEUE_MESSAGES)
        self._say_hello()
        self._set_beat(birth.heartbeat_s)

    def close_line(self, *, is_killed: bool) -> None:
        """The process is gone."""
        if self._line is not None:
            self._line.close(is_killed=is_killed)
        if self._beat is not None:
            self._beat.cancel()

    def set_frozen(self, *, frozen: bool) -> None:
        """A frozen process neither reads nor writes; what comes for it gathers."""
        self.process.is_stopped = frozen
        if self._line is not None:
            self._line.is_frozen = frozen
            if not frozen:
                self._line.thaw()

    @property
    def _runs(self) -> bool:
        return self.process.is_alive and not self.process.is_stopped

    # ------------------------------------------------------------ out

    def emit(self, event: ev.Event) -> None:
        assert self._outbox is not None and self.birth is not None
        seq = self._outbox.emit(event, self.world.wall_ns)
        self.machine.oracle.emitted(self.birth.session, self.birth.incarnation, seq, event)
        self._flush_soon(FLUSH_S)

    def _flush_soon(self, delay_s: float) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self.world.after(delay_s, self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self.process.is_alive or not self._is_welcome:
            return
        if self.process.is_stopped:
            self._flush_soon(RETRY_S * 20)
            return
        assert self._outbox is not None and self._line is not None
        records = self._outbox.take()
        for sent, record in enumerate(records):
            if not self._line.send([KIND_BATCH + record]):
                self._outbox.untake(len(records) - sent)
                self._flush_soon(RETRY_S)
                return

    def _say(self, message: WorkerMessage) -> bool:
        return self._line is not None and self._line.send([KIND_MESSAGE + worker_messages.encode(message)])

    def _say_hello(self) -> None:
        if not self.process.is_alive or self.birth is None or self._outbox is None:
            return
        birth = self.birth
        hello = WorkerHello(
            protocol=PROTOCOL_VERSION,
            session=birth.session,
            incarnation=birth.incarnation,
            secret=birth.secret,
            pid=self.process.pid,
            unacked_seq=self._outbox.acked_seq + 1,
        )
        self._hello_said_s = self.world.now_s
        if self.process.is_stopped or not self._say(hello):
            self.world.after(RETRY_S * 4, self._say_hello)
        elif self.machine.is_faulty and self.world.chance(0.1):
            self.world.count("hello said twice")
            self._say(hello)

    def _set_beat(self, period_s: float) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._beat = self.world.after(period_s, self._heartbeat, period_s)

    def _heartbeat(self, period_s: float) -> None:
        if self._runs and self._is_welcome and self._outbox is not None:
            self._say(Heartbeat(unacked_bytes=self._outbox.held_bytes))
        elif not self._is_welcome and self.world.now_s - self._hello_said_s > HELLO_PATIENCE_S:
            # The root that had heard the last one may have died before it could answer.
            self._say_hello()
        self._set_beat(period_s)

    def _say_last_word(self) -> None:
        if self._last_word is None or not self._is_welcome or not self.process.is_alive:
            return
        assert self._outbox is not None
        word = replace(self._last_word, last_seq=self._outbox.next_seq - 1)
        if self.process.is_stopped or self._outbox.has_unsent or not self._say(word):
            self.world.after(RETRY_S, self._say_last_word)

    # ------------------------------------------------------------ in

    def _hear(self, frames: Frames) -> None:
        if not self._runs or frames[0][:1] != KIND_MESSAGE:
            return
        assert self._outbox is not None and self.birth is not None
        match root_to_worker.decode(memoryview(frames[0])[1:]):
            case Ack() as ack:
                if ack.seq < self._outbox.next_seq:
                    self._outbox.ack(ack.seq)
                self.machine.oracle.acked(self.birth.session, ack.seq)
            case Command() as command:
                self.obey(command)
            case ExitAck():
                if self._last_word is not None:
                    self.machine.oracle.farewell_heard(self.birth.session, self.birth.incarnation, self._last_word)
                    self.farewell_heard()
            case RequestReply() as reply:
                asked = self._requests.pop(reply.id, None)
                if asked is not None:
                    self.answered(asked, reply)
            case WorkerWelcome() as welcome:
                self.machine.oracle.acked(self.birth.session, welcome.acked_seq)
                self._welcomed(welcome)
            case WorkerRejected() as rejected:
                self._rejected(rejected)

    def _welcomed(self, welcome: WorkerWelcome) -> None:
        assert self._outbox is not None and self.birth is not None
        is_first, self._was_welcome = not self._was_welcome, True
        self._outbox.rewind()
        self._outbox.ack(min(welcome.acked_seq, self._outbox.next_seq - 1))
        self._is_welcome = True
        self._set_beat(self.birth.heartbeat_s if is_first else min(self.birth.heartbeat_s, ADOPTED_BEAT_S))
        self._flush()
        for number, body in self._requests.items():
            self._say(WorkerRequest(id=number, body=body))
        self._say_last_word()
        self.welcomed(is_first=is_first)

    def _rejected(self, rejected: WorkerRejected) -> None:
        if rejected.failure.code != "hello_required":
            self.world.note("%s is not wanted: %s", self.process.name, rejected.failure.code)
            self.unwanted()
        elif self._is_welcome or self.world.now_s - self._hello_said_s > HELLO_PATIENCE_S:
            self._is_welcome = False
            self._say_hello()

    # ------------------------------------------------------------ what the worker makes of it

    @abstractmethod
    def obey(self, command: Command) -> None:
        """An order of root."""

    @abstractmethod
    def answered(self, asked: WorkerRequestBody, reply: RequestReply) -> None:
        """Root's answer to a request that still waited for one."""

    @abstractmethod
    def welcomed(self, *, is_first: bool) -> None:
        """A root has taken this worker on; `is_first`: for the first time."""

    @abstractmethod
    def unwanted(self) -> None:
        """Root does not know this worker, and never will."""

    @abstractmethod
    def farewell_heard(self) -> None:
        """Root has heard the last word."""
