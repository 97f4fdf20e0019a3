"""Sessions that go on from the past of others: resumed when they have ended, forked at any turn; and that past, read.

A session ends once. What goes on with an ended one is another session: it has its plan, its conversation and its open
turn, counts its turns on, and says where it came from. Files are as they are found.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from ottod.core.resume import heir, workflow_heir
from ottod.core.workflow import WorkflowMachine
from ottod.errors import UNDECODABLE, RefusedError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.codec import MAX_MESSAGE_BYTES
from ottod.protocol.requests import ForkSession, ReadJournal, ResumeSession, StartSession
from ottod.protocol.results import BudgetLine, JournalPage, SessionStartedResult
from ottod.root.block_budgets import SEPARATOR
from ottod.root.books import is_used_up
from ottod.root.context import RootContext
from ottod.root.heritage import Heritage
from ottod.root.plan import SessionPlan, plan_decoder
from ottod.root.session_table import Session
from ottod.settings.workflows import BUILTIN_DIR
from ottod.storage.journal_history import History, read_history

Start = Callable[[StartSession, Heritage], Awaitable[SessionStartedResult]]
"""Starts a session, once for each key."""

PAGE_BYTES = MAX_MESSAGE_BYTES // 2
"""The most of a journal in one answer."""

_encoder = msgspec.msgpack.Encoder()


class Lineage:
    """Of this root. `start` starts a session from a heritage, `say` tells a live one something."""

    def __init__(
        self,
        context: RootContext,
        *,
        start: Start,
        unpark: Callable[[Session], Awaitable[None]],
        unpause: Callable[[Session], Awaitable[None]],
        say: Callable[[Session, str], Awaitable[None]],
    ) -> None:
        self._c = context
        self._start = start
        self._unpark = unpark
        self._unpause = unpause
        self._say = say

    async def resume(self, session: Session, body: ResumeSession) -> SessionStartedResult:
        """Goes on with a session that does nothing. Raises RefusedError if it works, or there is nothing to do."""
        if session.has_ended:
            if session.info.kind == "workflow":
                return await self._resume_workflow(session, body)
            return await self._resume_ended(session, body)
        if session.info.state not in ("parked", "paused"):
            _check_kind(session, "go on with")
        # Before it is let go on: what is refused changes nothing.
        _check_no_text(session, body)
        if body.fresh_budget:
            raise RefusedError(
                f"{session.id} has not ended: its budgets go on with it",
                code="session_live",
                mend=f"leave out --fresh-budget: ottoctl resume {session.id}",
            )
        if session.info.state == "parked":
            await self._unpark(session)
        elif session.info.state == "paused":
            await self._unpause(session)
        elif not (session.info.state == "idle" and body.task):
            raise RefusedError(
                f"{session.id} has not ended: it is {session.info.state}",
                code="session_live",
                mend=f"say something to it: ottoctl send {session.id} TEXT",
            )
        if body.task:
            await self._say(session, body.task)
        return SessionStartedResult(session=session.id, from_offset=session.info.first_offset, existing=True)

    async def _resume_ended(self, session: Session, body: ResumeSession) -> SessionStartedResult:
        plan = await self.plan(session)
        snapshot = await self._c.in_thread(self._inherit_all, session.id, body.task)
        mode = body.mode or session.info.mode
        if not (body.task or snapshot.is_open or snapshot.inbox or mode == "conversation"):
            cause = session.info.cause
            raise RefusedError(
                f"{session.id} left no turn open: it ended as {cause.kind if cause is not None else 'ended'}",
                code="nothing_to_resume",
                mend=f'say what to do next: ottoctl resume {session.id} "…"',
            )
        budgets = () if body.fresh_budget else session.info.budgets
        if plan.spec.on_budget == "stop":
            _check_left(session, budgets)
        request = self._request(session, body.task, mode, body.key, title="")
        heritage = Heritage(origin=session.id, plan=plan, snapshot=snapshot, budgets=budgets)
        return await self._start(request, heritage)

    async def _resume_workflow(self, session: Session, body: ResumeSession) -> SessionStartedResult:
        """What has not completed begins anew, in another session of the same tree; what has is not run again."""
        cause = session.info.cause
        if cause is not None and not _has_more_to_do(cause):
            raise RefusedError(
                f"{session.id} left nothing to be done: {cause.message or 'it completed'}",
                code="nothing_to_resume",
                mend=_anew(session),
            )
        _check_no_text(session, body)
        plan = await self.plan(session)
        try:
            snapshot = await self._c.in_thread(self._inherit_workflow, session.id)
        except RefusedError as error:
            if error.code == "nothing_to_resume":
                error.mend = _anew(session)
            raise
        budgets = () if body.fresh_budget else session.info.budgets
        await self._c.in_thread(_check_blocks_left, session, plan, snapshot, budgets)
        request = self._request(session, session.info.task, session.info.mode, body.key, title="")
        heritage = Heritage(
            origin=session.id, plan=plan, snapshot=snapshot, budgets=budgets, tree=session.info.tree or session.id
        )
        return await self._start(request, heritage)

    async def fork(self, session: Session, body: ForkSession) -> SessionStartedResult:
        """A new session beside the old one, whether that lives or not. Raises RefusedError, StorageError."""
        _check_kind(session, "fork")
        plan = await self.plan(session)
        snapshot = await self._c.in_thread(self._inherit_at, session.id, body.turn, body.checkpoint)
        mode = body.mode or (session.info.mode if body.task else "conversation")
        request = self._request(session, body.task, mode, body.key, title=body.title)
        return await self._start(request, Heritage(origin=session.id, plan=plan, snapshot=snapshot))

    @staticmethod
    def _request(session: Session, task: str, mode: str, key: str, *, title: str) -> StartSession:
        info = session.info
        return StartSession(
            agent=info.agent,
            task=task,
            cwd=info.cwd,
            title=title or info.title,
            mode="conversation" if mode == "conversation" else "oneshot",
            run_mode="headless" if info.run_mode == "headless" else "interactive",
            key=key,
        )

    async def plan(self, session: Session) -> SessionPlan:
        """What a session was made from. Raises RefusedError if that is not known any more."""
        if session.plan is not None:
            return session.plan
        packed = await self._c.database.plan(session.id)
        try:
            return plan_decoder.decode(packed)
        except UNDECODABLE as error:
            raise RefusedError(
                f"what {session.id} was made from is not known any more",
                code="no_plan",
                mend="start a new session",
            ) from error

    # ------------------------------------------------------------ on threads

    def _directory(self, session_id: str) -> Path:
        return self._c.sessions_dir / session_id

    def _inherit_all(self, session_id: str, task: str) -> j.Snapshot:
        """All of a session's past, with the turn that is open unless there is something else to do."""
        entries = read_history(self._directory(session_id)).entries
        return heir(entries, origin=session_id, goes_on=not task)

    def _inherit_workflow(self, session_id: str) -> j.Snapshot:
        entries = read_history(self._directory(session_id)).entries
        return workflow_heir(entries, origin=session_id, at_ns=time.time_ns())

    def _inherit_at(self, session_id: str, turn: int | None, checkpoint: str) -> j.Snapshot:
        entries = read_history(self._directory(session_id)).entries
        return heir(entries, origin=session_id, turn=turn, checkpoint=checkpoint, at_rest=True)

    # ------------------------------------------------------------ reading

    async def journal(self, session: Session, body: ReadJournal) -> JournalPage:
        """A page of its journal; empty before its first worker writes. Raises StorageError if it cannot be read."""
        is_unborn = session.info.state == "starting" and session.info.incarnation == 1
        return await self._c.in_thread(self._page, session.id, body, is_unborn)

    def _page(self, session_id: str, body: ReadJournal, is_unborn: bool) -> JournalPage:
        try:
            history = read_history(self._directory(session_id))
        except StorageError as error:
            if not is_unborn or error.code != "no_journal":
                raise
            history = History(entries=())
        room = min(body.max_bytes, PAGE_BYTES)
        packed: list[bytes] = []
        number, at = body.first, body.at
        while room > 0 and number < len(history.entries):
            whole = _encoder.encode(history.entries[number])
            piece = whole[at : at + room]
            packed.append(piece)
            room -= len(piece)
            at += len(piece)
            if at >= len(whole):
                number, at = number + 1, 0
        return JournalPage(
            session=session_id,
            first=body.first,
            at=body.at,
            entries=tuple(packed),
            next=number if number < len(history.entries) else None,
            next_at=at,
            incomplete=history.incomplete,
        )


