"""A worker: the real protocol and the real outbox around a life made up by chance.

It waits for its birth, says hello, works through turns (deltas, items, tool processes, children), answers commands,
and ends with a last word; or it crashes, hangs, or is frozen anywhere on the way. When root dies it goes on, keeps
what it says, and waits for the next root; without one it leaves after its orphan grace.
"""

from __future__ import annotations

import signal
from collections import deque
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ottod.core.outbox import Outbox
from ottod.ids import session_key
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol import events as ev
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.worker import (
    KIND_BATCH,
    KIND_MESSAGE,
    Ack,
    Birth,
    ChildNotice,
    Command,
    CommandReply,
    DeliverInput,
    ExitAck,
    Exiting,
    Heartbeat,
    RequestReply,
    SpawnChild,
    StopTurn,
    WorkerHello,
    WorkerMessage,
    WorkerRejected,
    WorkerRequest,
    WorkerRequestBody,
    WorkerWelcome,
    births,
    root_to_worker,
    worker_messages,
)
from tests.simulation.bus import Frames, Line
from tests.simulation.processes import Process, made_exit
from tests.simulation.world import NS, Happening
from tests.simulation.zygote import PrivateChannel

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

QUEUE_MESSAGES = 256
RETRY_S = 0.005
FLUSH_S = 0.001
ORPHAN_BEAT_S = 0.05
HELLO_PATIENCE_S = 0.25
LAST_WORD_S = 30.0
CHILDREN_LOOKS = 40
"""A stopped worker looks so often whether its children have ended."""
BORN_S = (0.000_500, 0.030)


