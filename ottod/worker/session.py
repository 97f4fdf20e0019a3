"""The session itself: takes inputs, runs turns, obeys commands, and ends with a typed cause."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import Literal, assert_never

from ottod.core.lifecycle import Happening, next_state
from ottod.core.turn import EndTurn, TurnMachine
from ottod.errors import Failure, OttoError, StorageError
from ottod.isolation.beneath import BeneathFiles
from ottod.isolation.programs import ConfinedPrograms, Confinement
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.events import (
    ItemCompleted,
    LogError,
    LogWarning,
    MessageReceived,
    SessionStarted,
    SessionState,
    SessionStateChanged,
)
from ottod.protocol.worker import Birth, CommandBody, DeliverInput, Exiting, StopTurn
from ottod.tools.registry import tools_by_name
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.model_call import ModelCaller
from ottod.worker.text import cut
from ottod.worker.tool_call import ToolRunner
from ottod.worker.turns import TurnDriver

LOW_NICE = 10
CAUSE_OF_CODE: dict[str, CauseKind] = {"auth": "auth", "bad_config": "bad_spec"}
"""Failures of a turn that end a one-shot session with a cause of their own."""
MAX_INBOX = 100
"""Messages that wait for a turn."""


class SessionRunner:
    """One incarnation of one session."""

    def __init__(self, birth: Birth, link: Link) -> None:
        self._birth = birth
        self._link = link
        self._inbox: deque[tuple[str, str]] = deque()
        self._wake = asyncio.Event()
        self._stop: tuple[str, CauseKind] | None = None
        self._driver: TurnDriver | None = None
        self._models: ModelCaller | None = None
        self._journal: JournalWriter | None = None
        self._state: SessionState = "starting"
        self._announced: SessionState = "starting"
        self._messages_received = 0
        self._is_over = False
        self._last_text = ""
        self._ended: EndTurn | None = None

    # ------------------------------------------------------------ life

    async def run(self) -> Exiting:
        """The whole incarnation. Its result is its last word; only a defect raises."""
        try:
            os.chdir(self._birth.cwd)
        except OSError as error:
            return self._exit(Cause(kind="workdir_gone", message=f"{self._birth.cwd}: {error.strerror}"))
        try:
            self._open_journal()
            self._link.emit(
                SessionStarted(
                    pid=os.getpid(), incarnation=self._birth.incarnation, generation=self._birth.generation
                )
            )
            self._happened("worker_ready")
            # All of this was prepared while root looked at the hello; no effect begins before its welcome.
            await self._link.welcomed()
            self._step_back()
            cause = await self._serve()
            # From here on nothing is heard any more; there is no await between the last look and this line.
            self._is_over = True
        except StorageError as error:
            self._is_over = True
            self._link.emit(LogError(message=error.message, code=error.code))
            return self._exit(Cause(kind="failed", message=error.message, code=error.code))
        except OttoError as error:
            self._is_over = True
            return self._exit(Cause(kind="bad_spec", message=error.message, code=error.code))
        return await self._close(cause)

    def _open_journal(self) -> None:
        birth = self._birth
        self._journal = JournalWriter.open(birth)
        if self._journal.recovery:
            self._link.emit(LogWarning(message=self._journal.recovery, code="journal_repaired"))
        opened = j.SessionOpened(
            session=birth.session,
            incarnation=birth.incarnation,
            agent=birth.spec.name,
            spec_digest=birth.spec.digest,
            model=birth.models[0].model,
            cwd=birth.cwd,
            task=birth.task,
            at_ns=time.time_ns(),
        )
        self._journal.note(opened)
        if birth.task:
            self._inbox.append((birth.task, "user"))

    def _step_back(self) -> None:
        """Lowers this thread's priority, now that the session is ready: whoever routes events goes first.

        ZeroMQ's threads keep theirs, so that what has been said is not held up.
        """
        try:
            match self._birth.priority:
                case "idle":
                    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                case "low":
                    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
                    os.setpriority(os.PRIO_PROCESS, 0, LOW_NICE)
        except OSError as error:
            self._link.emit(LogWarning(message=f"cannot lower the priority: {error.strerror}", code="priority"))

    def _build_driver(self) -> TurnDriver:
        """What a turn needs. A session that is never asked anything never builds it."""
        birth, spec, journal = self._birth, self._birth.spec, self._journal
        assert journal is not None
        tools = tools_by_name(spec.tools)
        files = BeneathFiles(birth.cwd, hidden=birth.private_dirs)
        programs = ConfinedPrograms(
            session=birth.session,
            env=birth.env,
            confinement=Confinement(
                root=birth.cwd,
                tmp_dir=os.path.join(birth.session_dir, "tmp"),
                read_paths=spec.isolation.read_paths,
                write_paths=spec.isolation.write_paths,
                denied_paths=birth.private_dirs,
                landlock=spec.isolation.files,
                rlimits={"FSIZE": spec.limits.file_bytes} if spec.limits.file_bytes else {},
            ),
        )
        self._models = ModelCaller(
            spec=spec,
            target=birth.models[0],
            api_key=birth.api_keys.get(birth.models[0].provider, ""),
            schemas=tuple(t.schema() for t in tools.values()),
            link=self._link,
        )
        return TurnDriver(
            session=birth.session,
            machine=TurnMachine(max_steps=spec.limits.max_steps, max_parallel=spec.limits.max_parallel_tools),
            models=self._models,
            tools=ToolRunner(spec=spec, tools=tools, files=files, programs=programs, link=self._link),
            journal=journal,
            link=self._link,
        )

    async def _serve(self) -> Cause:
        """Turn after turn, until there is a reason to end."""
        assert self._journal is not None
        while True:
            if self._stop is not None:
                return Cause(kind=self._stop[1], message=self._stop[0])
            if not self._inbox:
                if self._birth.mode == "oneshot" and self._ended is not None:
                    return self._final_cause()
                self._wake.clear()
                await self._wake.wait()
                continue
            if self._driver is None:
                self._driver = self._build_driver()
            text, sender = self._inbox.popleft()
            await self._journal.put([j.UserSaid(text=text, sender=sender, turn=self._driver.turns + 1)])
            if self._stop is not None:
                continue
            self._link.emit(ItemCompleted(item=f"{self._driver.turns + 1}.0", kind="user_message", text=cut(text)[0]))
            self._happened("turn_started")
            self._ended = await self._driver.run(text)
            self._last_text = self._ended.text or self._last_text
            if self._stop is None:
                self._happened("turn_ended")

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
        assert self._journal is not None
        if self._models is not None:
            await self._models.aclose()
        try:
            await self._journal.put([j.SessionClosed(cause=cause)])
        except StorageError as error:
            self._link.emit(LogError(message=error.message, code=error.code))
        await self._journal.close()
        return self._exit(cause)

    def _exit(self, cause: Cause) -> Exiting:
        result, was_cut = cut(self._last_text)
        return Exiting(cause=cause, last_seq=self._link.last_seq, result=result, truncated=was_cut)

    def _happened(self, happening: Happening, reason: str = "") -> None:
        self._state = next_state(self._state, happening)
        if self._state == "idle" and self._inbox:
            # The next turn begins at once; nobody should take the moment between for a session that waits.
            return
        if self._state != self._announced:
            previous, self._announced = self._announced, self._state
            self._link.emit(SessionStateChanged(state=self._state, previous=previous, reason=reason))

    # ------------------------------------------------------------ commands

    async def handle_command(self, body: CommandBody) -> Failure | None:
        """Obeys one command of root; None means done."""
        match body:
            case DeliverInput():
                return self._deliver(body)
            case StopTurn():
                self.stop(body.reason, body.cause)
                return None
            case _:
                assert_never(body)

    def _deliver(self, message: DeliverInput) -> Failure | None:
        if self._stop is not None or self._is_over:
            return Failure(code="session_ended", message="the session is ending and hears nothing more")
        if len(self._inbox) >= MAX_INBOX:
            return Failure(code="inbox_full", message=f"{MAX_INBOX} messages wait already", retryable=True)
        self._messages_received += 1
        self._inbox.append((message.text, message.sender))
        shown, _ = cut(message.text, 2000)
        self._link.emit(MessageReceived(message=f"m{self._messages_received}", sender=message.sender, text=shown))
        self._wake.set()
        return None

    def stop(self, reason: str, cause: Literal["cancelled", "daemon_stop", "budget"]) -> None:
        """Ends the session: cancels the turn, then leaves with `cause`. The first stop counts."""
        if self._stop is not None or self._is_over:
            return
        self._stop = (reason, cause)
        if self._state != "starting":
            self._happened("stop_requested", reason)
        if self._driver is not None:
            self._driver.cancel(reason)
        self._wake.set()