def _check_left(session: Session, budgets: tuple[BudgetLine, ...]) -> None:
    """Raises RefusedError if it ended at its own budget: another session could only end there as well."""
    cause = session.info.cause
    if cause is None or cause.kind != "budget":
        return
    # A workflow says of its own by name; else it is a step's own.
    own = session.id if session.info.kind != "workflow" else ""
    if used := [line for line in budgets if is_used_up(line, own, cause.message)]:
        named = " and ".join("usd" if line.budget == "usd_micros" else line.budget for line in used)
        raise RefusedError(
            f"{used[0].session} has used up its budget of {named}",
            code="budget",
            mend=f"let it have as much again: ottoctl resume {session.id} --fresh-budget …",
        )


def _check_blocks_left(
    session: Session, plan: SessionPlan, snapshot: j.Snapshot, budgets: tuple[BudgetLine, ...]
) -> None:
    """The same for a workflow. The budget of a block that has ended for good is nobody's any more."""
    if plan.workflow is None:
        return
    machine = WorkflowMachine(plan.workflow)
    for entry in snapshot.workflow:
        machine.step(entry)
    mine = {f"{session.id}{SEPARATOR}{path}".rstrip(SEPARATOR) for path in machine.open_blocks}
    used = [line for line in budgets if line.session in mine]
    # One at a time, so that it is said whose budget it is.
    for key in dict.fromkeys(line.session for line in used):
        _check_left(session, tuple(line for line in used if line.session == key))


