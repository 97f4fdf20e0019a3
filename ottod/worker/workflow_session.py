"""A workflow's session: takes no input and asks no model; lets its steps be carried out, and says how it went.

An incarnation begins by giving the machine what the earlier ones noted, and goes on from there. It ends as any
session does: with a last word, or, when nobody is left to hear one, with a checkpoint for another incarnation.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from typing import Any, Literal, assert_never

from ottod.core.lifecycle import Happening
from ottod.core.resume import Restored
from ottod.core.workflow import WorkflowMachine
from ottod.core.workflow_orders import EndWorkflow
from ottod.errors import Failure, OttoError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.birth import Birth, ChildNotice
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.events import LogError, LogWarning, SessionStarted
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
from ottod.protocol.workflows import ResolvedWorkflow, sinks_of
from ottod.worker.approvals import Approvals
from ottod.worker.artifacts import Artifacts
from ottod.worker.children import Children
from ottod.worker.deliveries import LATE, STOPPED, Deliveries
from ottod.worker.ending import note_end
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.past import open_past
from ottod.worker.priority import step_back
from ottod.worker.sandbox import confine_worker, programs_for
from ottod.worker.state import AnnouncedState
from ottod.worker.summaries import Summaries
from ottod.worker.text import cut
from ottod.worker.workflow_artifacts import StepArtifacts
from ottod.worker.workflow_diff import WorkingTree
from ottod.worker.workflow_report import report
from ottod.worker.workflow_run import WorkflowRun
from ottod.worker.workflow_sinks import SinkRoom, artifact_kinds
from ottod.worker.workflow_step import Workshop

CAUSE_OF_CODE: dict[str, CauseKind] = {"auth": "auth", "budget": "budget"}
MAX_REASON_BYTES = 2000
LAST_NEWS_S = 2.0
"""For the ends of the last steps to be heard, once root has ended them."""
LATE_S = 2.0
"""For the last deliveries, once the workflow's time is up and nothing else is left to do."""
NOT_BEGUN = Failure(code="not_ready", message="the workflow has not begun yet", retryable=True)


def _not_heard(session: str) -> Failure:
    return Failure(
        code="no_input",
        message="a workflow takes no messages",
        mend=f"say it to the session of one of its steps: `ottoctl workflow status {session}` names them",
    )


def _no_turns(session: str) -> Failure:
    return Failure(
        code="no_turn",
        message="a workflow has no turns",
        mend=f"`ottoctl pause {session}` lets no step begin, `ottoctl stop {session}` ends it",
    )


