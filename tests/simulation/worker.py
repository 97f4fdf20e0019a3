"""A worker: a life made up by chance around the real protocol.

It waits for its birth, works through turns (deltas, items, tool processes, children), answers commands, and ends with
a last word; or it crashes, hangs, or is frozen anywhere on the way. When root dies it goes on; without a next root it
leaves after its orphan grace. How it speaks is in `speaker`.
"""

from __future__ import annotations

import signal
from collections import deque
from typing import TYPE_CHECKING

from ottod.protocol import events as ev
from ottod.protocol.birth import ChildNotice, births
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.worker import Command, CommandReply, DeliverInput, Exiting, StopTurn
from ottod.protocol.worker_requests import RequestReply, SpawnChild, WorkerRequest, WorkerRequestBody
from tests.simulation.processes import Process, made_exit
from tests.simulation.speaker import ORPHAN_BEAT_S, Speaker
from tests.simulation.world import NS, Happening
from tests.simulation.zygote import PrivateChannel

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

LAST_WORD_S = 30.0
CHILDREN_LOOKS = 40
"""A stopped worker looks so often whether its children have ended."""
BORN_S = (0.000_500, 0.030)


class Worker(Speaker):
    """One process that is, or is to become, one incarnation of a session."""

    def __init__(self, machine: Machine, process: Process, channel: PrivateChannel) -> None:
        super().__init__(machine, process)
        self.temper = machine.tempers.draw()
        self._channel = channel
        self._received = b""
        self._abandoned: Happening | None = None
        self._stop: Cause | None = None
        self._makes_room = False
        """It was stopped for another incarnation to go on."""
        self._inbox: deque[str] = deque()
        self._turn = 0
        self._work_left = -1
        """Pieces of the turn that are still to come; negative while there is no turn."""
        self._state: ev.SessionState = "starting"
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
        birth = births.decode(self._received[4:])
        self.process.owner = birth.session
        self.process.name = f"worker {birth.session}.{birth.incarnation}"
        self.process.ignores_term = self.temper.ignores_term
        self.process.stuck_until_ns = 0
        self.machine.oracle.born(birth, self.process)
        self.open_line(birth)
        self.emit(ev.SessionStarted(pid=self.process.pid, incarnation=birth.incarnation, generation=birth.generation))
        self._enter("idle")
        if birth.task:
            self._inbox.append(birth.task)
        for child in birth.children:
            if child.cause is None:
                self.children[child.child] = None
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

    def _exit(self, *, status: int) -> None:
        if self.process.is_alive:
            self.machine.processes.end(self.process, made_exit(status=status))

    def _ended(self) -> None:
        """The process is gone, however. Tools that it did not end stay behind, as orphans with their marker."""
        self.close_line(is_killed=self.process.exit is None or self.process.exit.status != 0)
        if self._abandoned is not None:
            self._abandoned.cancel()
        self.machine.workers.pop(self, None)

    # ------------------------------------------------------------ root's presence

    def root_died(self) -> None:
        """The kernel tells: the pidfd of the root that welcomed this worker is readable."""
        if self.birth is None or not self.process.is_alive:
            return
        self._set_beat(ORPHAN_BEAT_S)
        if self._abandoned is None:
            self._abandoned = self.world.after(self.birth.orphan_grace_s, self._give_up)

    def welcomed(self, *, is_first: bool) -> None:
        if self._abandoned is not None:
            self._abandoned.cancel()
            self._abandoned = None
        if is_first:
            self._work_soon()

    def _give_up(self) -> None:
        if not self._runs:
            self._abandoned = self.world.after(1.0, self._give_up)
            return
        self.world.note("%s is abandoned", self.process.name)
        self.unwanted()

    def unwanted(self) -> None:
        """Leaves without a last word, and takes its tools with it."""
        for tool in self._tools:
            self.machine.processes.send(tool, signal.SIGKILL)
        self.world.after(0.05, self._exit_cleanly)

    def _exit_cleanly(self) -> None:
        self._exit(status=0)

    # ------------------------------------------------------------ commands and answers

    def obey(self, command: Command) -> None:
        failure = None
        match command.body:
            case DeliverInput() as said:
                if self._stop is None and self._last_word is None:
                    self._inbox.append(said.text)
                    self.emit(ev.MessageReceived(message="m", sender=said.sender, text=said.text))
                    self._work_soon()
            case StopTurn() as stop:
                if stop.for_restart and self.birth is not None:
                    self.machine.oracle.halted(self.birth.session)
                if self._makes_room and not stop.for_restart and self._last_word is None:
                    self._stop, self._makes_room = None, False
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

    def answered(self, asked: WorkerRequestBody, reply: RequestReply) -> None:
        if reply.failure is None and isinstance(asked, SpawnChild):
            assert self.birth is not None
            self.machine.oracle.child_given(self.birth.session, reply.child, asked.task)
            if reply.child not in self._ended_children:
                self.children[reply.child] = None

    def farewell_heard(self) -> None:
        self._exit(status=0)

    def _terminated(self) -> None:
        if self.birth is None:
            self._exit(status=0)
        else:
            self._stop_for(Cause(kind="cancelled", message="SIGTERM"))

    def _stop_for(self, cause: Cause, *, for_restart: bool = False) -> None:
        if self._stop is None and self._last_word is None:
            self._stop, self._makes_room = cause, for_restart
            # One that makes room for the next incarnation is not stopping: a later root must not take it for that.
            if self._is_welcome and self._state != "starting" and not for_restart:
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

    def _enter(self, state: ev.SessionState) -> None:
        if state != self._state:
            previous, self._state = self._state, state
            self.emit(ev.SessionStateChanged(state=state, previous=previous))

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