class Worker:
    """One process that is, or is to become, one incarnation of a session."""

    def __init__(self, machine: Machine, process: Process, channel: PrivateChannel) -> None:
        self.machine = machine
        self.world = machine.world
        self.process = process
        self.birth: Birth | None = None
        self.temper = machine.tempers.draw()
        self._channel = channel
        self._received = b""
        self._line: Line | None = None
        self._outbox: Outbox | None = None
        self._is_welcome = False
        self._is_flush_due = False
        self._hello_said_s = -1.0
        self._beat: Happening | None = None
        self._abandoned: Happening | None = None
        self._last_word: Exiting | None = None
        self._stop: Cause | None = None
        self._inbox: deque[str] = deque()
        self._turn = 0
        self._work_left = -1
        """Pieces of the turn that are still to come; negative while there is no turn."""
        self._state: ev.SessionState = "starting"
        self._requests: dict[int, WorkerRequestBody] = {}
        self._asked = 0
        self.children: dict[str, None] = {}
        """Those that have not ended, as far as it was told."""
        self._ended_children: set[str] = set()
        self._tools: list[Process] = []
        channel.on_data = self._receive
        channel.on_close = self._channel_closed
        process.on_end = self._ended
        process.on_term = self._terminated

    # ------------------------------------------------------------ birth and death

    def _receive(self, data: bytes) -> None:
        self._received += data
        if len(self._received) >= 4 and len(self._received) == 4 + int.from_bytes(self._received[:4], "big"):
            if self.process.is_alive and not self.process.is_doomed:
                self.machine.oracle.birth_ordered(births.decode(self._received[4:]))
            self.world.after(self.world.delay(*BORN_S) + self.temper.slow_start_s, self._be_born)

    def _be_born(self) -> None:
        if not self.process.is_alive or self.birth is not None:
            return
        birth = self.birth = births.decode(self._received[4:])
        self.process.owner = birth.session
        self.process.name = f"worker {birth.session}.{birth.incarnation}"
        self.process.ignores_term = self.temper.ignores_term
        self.process.stuck_until_ns = 0
        self.machine.oracle.born(birth, self.process)
        key = session_key(birth.session)
        self._outbox = Outbox(
            session_key=key,
            incarnation=birth.incarnation,
            next_seq=birth.next_seq,
            max_unacked_bytes=birth.max_unacked_bytes,
        )
        self._line = Line(self.machine.worker_endpoint, birth.session, self._hear, limit=QUEUE_MESSAGES)
        self._say_hello()
        self.emit(ev.SessionStarted(pid=self.process.pid, incarnation=birth.incarnation, generation=birth.generation))
        self._enter("idle")
        if birth.task:
            self._inbox.append(birth.task)
        for child in birth.children:
            if child.cause is None:
                self.children[child.child] = None
        self._set_beat(birth.heartbeat_s)
        if self.temper.dies_after_s is not None:
            self.world.after(self.temper.dies_after_s, self._crash)
        if self.temper.hangs_after_s is not None:
            self.world.after(self.temper.hangs_after_s, self._freeze)

    def _channel_closed(self) -> None:
        if self.birth is None:
            self._exit(status=0)
        elif self.process.is_alive:
            self._set_beat(ORPHAN_BEAT_S)

    def _crash(self) -> None:
        if self.process.is_alive:
            self.world.count("worker crashed by itself")
            self.machine.processes.end(self.process, made_exit(signame="SIGSEGV"))

    def _freeze(self) -> None:
        """Hangs for good: only a signal helps."""
        if self.process.is_alive:
            self.world.count("worker hung")
            self.machine.freeze(self)

    def set_frozen(self, *, frozen: bool) -> None:
        self.process.is_stopped = frozen
        if self._line is not None:
            self._line.is_frozen = frozen
            if not frozen:
                self._line.thaw()

    def _exit(self, *, status: int) -> None:
        if self.process.is_alive:
            self.machine.processes.end(self.process, made_exit(status=status))

    def _ended(self) -> None:
        """The process is gone, however. Tools that it did not end stay behind, as orphans with their marker."""
        if self._line is not None:
            self._line.close(is_killed=not (self.process.exit and self.process.exit.status == 0))
        for happening in (self._beat, self._abandoned):
            if happening is not None:
                happening.cancel()
        self.machine.workers.pop(self, None)

    @property
    def _runs(self) -> bool:
        return self.process.is_alive and not self.process.is_stopped

    # ------------------------------------------------------------ root's presence

    def root_died(self) -> None:
        """The kernel tells: the pidfd of the root that welcomed this worker is readable."""
        if self.birth is None or not self.process.is_alive:
            return
        self._set_beat(ORPHAN_BEAT_S)
        if self._abandoned is None:
            self._abandoned = self.world.after(self.birth.orphan_grace_s, self._give_up)

    def _give_up(self) -> None:
        if not self._runs:
            self._abandoned = self.world.after(1.0, self._give_up)
            return
        self.world.note("%s is abandoned", self.process.name)
        self._leave_without_a_word()

    def _leave_without_a_word(self) -> None:
        for tool in self._tools:
            self.machine.processes.send(tool, signal.SIGKILL)
        self.world.after(0.05, self._exit_cleanly)

    def _exit_cleanly(self) -> None:
        self._exit(status=0)

    # ------------------------------------------------------------ out

    def emit(self, event: ev.Event) -> None:
        assert self._outbox is not None and self.birth is not None
        seq = self._outbox.emit(event, self.world.wall_ns)
        self.machine.oracle.emitted(self.birth.session, self.birth.incarnation, seq, event)
        self._flush_soon(FLUSH_S)

    def _enter(self, state: ev.SessionState) -> None:
        if state != self._state:
            previous, self._state = self._state, state
            self.emit(ev.SessionStateChanged(state=state, previous=previous))

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
        self._set_beat(period_s)

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
                self._obey(command)
            case ExitAck():
                if self._last_word is not None:
                    self.machine.oracle.farewell_heard(self.birth.session, self.birth.incarnation, self._last_word)
                    self._exit(status=0)
            case RequestReply() as reply:
                asked = self._requests.pop(reply.id, None)
                if reply.failure is None and isinstance(asked, SpawnChild):
                    self.machine.oracle.child_given(self.birth.session, reply.child, asked.task)
                    if reply.child not in self._ended_children:
                        self.children[reply.child] = None
            case WorkerWelcome() as welcome:
                self.machine.oracle.acked(self.birth.session, welcome.acked_seq)
                self._welcomed(welcome)
            case WorkerRejected() as rejected:
                self._rejected(rejected)

    def _welcomed(self, welcome: WorkerWelcome) -> None:
        assert self._outbox is not None and self.birth is not None
        is_first = self._hello_said_s >= 0 and not self._is_welcome and self._turn == 0 and self._work_left < 0
        self._outbox.rewind()
        self._outbox.ack(min(welcome.acked_seq, self._outbox.next_seq - 1))
        self._is_welcome = True
        if self._abandoned is not None:
            self._abandoned.cancel()
            self._abandoned = None
        self._set_beat(min(self.birth.heartbeat_s, 0.5))
        self._flush()
        for number, body in self._requests.items():
            self._say(WorkerRequest(id=number, body=body))
        self._say_last_word()
        if is_first:
            self._work_soon()

    def _rejected(self, rejected: WorkerRejected) -> None:
        if rejected.failure.code != "hello_required":
            self.world.note("%s is not wanted: %s", self.process.name, rejected.failure.code)
            self._leave_without_a_word()
        elif self._is_welcome or self.world.now_s - self._hello_said_s > HELLO_PATIENCE_S:
            self._is_welcome = False
            self._say_hello()

    def _obey(self, command: Command) -> None:
        failure = None
        match command.body:
            case DeliverInput() as said:
                if self._stop is None and self._last_word is None:
                    self._inbox.append(said.text)
                    self.emit(ev.MessageReceived(message="m", sender=said.sender, text=said.text))
                    self._work_soon()
            case StopTurn() as stop:
                self._stop_for(Cause(kind=stop.cause, message=stop.reason), for_restart=stop.for_restart)
            case ChildNotice() as notice:
                if notice.cause is not None:
                    self._ended_children.add(notice.child)
                    self.children.pop(notice.child, None)
                elif notice.child not in self._ended_children:
                    self.children[notice.child] = None
                self._work_soon()
        if not self.temper.is_mute:
            self._say(CommandReply(id=command.id, failure=failure))

    def _terminated(self) -> None:
        if self.birth is None:
            self._exit(status=0)
        else:
            self._stop_for(Cause(kind="cancelled", message="SIGTERM"))

    def _stop_for(self, cause: Cause, *, for_restart: bool = False) -> None:
        if self._stop is None and self._last_word is None:
            self._stop = cause
            if self._is_welcome and self._state != "starting":
                self._enter("stopping")
            if not self.temper.ignores_stop:
                patience = 0 if for_restart else CHILDREN_LOOKS
                self.world.after(
                    self.world.delay(0.001, self.temper.stop_takes_s), self._finish_after, cause, patience
                )

    def _finish_after(self, cause: Cause, looks: int) -> None:
        """Waits for the children, as a stopped session does, and leaves."""
        if self.children and looks > 0 and self.process.is_alive:
            self.world.after(0.2, self._finish_after, cause, looks - 1)
        else:
            self._finish(cause, "")

    # ------------------------------------------------------------ work

    def _work_soon(self) -> None:
        self.world.after(self.world.delay(0.001, 0.2), self._work)

    def _work(self) -> None:
        """One piece of work, and the next one later."""
        if not self.process.is_alive or self._stop is not None or self._last_word is not None or self.birth is None:
            return
        if self.process.is_stopped or (self._outbox is not None and self._outbox.is_full):
            self.world.after(0.2, self._work)
            return
        if self._work_left < 0:
            if not self._inbox:
                return
            self._inbox.popleft()
            self._turn += 1
            self._work_left = self.world.random.randrange(self.temper.turn_pieces + 1)
            self.emit(ev.TurnStarted(turn=self._turn))
            self._enter("running")
        if self._work_left == 0:
            self._end_turn()
            return
        self._work_left -= 1
        self._do_something()
        self.world.after(self.world.delay(0.001, self.temper.piece_s), self._work)

    def _do_something(self) -> None:
        world, birth = self.world, self.birth
        assert birth is not None
        dice = world.random.random()
        if dice < 0.6:
            for number in range(world.random.randrange(1, 1 + self.temper.burst)):
                self.emit(ev.ContentDelta(stream="text", text=f"{self._turn}.{self._work_left}.{number} " * 4))
        elif dice < 0.75:
            self.emit(ev.ItemCompleted(item=f"{self._turn}.{self._work_left}", kind="assistant_message", text="done"))
        elif dice < 0.9 or not self.temper.child_share or len(self.children) >= 3:
            self._start_tool()
        elif self._asked < 4 and world.chance(self.temper.child_share):
            self._asked += 1
            key = f"k{birth.incarnation}-{self._asked}"
            body = SpawnChild(agent="child", task=f"help with {key}", key=key)
            self._requests[self._asked] = body
            self._say(WorkerRequest(id=self._asked, body=body))

    def _start_tool(self) -> None:
        assert self.birth is not None
        if len(self._tools) >= 4:
            return
        tool = self.machine.processes.start(
            f"tool of {self.birth.session}", parent=self.process, marker=self.birth.session, owner=self.birth.session
        )
        tool.ignores_term = True
        if self.machine.is_faulty and self.world.chance(0.03):
            self.world.count("tool stuck in the kernel")
            tool.stuck_until_ns = self.world.now_ns + int(self.world.delay(0.1, 12.0) * NS)
        self._tools.append(tool)
        self.emit(ev.ToolStarted(call=f"c{tool.pid}", tool="shell"))
        if self.world.chance(0.8):
            self.world.after(self.world.delay(0.01, 1.0), self._end_tool, tool)

    def _end_tool(self, tool: Process) -> None:
        if tool.stuck_until_ns > self.world.now_ns:
            return
        if tool.is_alive:
            self.machine.processes.end(tool, made_exit(status=0))
            if self.process.is_alive and not self.process.is_stopped and self._last_word is None:
                self.emit(ev.ToolCompleted(call=f"c{tool.pid}", tool="shell"))

    def _end_turn(self) -> None:
        assert self.birth is not None
        if self.children or self._requests:
            self._enter("waiting_children")
            self.world.after(0.3, self._work)
            return
        self._work_left = -1
        self.emit(ev.TurnCompleted(turn=self._turn))
        self._enter("idle")
        if self.birth.mode == "oneshot" and not self._inbox:
            kind: CauseKind = "failed" if self.world.chance(self.temper.failure_share) else "completed"
            self._finish(Cause(kind=kind, message="as it was told"), f"result of turn {self._turn}")
        else:
            self._work_soon()

    def _finish(self, cause: Cause, result: str) -> None:
        """Ends its tools, as the real one does, and says the last word."""
        if not self.process.is_alive or self._last_word is not None or self._outbox is None:
            return
        if self.process.is_stopped:
            self.world.after(0.1, self._finish, cause, result)
            return
        for tool in self._tools:
            if tool.is_alive and not self.temper.leaves_tools:
                self.machine.processes.send(tool, signal.SIGKILL)
        self._last_word = Exiting(cause=cause, last_seq=self._outbox.next_seq - 1, result=result)
        self.world.after(LAST_WORD_S, self._exit_cleanly)
        self._say_last_word()

    def _say_last_word(self) -> None:
        if self._last_word is None or not self._is_welcome or not self.process.is_alive:
            return
        assert self._outbox is not None
        word = replace(self._last_word, last_seq=self._outbox.next_seq - 1)
        if self.process.is_stopped or self._outbox.has_unsent or not self._say(word):
            self.world.after(RETRY_S, self._say_last_word)