def run_again(session: Session) -> str:
    """The command that starts a workflow once more, from its beginning; empty for one that is in no known file.

    By its name where that is found from the session's directory, else by its file.
    """
    source = Path(session.info.agent_source)
    if not source.is_absolute():
        return ""
    is_projects = source.parent.parts[-2:] == (".otto", "workflows")
    is_found = is_projects and Path(session.info.cwd).is_relative_to(source.parents[2])
    is_name = is_found or source.parent == BUILTIN_DIR
    return f'ottoctl workflow run {session.info.agent if is_name else shlex.quote(str(source))} "…"'


def _anew(session: Session) -> str:
    """What to do with a workflow that has nothing left to be done."""
    command = run_again(session)
    return f"run it again: {command}" if command else "run it again with the spec that it was made from"


def how_to_go_on(session: Session) -> str:
    """What to do instead with a session that has ended."""
    info = session.info
    if info.kind != "workflow":
        whole, part = f"ottoctl resume {session.id}", f"ottoctl fork {session.id}"
        return f"{whole} goes on with all it knows, {part} with what it knew earlier"
    if info.cause is None or not _has_more_to_do(info.cause):
        return _anew(session)
    command = run_again(session)
    return f"ottoctl resume {session.id} goes on with what is left" + (f", {command} begins anew" if command else "")


def _has_more_to_do(cause: Cause) -> bool:
    """Whether a workflow that ended so has something left that another session could do."""
    return cause.kind != "completed" and cause.code != "exhausted"


def _check_no_text(session: Session, body: ResumeSession) -> None:
    """Raises RefusedError for a workflow that somebody wants to say something to."""
    if session.info.kind == "workflow" and body.task:
        raise RefusedError(
            f"{session.id} is a workflow, and takes no messages",
            code="unsupported_kind",
            mend=f"leave out the text: ottoctl resume {session.id}",
        )


def _check_kind(session: Session, verb: str) -> None:
    """Raises RefusedError for a workflow: there is no conversation to `verb`."""
    if session.info.kind != "workflow":
        return
    command = run_again(session)
    look = f"see what it does: ottoctl workflow status {session.id}" + (
        f"; another one: {command}" if command else ""
    )
    raise RefusedError(
        f"{session.id} is a workflow, {session.info.agent}, and has no conversation to {verb}",
        code="unsupported_kind",
        mend=how_to_go_on(session) if session.has_ended else look,
    )