class WorkflowRunner:
    """One incarnation of one workflow's session."""

    def __init__(self, birth: Birth, link: Link, workflow: ResolvedWorkflow) -> None:
        self._birth = birth
        self._link = link
        self._workflow = workflow
        self._wake = asyncio.Event()
        self._inbox = Inbox(link, on_arrival=self._wake.set)
        self._children = Children(link, self._inbox, on_end=self._wake.set, on_wait=lambda: None)
        self._approvals = Approvals(birth, link, on_wait=lambda: None)
        self._artifacts = Artifacts(link, session_dir=birth.session_dir)
        self._state = AnnouncedState(link)
        self._stop: Cause | None = None
        self._is_suspended = False
        self._is_over = False
        self._is_open = asyncio.Event()
        """The journal has been read; before that no command is obeyed but a stop."""
        self._journal: JournalWriter | None = None
        self._run: WorkflowRun | None = None
        self._deliveries: Deliveries | None = None
        self._is_late = asyncio.Event()
        """Its time is up: from then on no clock of root's counts what it still does."""
        self._step_artifacts: StepArtifacts | None = None
        self._past: list[j.WorkflowEntry] = []
        self._result = ""

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
            return await self._close(Cause(kind="failed", message=error.message + mend, code=error.code))
        finally:
            self._is_over = True
            self._is_open.set()
            if self._run is not None:
                await self._run.aclose()
            await self._children.aclose()
            if self._journal is not None:
                await self._journal.close()

    async def _live(self) -> Exiting:
        birth = self._birth
        journal, restored = await open_past(birth, self._link)
        self._journal = journal
        self._link.emit(SessionStarted(pid=os.getpid(), incarnation=birth.incarnation, generation=birth.generation))
        if restored.closed is not None:
            # It had ended, and its process was lost before anybody heard of it. A workflow is never begun anew.
            self._result = restored.text or report(self._workflow.spec, restored.workflow)
            return self._exit(restored.closed)
        run = self._run = WorkflowRun(
            WorkflowMachine(self._workflow),
            self._link,
            journal=journal,
            approvals=self._approvals,
            on_change=self._show,
            on_entry=self._happened,
        )
        journal.note(self._opened())
        self._approvals.begin(restored, journal)
        run.restore(restored.workflow)
        if birth.incarnation > 1:
            await self._children.restore(restored, birth.children, journal)
        else:
            self._children.begin(journal)
        self._is_open.set()
        if self._stop is None:
            self._state.happened("worker_ready", is_passing=True)
        await self._welcomed_or_stopped()
        try:
            step_back(birth.priority)
        except OSError as error:
            self._link.emit(LogWarning(message=f"cannot lower the priority: {error.strerror}", code="priority"))
        return await self._carry_out(run, restored)

    def _opened(self) -> j.SessionOpened:
        birth = self._birth
        return j.SessionOpened(
            session=birth.session,
            incarnation=birth.incarnation,
            agent=birth.spec.name,
            spec_digest=birth.spec.digest,
            model="",
            cwd=birth.cwd,
            at_ns=time.time_ns(),
        )

    async def _welcomed_or_stopped(self) -> None:
        """Returns when root listens, or when the session has been told to end: root may be gone for good."""
        await self._unless_stopped(self._link.welcomed())

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for it, or until the session has been told to end. Raises what it raises."""
        task = asyncio.ensure_future(work)
        while not task.done() and self._stop is None:
            self._wake.clear()
            told = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
        if task.done():
            task.result()
        task.cancel()

    async def _carry_out(self, run: WorkflowRun, restored: Restored) -> Exiting:
        if self._stop is not None:
            return await self._close(self._stop)
        self._state.happened("turn_started")
        programs = programs_for(self._birth)
        tree = WorkingTree(programs)
        room = SinkRoom(self._birth, self._workflow, programs=programs, tree=tree, artifacts=self._artifacts)
        try:
            weakness = confine_worker(self._birth)
            if weakness:
                self._link.emit(LogWarning(message=weakness, code="unconfined"))
            artifacts = StepArtifacts(self._workflow.spec, self._artifacts, summarize=self._summaries().of)
            self._step_artifacts = artifacts
            for entry in restored.workflow:
                artifacts.heard(entry)
                self._note_lateness(entry)
            self._deliveries = self._sinks(room, run, restored)
            has_branch = any(sink.to == "git_branch" for sink in sinks_of(self._workflow.spec))
            if not run.machine.has_begun:
                begun = await self._taken(artifacts, tree if has_branch else None)
                if self._stop is None:
                    run.happen(begun)
            shop = Workshop(
                task=self._birth.task,
                session=self._birth.session,
                agents={agent.name: agent for agent in self._workflow.agents},
                children=self._children,
                artifacts=artifacts,
                tree=tree if self._birth.spec.tools else None,
                has_branch=has_branch,
            )
            end = await run.serve(shop) if run.machine.has_begun else None
            shortfall = await self._deliver_rest(run, self._deliveries, end)
        finally:
            if self._deliveries is not None:
                await self._deliveries.aclose()
            room.close()
            await asyncio.to_thread(programs.close)
        return await self._close(self._cause(end, shortfall))

    async def _taken(self, artifacts: StepArtifacts, tree: WorkingTree | None) -> j.WorkflowBegun:
        """What it begins with, once it is here. `tree` is of a branch for what its steps change. Raises OttoError."""
        birth = self._birth
        inputs = await artifacts.take_inputs(session_dir=birth.session_dir, cwd=birth.cwd, hidden=birth.private_dirs)
        before = await tree.state_if_any() if tree is not None else ""
        facts = await artifacts.facts(inputs)
        return j.WorkflowBegun(at_ns=time.time_ns(), facts=facts, tree=before, artifacts=inputs)

    def _summaries(self) -> Summaries:
        name = self._workflow.spec.summarizer
        agent = next((agent for agent in self._workflow.agents if agent.name == name), None)
        return Summaries(agent, children=self._children, artifacts=self._artifacts, link=self._link)

    def _sinks(self, room: SinkRoom, run: WorkflowRun, restored: Restored) -> Deliveries | None:
        """What delivers, begun with what earlier incarnations have left; None if there is no sink."""
        spec = self._workflow.spec
        sinks = sinks_of(spec)
        if not sinks:
            return None
        assert self._journal is not None
        deliveries = Deliveries(
            sinks,
            workflow=spec.name,
            session=self._birth.session,
            kinds=artifact_kinds(spec),
            destinations=room.destinations(),
            artifacts=self._artifacts,
            link=self._link,
            journal=self._journal,
            on_broken=run.break_off,
        )
        deliveries.restore(restored.workflow, restored.deliveries)
        return deliveries

    async def _deliver_rest(
        self, run: WorkflowRun, deliveries: Deliveries | None, end: EndWorkflow | None
    ) -> Failure | None:
        """Waits for what is still to be delivered, unless the workflow is stopped; gives what must not be missing."""
        if deliveries is None or end is None:
            return None
        if self._stop is None:
            await self._unless_stopped(self._settle(deliveries))
            run.check()
        if (self._stop is not None or self._is_late.is_set()) and not self._is_suspended:
            await deliveries.abandon(STOPPED if self._stop is not None else LATE)
        return deliveries.shortfall()

    async def _settle(self, deliveries: Deliveries) -> None:
        """Returns when nothing is due any more, or soon after the workflow's time is up. Raises StorageError."""
        settled, late = asyncio.ensure_future(deliveries.settle()), asyncio.ensure_future(self._is_late.wait())
        try:
            await asyncio.wait({settled, late}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({settled}, timeout=LATE_S)
            if settled.done():
                settled.result()
        finally:
            settled.cancel()
            late.cancel()

    def _note_lateness(self, entry: j.WorkflowEntry) -> None:
        match entry:
            case j.WorkflowFailed():
                self._is_late.set()
            case j.WorkflowResumed():
                self._is_late.clear()
            case _:
                pass

    def _happened(self, entry: j.WorkflowEntry) -> None:
        self._note_lateness(entry)
        if self._step_artifacts is not None:
            self._step_artifacts.heard(entry)
        if self._deliveries is not None:
            self._deliveries.heard(entry)

    def _cause(self, end: EndWorkflow | None, shortfall: Failure | None) -> Cause:
        if end is None or end.outcome == "cancelled" or self._is_suspended:
            assert self._stop is not None
            return self._stop
        if end.outcome == "completed":
            if shortfall is not None:
                return Cause(kind="failed", message=shortfall.message, code=shortfall.code)
            return Cause(kind="completed")
        failure = end.failure or Failure(code="failed", message="the workflow failed")
        kind = CAUSE_OF_CODE.get(failure.code, "failed")
        return Cause(kind=kind, message=failure.message, code=failure.code)

    def _show(self) -> None:
        """Says what the session does, as its state."""
        run, current = self._run, self._state.current
        if run is None or current not in ("running", "waiting_approval", "paused"):
            return
        wanted = "waiting_approval" if run.is_only_asking else "running"
        if run.machine.is_paused:
            wanted = "paused"
        if current == wanted:
            return
        if current != "running":
            back: Happening = "unpause_requested" if current == "paused" else "approval_resolved"
            self._state.happened(back, is_passing=wanted != "running")
        if wanted != "running":
            self._state.happened("pause_requested" if wanted == "paused" else "approval_asked")

    async def _close(self, cause: Cause) -> Exiting:
        """Notes the session's end, or where another incarnation can go on."""
        assert self._journal is not None
        self._is_over = True
        self._result = report(self._workflow.spec, self._journal.restored().workflow, self._end)
        await note_end(
            self._journal,
            self._link,
            cause,
            turn=0,
            is_suspended=self._is_suspended,
            cannot_learn=self._birth.cannot_learn,
        )
        return self._exit(cause)

    @property
    def _end(self) -> EndWorkflow | None:
        return self._run.machine.end if self._run is not None else None

    def _exit(self, cause: Cause) -> Exiting:
        result, was_cut = cut(self._result)
        return Exiting(cause=cause, last_seq=self._link.last_seq, result=result, truncated=was_cut)

    # ------------------------------------------------------------ commands

    async def handle_command(self, body: CommandBody) -> Failure | None:
        """Obeys one command of root; None means done."""
        try:
            if isinstance(body, StopTurn) and not body.may_undo:
                self._obey_stop(body)
                return None
            await self._is_open.wait()
            match body:
                case ChildNotice():
                    if not self._is_over:
                        await self._children.heard(body)
                    return None
                case SetGrants():
                    await self._approvals.set_grants(body.grants)
                    return None
                case _:
                    return await self._obey(body)
        except StorageError as error:
            # Nothing can be noted any more, so nothing may go on.
            self._end_at_once(Cause(kind="failed", message=error.message, code=error.code))
            return error.failure()

    async def _obey(
        self,
        order: StopTurn
        | DeliverInput
        | WithdrawInput
        | ResolveApproval
        | InterruptTurn
        | SetPause
        | NoteCheckpoint
        | ForgetTurns,
    ) -> Failure | None:
        """What only a session that goes on can obey."""
        if self._stop is not None or self._is_over or self._run is None:
            return Failure(code="session_ended", message="the session is ending and hears nothing more")
        match order:
            case StopTurn():
                return await self._fail(self._run, order)
            case DeliverInput() | WithdrawInput():
                return _not_heard(self._birth.session)
            case ResolveApproval():
                return await self._approvals.answer(order)
            case SetPause():
                await self._set_pause(self._run, order)
                return None
            case InterruptTurn() | NoteCheckpoint() | ForgetTurns():
                return _no_turns(self._birth.session)
            case _:
                assert_never(order)

    async def _fail(self, run: WorkflowRun, order: StopTurn) -> Failure | None:
        """Steps that run are stopped, and what has completed is undone; what is still to be delivered is not waited
        for. Told again, it changes nothing."""
        assert self._journal is not None
        if not run.machine.has_begun:
            return NOT_BEGUN
        failure = Failure(code=order.cause, message=cut(order.reason, MAX_REASON_BYTES)[0])
        run.happen(j.WorkflowFailed(at_ns=time.time_ns(), failure=failure))
        await self._journal.put(())
        return None

    async def _set_pause(self, run: WorkflowRun, order: SetPause) -> None:
        """Steps that run go on; from now on none begins. Idempotent."""
        assert self._journal is not None
        if order.paused != run.machine.is_paused:
            reason = cut(order.reason, MAX_REASON_BYTES)[0]
            run.happen(j.WorkflowPaused(at_ns=time.time_ns(), paused=order.paused, reason=reason))
            await self._journal.put(())
            self._show()

    def _obey_stop(self, order: StopTurn) -> None:
        cause = Cause(kind=order.cause, message=order.reason)
        if order.cause == "daemon_stop" or order.for_restart:
            self._suspend(cause)
        elif self._stop is None:
            self._cancel(cause)
        else:
            # Whoever says it again has ended the steps, and news of that is on its way.
            asyncio.get_running_loop().call_later(LAST_NEWS_S, self._end_at_once, cause)

    def stop(self, reason: str, cause: Literal["cancelled", "daemon_stop", "budget"]) -> None:
        """Ends the session: with `daemon_stop` for another incarnation to go on, else for good and at once."""
        told = Cause(kind=cause, message=reason)
        if cause == "daemon_stop":
            self._suspend(told)
        else:
            if self._stop is None:
                self._cancel(told)
            self._end_at_once(told)

    def _cancel(self, cause: Cause) -> None:
        """No step begins any more. Root stops those that run, and tells of each; then the session ends."""
        if self._is_over:
            return
        self._stop = cause
        self._children.is_closing = True
        if self._state.current != "starting":
            self._state.happened("stop_requested", cause.message)
        if self._run is not None and self._is_open.is_set() and self._run.machine.has_begun:
            self._run.happen(j.WorkflowCancelled(at_ns=time.time_ns(), reason=cause.message))
        self._wake.set()

    def _end_at_once(self, cause: Cause) -> None:
        """Waits for no step; root sees to it that none is left."""
        self._stop = self._stop or cause
        self._leave()

    def _suspend(self, cause: Cause) -> None:
        if self._stop is None and not self._is_over:
            self._stop, self._is_suspended = cause, True
            self._leave()

    def _leave(self) -> None:
        self._children.is_closing = True
        self._wake.set()
        if self._run is not None:
            self._run.suspend()
