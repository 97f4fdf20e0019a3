"""The session itself: takes inputs, runs turns, obeys commands, and ends with a typed cause.

An incarnation begins by reading what the earlier ones noted, and goes on from there: with the turn that was open,
with the messages that wait, or, if the session had ended and its process was lost before that was heard, with the
same last word. A session whose last word was heard and that root starts again begins its task anew, as another turn
of the same conversation.

A session whose turn is done waits for its children before it ends. When its group restarts, or nobody is left to hear
it (`daemon_stop`), it does not end at all: it notes a checkpoint, leaves its turn open, and its process goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Literal, assert_never

from ottod.core.answer import read_answer
from ottod.core.lifecycle import Happening
from ottod.core.resume import OpenTurn, Restored
from ottod.core.turn import EndTurn
from ottod.errors import Failure, OttoError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.birth import Birth, ChildNotice
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.events import (
    ItemCompleted,
    LogError,
    LogWarning,
    SessionStarted,
    SessionState,
)
from ottod.protocol.worker import (
    CommandBody,
    DeliverInput,
    Exiting,
    ForgetTurns,
    InterruptTurn,
    NoteCheckpoint,
    ResolveApproval,
    SetGrants,
    SetPause,
    StopTurn,
    WithdrawInput,
)
from ottod.worker.approvals import Approvals
from ottod.worker.artifacts import Artifacts
from ottod.worker.children import Children
from ottod.worker.ending import note_end
from ottod.worker.equipment import Equipment
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.past import open_past
from ottod.worker.permits import Permits
from ottod.worker.priority import step_back
from ottod.worker.state import AnnouncedState
from ottod.worker.steering import Steering
from ottod.worker.text import cut
from ottod.worker.turns import TurnDriver

CAUSE_OF_CODE: dict[str, CauseKind] = {"auth": "auth", "bad_config": "bad_spec", "budget": "budget"}
"""Failures of a turn that end a one-shot session with a cause of their own. A used budget ends every session."""

WHOLE_NAME = "whole-answer"
"""The artifact of an answer that is too long for a last word."""
WHOLE_S = 60.0
"""For it to be kept."""


class SessionRunner:
    """One incarnation of one session."""

    def __init__(self, birth: Birth, link: Link) -> None:
        self._birth = birth
        self._link = link
        self._wake = asyncio.Event()
        self._inbox = Inbox(link, on_arrival=self._wake.set)
        self._children = Children(
            link,
            self._inbox,
            on_end=self._wake.set,
            on_wait=self._calls_changed,
            session=birth.session,
            agent=birth.spec.name,
        )
        self._approvals = Approvals(birth, link, on_wait=self._calls_changed)
        self._permits = Permits(link, session=birth.session, incarnation=birth.incarnation)
        self._state = AnnouncedState(link)
        self._steering = Steering(
            link, self._inbox, self._state, session=birth.session, equip=self._equip, on_change=self._work_changed
        )
        self._stop: Cause | None = None
        self._whole = ""
        self._is_suspended = False
        """The incarnation ends, the session does not: another one is to go on with the turn."""
        self._lingers = False
        """It was told to end, and lets its children go first. Whoever tells it again will not wait for them."""
        self._equipment: Equipment | None = None
        self._building: asyncio.Future[Equipment] | None = None
        self._journal: JournalWriter | None = None
        self._is_open = asyncio.Event()
        """The journal has been read; before that no command is obeyed but a stop."""
        self._restored = Restored()
        self._open_turn: OpenTurn | None = None
        self._is_over = False
        self._last_text = ""
        self._text_answers = False
        self._ended: EndTurn | None = None

    # ------------------------------------------------------------ life

    async def run(self) -> Exiting:
        """The whole incarnation. Its result is its last word; only a defect raises."""
        try:
            os.chdir(self._birth.cwd)
        except OSError as error:
            return self._exit(Cause(kind="workdir_gone", message=f"{self._birth.cwd}: {error.strerror}"))
        try:
            return await self._live()
        except StorageError as error:
            self._link.emit(LogError(message=error.message, code=error.code))
            mend = f" ({error.mend})" if error.mend else ""
            return self._exit(Cause(kind="failed", message=error.message + mend, code=error.code))
        except OttoError as error:
            mend = f" ({error.mend})" if error.mend else ""
            return self._exit(Cause(kind="bad_spec", message=error.message + mend, code=error.code))
        finally:
            self._is_over = True
            self._is_open.set()
            await self._children.aclose()
            if self._equipment is not None:
                await self._equipment.aclose()
            if self._journal is not None:
                await self._journal.close()

    async def _live(self) -> Exiting:
        birth = self._birth
        journal, self._restored = await open_past(birth, self._link)
        self._journal = journal
        self._permits.settle_past(birth.open_permits, self._restored.attempts)
        self._link.emit(SessionStarted(pid=os.getpid(), incarnation=birth.incarnation, generation=birth.generation))
        closed = self._restored.closed
        if closed is not None and not self._begins_anew():
            # It had ended, and its process was lost before anybody heard of it.
            await self._permits.settled()
            await self._keep_whole(closed)
            return self._exit(closed)
        await self._take_over(journal)
        if self._stop is None:
            self._state.happened("worker_ready", is_passing=self._is_busy or self._steering.is_paused)
            self._steering.announce()
        # All of this was prepared while root looked at the hello; no effect begins before its welcome.
        await self._welcomed_or_stopped()
        try:
            step_back(birth.priority)
        except OSError as error:
            self._link.emit(LogWarning(message=f"cannot lower the priority: {error.strerror}", code="priority"))
        cause = await self._serve()
        # From here on nothing is heard any more; there is no await between the last look and this line.
        self._is_over = True
        return await self._close(cause)

    def _begins_anew(self) -> bool:
        """Whether the session has ended, root has heard so, and starts it again."""
        closed = self._restored.closed
        return closed is not None and self._birth.resumes_after == closed.kind

    async def _take_over(self, journal: JournalWriter) -> None:
        """Makes the past this incarnation's own, and notes that it has begun. Raises StorageError."""
        birth, restored = self._birth, self._restored
        # One that went on with another one's open turn has no task of its own: what begins anew is that turn.
        task = birth.task if not restored.has_begun else ""
        if restored.closed is not None:
            task = birth.task or restored.said
        opened = j.SessionOpened(
            session=birth.session,
            incarnation=birth.incarnation,
            agent=birth.spec.name,
            spec_digest=birth.spec.digest,
            model=birth.models[0].model,
            cwd=birth.cwd,
            task=task,
            at_ns=time.time_ns(),
        )
        journal.note(opened)
        self._approvals.begin(restored, journal)
        self._steering.begin(restored, journal)
        self._inbox.restore(restored)
        if task:
            self._inbox.add_task(task)
        self._open_turn = restored.open
        self._last_text, self._text_answers = restored.text, restored.text_answers
        self._ended = None if task else restored.ended
        if birth.incarnation > 1:
            await self._children.restore(restored, birth.children, journal)
        else:
            self._children.begin(journal)
        self._is_open.set()

    @property
    def _is_busy(self) -> bool:
        """Whether a turn follows at once."""
        return bool(self._inbox) or self._open_turn is not None

    async def _welcomed_or_stopped(self) -> None:
        """Returns when root listens, or when the session has been told to end: root may be gone for good."""
        welcomed = asyncio.ensure_future(self._link.welcomed())
        await self._done_or_stopped(welcomed)
        welcomed.cancel()

    async def _done_or_stopped(self, work: asyncio.Future[Any]) -> None:
        """Returns when the work is done, or the session has been told to end."""
        while not work.done() and self._stop is None:
            self._wake.clear()
            stopped = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()

    async def _equip(self) -> TurnDriver | None:
        """The driver, built when it is first needed; None if the session is to end before it is there."""
        if self._equipment is None:
            assert self._journal is not None
            if self._building is None:
                build = Equipment.build(
                    self._birth,
                    self._link,
                    journal=self._journal,
                    children=self._children,
                    approvals=self._approvals,
                    permits=self._permits,
                    inbox=self._inbox,
                    restored=self._restored,
                    checkpoint=self._steering.note_checkpoint,
                    on_step=self._calls_changed,
                    on_slice=self._slice_over,
                )
                self._building = asyncio.ensure_future(build)
            await self._done_or_stopped(self._building)
            if not self._building.done():
                self._building.cancel()
                await asyncio.wait({self._building})
            if self._building.cancelled():
                return None
            self._equipped(self._building.result())
        return self._equipment.driver if self._equipment is not None else None

    def _equipped(self, equipment: Equipment) -> None:
        if self._equipment is None:
            self._equipment, self._restored = equipment, Restored()
            equipment.watch_launcher(self._launcher_lost)
            equipment.watch_threads(self._threads_stuck)
            self._steering.equipped(equipment.driver)

    def _slice_over(self) -> None:
        """Another incarnation goes on at once, with a fresh context."""
        self._end(Cause(kind="time_slice", message="its time slice is over"), is_for_good=False)

    def _launcher_lost(self) -> None:
        """This process is confined and cannot make another launcher; another incarnation can, and goes on."""
        message = "the launcher of its programs died"
        self._end(Cause(kind="crashed", message=message, code="launcher_lost"), is_for_good=False)

    def _threads_stuck(self, count: int) -> None:
        """No call finds an end in a place whose files do not answer: that is a crash, and not work."""
        message = f"{count} tool calls wait for files that do not answer"
        self._end(Cause(kind="crashed", message=message, code="tool_stuck"), is_for_good=False)

    async def _serve(self) -> Cause:
        """Turn after turn, until there is a reason to end."""
        while True:
            if self._stop is not None:
                if not (self._lingers and self._children.has_live):
                    return self._stop
                self._wake.clear()
                await self._wake.wait()
            elif self._has_no_budget:
                return self._final_cause()
            elif self._is_busy and (not self._steering.is_paused or self._open_turn is not None):
                # An open turn is taken up also while paused: it holds back what it would begin.
                await self._take_turn()
            elif self._birth.mode == "oneshot" and self._is_done and not self._awaits_children:
                return self._final_cause()
            else:
                if self._awaits_children:
                    self._children.dismiss()
                    if self._state.current == "idle":
                        self._state.happened("children_awaited")
                self._wake.clear()
                await self._wake.wait()

    @property
    def _has_no_budget(self) -> bool:
        """Whether the last turn ended because a budget is used up: there will be no other."""
        failure = self._ended.failure if self._ended is not None else None
        return failure is not None and failure.code == "budget"

    @property
    def _is_done(self) -> bool:
        """Whether the task has been worked at to an end. One that was interrupted waits for what it is told."""
        return self._ended is not None and not self._ended.is_interrupt

    @property
    def _awaits_children(self) -> bool:
        """Whether the work is done but for that of the children. One that failed waits for nobody."""
        is_done = self._ended is not None and self._ended.outcome == "completed"
        return self._birth.mode == "oneshot" and is_done and self._children.has_live

    async def _take_turn(self) -> None:
        """The turn that is open, or the next one."""
        assert self._journal is not None
        if self._equipment is None:
            # Much may have been said meanwhile, so whoever calls looks again at what is to be done.
            await self._equip()
            return
        driver = self._equipment.driver
        open_turn, self._open_turn = self._open_turn, None
        if open_turn is None:
            message = self._inbox.take()
            turn = driver.turns + 1
            # Nothing depends on it before the model call, whose own entry is synced, and this one with it.
            said = j.UserSaid(text=message.text, sender=message.sender, turn=turn, number=message.number)
            self._journal.note(said)
            text = message.text
        else:
            turn, text = open_turn.event.turn, open_turn.said
        if open_turn is None or not open_turn.is_known:
            self._link.emit(ItemCompleted(item=f"{turn}.0", kind="user_message", text=cut(text)[0]))
        self._state.happened("turn_started")
        ended = await (driver.run(text) if open_turn is None else driver.resume(open_turn))
        if ended is None:
            return
        self._ended = ended
        answers = self._inbox.questions.is_answering
        self._inbox.questions.turn_ended(ended)
        # What a session says to its own task counts for more than what it answers others.
        if ended.text and (not answers or self._text_answers or not self._last_text):
            self._last_text, self._text_answers = ended.text, answers
        if self._stop is None:
            self._state.happened("turn_ended", is_passing=self._is_busy or self._awaits_children)

    def _work_changed(self) -> None:
        """What was held back may begin."""
        self._wake.set()
        if self._steering.driver is not None and self._steering.driver.is_driving:
            self._calls_changed()

    def _calls_changed(self) -> None:
        """Shows a turn that does nothing but wait, for leave or for children, as what it is."""
        asking, waiting = self._approvals.waiting_calls, self._children.waiting_calls
        wanted: SessionState = "running"
        running = self._equipment.driver.running_calls if self._equipment is not None else 0
        if 0 < running == asking + waiting:
            wanted = "waiting_approval" if asking else "waiting_children"
        current = self._state.current
        if current == wanted or current not in ("running", "waiting_approval", "waiting_children"):
            return
        if current != "running":
            done: Happening = "children_done" if current == "waiting_children" else "approval_resolved"
            self._state.happened(done, is_passing=wanted != "running")
        if wanted != "running":
            self._state.happened("approval_asked" if wanted == "waiting_approval" else "children_awaited")

    def _final_cause(self) -> Cause:
        ended = self._ended
        assert ended is not None
        if ended.outcome == "completed":
            return Cause(kind="completed")
        failure = ended.failure
        if failure is None:
            return Cause(kind="cancelled", message=ended.reason)
        kind = CAUSE_OF_CODE.get(failure.code, "failed")
        message = failure.message + (f" ({failure.mend})" if failure.mend else "")
        return Cause(kind=kind, message=message, code=failure.code)

    async def _close(self, cause: Cause) -> Exiting:
        """Notes the session's end, or, when nobody is left to hear of one, where another incarnation can go on."""
        assert self._journal is not None
        if self._equipment is not None:
            await self._equipment.aclose()
        await self._inbox.questions.aclose()
        if not self._is_suspended:
            # Root may have no other chance to hear what the last calls cost.
            await self._permits.settled()
        turn = self._equipment.driver.turns if self._equipment is not None else self._restored.turn
        await self._keep_whole(cause)
        await note_end(
            self._journal,
            self._link,
            cause,
            turn=turn,
            is_suspended=self._is_suspended,
            cannot_learn=self._birth.cannot_learn,
        )
        return self._exit(cause)

    async def _keep_whole(self, cause: Cause) -> None:
        """The answer of a workflow's step that is too long for a last word is an artifact, and the workflow's to use.
        That of whom a step hands over to is the step's.

        The same one, however often the session's end is gone through.
        """
        text = self._answer(cause)[0]
        if not self._birth.is_step or cause.kind != "completed" or not cut(text)[1]:
            return
        artifacts = Artifacts(self._link, session_dir=self._birth.session_dir)
        try:
            async with asyncio.timeout(WHOLE_S):
                info = await artifacts.write(text.encode("utf-8", "replace"), name=WHOLE_NAME, key=WHOLE_NAME)
        except (OttoError, TimeoutError) as error:
            why = str(error) or "the daemon does not answer"
            self._link.emit(LogWarning(message=f"the answer is cut, and not kept whole: {why}", code="cut"))
        else:
            self._whole = info.artifact

    def _answer(self, cause: Cause) -> tuple[str, bool]:
        """The session's result, and whether it is the JSON that was asked for."""
        text = self._last_text or self._restored.text
        if not self._birth.spec.output_schema or cause.kind != "completed":
            return text, False
        answer = read_answer(text, self._birth.spec.output_schema)
        return answer.json or text, bool(answer.json)

    def _exit(self, cause: Cause) -> Exiting:
        text, is_json = self._answer(cause)
        result, was_cut = cut(text)
        return Exiting(
            cause=cause,
            last_seq=self._link.last_seq,
            result=result,
            truncated=was_cut,
            continues=self._is_suspended and cause.kind == "time_slice",
            is_json=is_json,
            whole=self._whole,
        )

    # ------------------------------------------------------------ commands

    async def handle_command(self, body: CommandBody) -> Failure | None:
        """Obeys one command of root; None means done."""
        try:
            match body:
                case StopTurn():
                    self._obey_stop(body)
                    return None
                case ChildNotice():
                    await self._is_open.wait()
                    if not self._is_over:
                        await self._children.heard(body)
                    return None
                case SetGrants():
                    await self._is_open.wait()
                    await self._approvals.set_grants(body.grants)
                    return None
                case _:
                    return await self._obey(body)
        except StorageError as error:
            # Nothing can be noted any more, so nothing may go on.
            self._end(Cause(kind="failed", message=error.message, code=error.code))
            return error.failure()

    async def _obey(
        self,
        order: DeliverInput
        | ResolveApproval
        | InterruptTurn
        | SetPause
        | NoteCheckpoint
        | ForgetTurns
        | WithdrawInput,
    ) -> Failure | None:
        """What only a session that goes on can obey."""
        await self._is_open.wait()
        if self._stop is not None or self._is_over:
            return Failure(code="session_ended", message="the session is ending and hears nothing more")
        match order:
            case DeliverInput():
                return await self._steering.deliver(order)
            case ResolveApproval():
                return await self._approvals.answer(order)
            case InterruptTurn():
                return await self._steering.interrupt(order)
            case SetPause():
                return await self._steering.set_pause(order)
            case NoteCheckpoint():
                return await self._steering.checkpoint(order)
            case ForgetTurns():
                return await self._forget(order)
            case WithdrawInput():
                assert self._journal is not None
                await self._inbox.withdraw(order.key, self._journal)
                return None
            case _:
                assert_never(order)

    async def _forget(self, order: ForgetTurns) -> Failure | None:
        if self._open_turn is not None:
            return Failure(code="turn_open", message="a turn is open", mend="wait for its end")
        failure = await self._steering.forget(order)
        if failure is None and self._equipment is not None:
            # What was said in them is not what the session came to.
            self._ended, self._last_text = None, self._equipment.driver.last_text
        return failure

    def _obey_stop(self, order: StopTurn) -> None:
        is_for_good = order.cause != "daemon_stop" and not order.for_restart
        makes_room = self._stop is not None and self._stop.kind != "daemon_stop" and self._is_suspended
        if is_for_good and makes_room and not self._is_over:
            # It was to make room for another incarnation. A stop wins: there will be none.
            self._stop, self._is_suspended = None, False
        is_first = self._stop is None
        self._end(Cause(kind=order.cause, message=order.reason), is_for_good=is_for_good)
        # Root, which gave the order, stops the children too, and tells of each.
        self._lingers = is_first and not order.for_restart

    def stop(self, reason: str, cause: Literal["cancelled", "daemon_stop", "budget"]) -> None:
        """Ends the session: cancels the turn, leaves with `cause`. The first stop counts, a second one hurries it.

        With `daemon_stop` the turn is not cancelled but left open, for an incarnation that another daemon may start.
        """
        self._end(Cause(kind=cause, message=reason), is_for_good=cause != "daemon_stop")

    def _end(self, cause: Cause, *, is_for_good: bool = True) -> None:
        self._lingers = False
        self._wake.set()
        if self._stop is not None or self._is_over:
            return
        self._stop = cause
        self._is_suspended = not is_for_good
        self._children.is_closing = True
        if is_for_good and self._state.current != "starting":
            # One that is only suspended is not stopping: a later root must not take it for stopped.
            self._state.happened("stop_requested", cause.message)
        if self._equipment is not None:
            if self._is_suspended:
                self._equipment.driver.suspend()
            else:
                self._equipment.driver.cancel(cause.message)
