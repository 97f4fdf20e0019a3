"""A session as the asynchronous library's user holds it: an id and what can be asked of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from ottoctl.connection import Connection
from ottoctl.feed import DEFAULT_CREDIT_BYTES, Batch, Feed, SessionEvent, ends_session, gap_event
from ottoctl.policy import INTERRUPT_ANSWER_S, STOP_ANSWER_S
from ottoctl.results import (
    Mode,
    RunResult,
    check_text,
    expect,
    fork_request,
    journal_entries,
    resume_request,
    run_result,
    update_notes_request,
)
from ottod.protocol.events import Gap
from ottod.protocol.journal import JournalEntry
from ottod.protocol.requests import (
    CheckpointSession,
    GetSession,
    InterruptSession,
    KillSession,
    PauseSession,
    ReadJournal,
    RemoveSession,
    RollBackSession,
    SendInput,
    StopSession,
    UnparkSession,
    UnpauseSession,
    WaitSession,
)
from ottod.protocol.results import JournalPage, Result, SessionInfo, SessionStartedResult, StopResult


class Session:
    """One session. Obtained from `Otto.start` or `Otto.session`; it holds no resources of its own."""

    def __init__(self, connection: Connection, session: str, *, from_offset: int = 0) -> None:
        self._connection = connection
        self.id = session
        self.from_offset = from_offset
        """Where the session's first event is, as far as is known."""

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    async def info(self) -> SessionInfo:
        """The session as the daemon sees it now."""
        return expect(SessionInfo, await self._connection.call(GetSession(session=self.id)))

    async def send(self, text: str, *, steer: bool = False) -> None:
        """Says something to the session, which hears it at the start of its next turn.

        With `steer` it joins the turn that runs, before the model is called again.
        """
        body = SendInput(session=self.id, text=check_text("the message", text), steer=steer)
        await self._connection.call(body)

    async def interrupt(self, *, reason: str = "") -> None:
        """Cancels the turn that runs; the session stays, with what its tools had finished, and waits for input.

        Raises RefusedError (`no_turn`) if none runs.
        """
        body = InterruptSession(session=self.id, reason=check_text("the reason", reason))
        await self._connection.call(body, timeout_s=INTERRUPT_ANSWER_S)

    async def pause(self, *, reason: str = "", below: bool = False) -> None:
        """Lets no model call and no tool call begin until `unpause`; with `below` in the sessions below it neither.

        It stays paused when its process or the daemon is replaced.
        """
        body = PauseSession(session=self.id, reason=check_text("the reason", reason), below=below)
        await self._connection.call(body)

    async def unpause(self, *, below: bool = False) -> None:
        """Lets a paused session go on."""
        await self._connection.call(UnpauseSession(session=self.id, below=below))

    async def checkpoint(self, name: str = "") -> None:
        """Notes a point that `fork` can begin at."""
        await self._connection.call(CheckpointSession(session=self.id, name=check_text("the name", name)))

    async def rollback(self, turns: int = 1) -> None:
        """Lets a session that waits for input forget its last turns. What they did to files stays done."""
        await self._connection.call(RollBackSession(session=self.id, turns=turns))

    async def resume(self, task: str = "", *, mode: Mode | None = None, fresh_budget: bool = False) -> Session:
        """Goes on with a session that has ended, is parked or paused; without a task, with its open turn.

        What goes on with an ended session is a new one, with its conversation and what is left of its budgets;
        `fresh_budget` begins them anew.
        """
        body = resume_request(await self.info(), task, mode=mode, fresh_budget=fresh_budget)
        return self._started(await self._connection.call(body))

    async def fork(
        self,
        task: str = "",
        *,
        turn: int | None = None,
        checkpoint: str = "",
        mode: Mode | None = None,
        title: str = "",
    ) -> Session:
        """A new session with this one's conversation as it was at the end of a turn, or at a checkpoint."""
        body = fork_request(self.id, task, turn=turn, checkpoint=checkpoint, mode=mode, title=title)
        return self._started(await self._connection.call(body))

    async def update_notes(self, *, model: str = "") -> Session:
        """Starts a session that brings the project's OTTO.md up to date with what this one's run has taught.

        This one must have ended. The change waits for permission: see `Otto.approvals`. `model` answers in place of
        the agent's own.
        """
        return self._started(await self._connection.call(update_notes_request(self.id, model=model)))

    def _started(self, answer: Result) -> Session:
        started = expect(SessionStartedResult, answer)
        return Session(self._connection, started.session, from_offset=started.from_offset)

    async def journal(self) -> list[JournalEntry]:
        """The session's whole journal, oldest entry first: what `ottoctl export` prints."""
        pages = [expect(JournalPage, await self._connection.call(ReadJournal(session=self.id)))]
        while pages[-1].next is not None:
            body = ReadJournal(session=self.id, first=pages[-1].next, at=pages[-1].next_at)
            pages.append(expect(JournalPage, await self._connection.call(body)))
        return journal_entries(pages)

    async def wait(self, *, idle: bool = False, timeout_s: float | None = None) -> RunResult:
        """Waits until the session has ended, or with `idle` until it waits for input.

        Raises UnreachableError after `timeout_s` (None: however long it takes).
        """
        body = WaitSession(session=self.id, idle=idle)
        answer = await self._connection.call(body, timeout_s=timeout_s, forever=timeout_s is None)
        return run_result(expect(SessionInfo, answer))

    async def result(self) -> str:
        """Waits for the end; the agent's final text."""
        return (await self.wait()).result

    async def stop(self, grace_s: float | None = None, *, reason: str = "") -> StopResult:
        """Stops the session: `grace_s` to end by itself (None: what its spec says), then by force.

        Everything below it is stopped first. The answer is the proof: nothing of the session is left, or the pids
        that remain; `stopped` names the sessions that were ended, in order.
        """
        body = StopSession(session=self.id, grace_s=grace_s, reason=reason)
        limit_s = None if grace_s is None else grace_s + STOP_ANSWER_S
        return expect(StopResult, await self._connection.call(body, timeout_s=limit_s, forever=limit_s is None))

    async def kill(self, *, reason: str = "") -> StopResult:
        """Stops the session without grace."""
        body = KillSession(session=self.id, reason=reason)
        return expect(StopResult, await self._connection.call(body, timeout_s=STOP_ANSWER_S))

    async def unpark(self) -> None:
        """Gives a parked session a fresh allowance of restarts and its next incarnation.

        Raises RefusedError if it is not parked.
        """
        await self._connection.call(UnparkSession(session=self.id))

    async def remove(self) -> None:
        """Forgets the session, which must have ended, and deletes its files."""
        await self._connection.call(RemoveSession(session=self.id))

    async def events(
        self,
        from_offset: int | None = 0,
        *,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
    ) -> AsyncGenerator[SessionEvent, None]:
        """The session's events from `from_offset` on (0: all there are, None: only new ones), until it ends.

        Each comes once and in order, also across a restart of the daemon; what is lost is told by a `Gap`.
        Without `follow` the iterator ends with what there is. A slow reader slows only itself.
        """
        feed = await self._open_feed(from_offset, follow, credit_bytes)
        try:
            while (item := await self._connection.next(feed)) is not None:
                if isinstance(item, Gap):
                    yield gap_event(item)
                    continue
                events = item.events()
                for event in events:
                    yield event
                if ends_session(item, events):
                    return
        finally:
            self._connection.close_feed(feed)

    async def batches(
        self,
        from_offset: int | None = 0,
        *,
        follow: bool = True,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
    ) -> AsyncGenerator[Batch | Gap, None]:
        """The same as raw records, not decoded: for measurements and for relays. It does not see the end of a
        session; without `follow` it ends with what there is."""
        feed = await self._open_feed(from_offset, follow, credit_bytes)
        try:
            while (item := await self._connection.next(feed)) is not None:
                yield item
        finally:
            self._connection.close_feed(feed)

    async def _open_feed(self, from_offset: int | None, follow: bool, credit_bytes: int) -> Feed:
        # An ended session says nothing more, so following it would wait for ever. Asking first, and starting
        # behind what was known then, leaves no moment in which its end could be missed.
        info = await self.info()
        self.id = info.session
        feed = Feed(
            session=info.session,
            from_offset=info.last_offset + 1 if from_offset is None else from_offset,
            follow=follow and info.state != "ended",
            credit_bytes=credit_bytes,
        )
        await self._connection.open_feed(feed)
        return feed
