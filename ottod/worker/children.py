"""The sessions that this one started, or that somebody else put under it: who lives, who waits for whom.

Root starts and stops them, and says when one has started and when one has ended. A tool call that started a child
usually waits for it. The end of a child that a tool call started and did not wait for is told to the session as a
message. A child that somebody else put under this session is waited for like any other, and its result is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ottod.core.resume import Restored
from ottod.core.team import handoff_text
from ottod.errors import OttoError, StorageError, ToolError
from ottod.protocol import journal as j
from ottod.protocol.birth import ChildNotice
from ottod.protocol.events import ChildExited, ChildStarted, ConversationHandedOver, LogWarning, ResearchReused
from ottod.protocol.worker_requests import (
    AgentEnd,
    FindChild,
    KnownResult,
    RecallResearch,
    SpawnChild,
    StopChild,
)
from ottod.tools.base import ChildEnd
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.text import cut

STOP_REQUEST_S = 10.0
"""The longest wait for root to hear that a child is to be stopped."""
MAX_STARTING = 128
"""Children that root is asked for at the same time; what it is asked beside them has room as well."""
MAX_STOPPING = 64
"""Children that root is asked to stop at the same time: while it is away all of that stays asked."""
TITLE_CHARS = 80
SHOWN_QUESTION_BYTES = 2000
MAX_REMEMBERED = 1000
"""Ends of children that are kept for a call that may still ask."""
UNHEARD_S = 30.0
"""How long a resumed call waits to be told of a child that ended while nobody listened."""


class Children:
    """One session's children. `on_end` is called when one has ended, `on_wait` when a tool call begins to wait."""

    def __init__(
        self,
        link: Link,
        inbox: Inbox,
        *,
        on_end: Callable[[], None],
        on_wait: Callable[[], None],
        session: str = "",
        agent: str = "",
    ) -> None:
        """`session` and `agent` are what it says of itself to whom it hands over."""
        self._link = link
        self._session = session
        self._agent = agent
        self._inbox = inbox
        self._on_end = on_end
        self._on_wait = on_wait
        self._journal: JournalWriter | None = None
        self._live: dict[str, str] = {}
        self._ended: dict[str, j.ChildEnded] = {}
        self._started: dict[str, j.ChildStarted] = {}
        self._announced: set[str] = set()
        self._unheard: set[str] = set()
        """Started by an earlier incarnation, and gone while nobody listened: root will say how when it is asked."""
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Semaphore(MAX_STARTING)
        self._stopping = asyncio.Semaphore(MAX_STOPPING)
        self._dismissed: set[str] = set()
        """Conversations that are to end because nobody will say anything to them any more."""
        self.waiting_calls = 0
        """Tool calls that wait for a child, or another session, now."""
        self.is_closing = False
        """Set when root ends the children itself, or when they are to outlive this incarnation."""

    @property
    def has_live(self) -> bool:
        """Whether any child has not ended."""
        return bool(self._live)

    def begin(self, journal: JournalWriter) -> None:
        """A session that has just begun has none."""
        self._journal = journal

    async def restore(self, restored: Restored, notices: tuple[ChildNotice, ...], journal: JournalWriter) -> None:
        """Takes over what earlier incarnations started. Raises StorageError."""
        self._journal = journal
        self._started = {child.child: child for child in restored.started}
        self._ended = {child.child: child for child in restored.ended_children[-MAX_REMEMBERED:]}
        self._announced = {*self._started, *self._ended, *(notice.child for notice in notices)}
        for notice in notices:
            await self.heard(notice)
        for started in restored.children:
            if started.child in self._live or started.child in self._ended:
                continue
            self._unheard.add(started.child)
            if started.is_reported:
                self._live[started.child] = started.agent
                self.later(self._ask_after(started))

    async def heard(self, notice: ChildNotice, *, is_told: bool = False) -> None:
        """Root says that a child has started or ended; a call may have been told so already.

        The same news twice is no news. Raises StorageError.
        """
        self._add(notice.child, notice.agent, notice.name)
        if notice.cause is None or notice.child in self._ended:
            return
        agent = self._live.pop(notice.child) or notice.agent
        ended = j.ChildEnded(
            child=notice.child,
            agent=agent,
            cause=notice.cause,
            result=notice.result,
            name=notice.name,
            whole=notice.whole,
        )
        self._ended[notice.child] = ended
        if len(self._ended) > MAX_REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self._unheard.discard(notice.child)
        self._announced.discard(notice.child)
        self._link.emit(ChildExited(child=notice.child, cause=notice.cause, result=notice.result))
        started = self._started.get(notice.child)
        is_reported = started is not None and started.is_reported
        is_expected = is_told or notice.child in self._dismissed
        await self._note_end(ended, is_reported=is_reported and not is_expected)

    def _add(self, child: str, agent: str, name: str) -> None:
        if child in self._live or child in self._ended:
            return
        self._live[child] = agent
        if child not in self._announced:
            self._announced.add(child)
            self._link.emit(ChildStarted(child=child, agent=agent, name=name))

    async def _note_end(self, ended: j.ChildEnded, *, is_reported: bool) -> None:
        assert self._journal is not None
        await self._inbox.note_child_end(ended, self._journal, is_reported=is_reported)
        for future in self._waiters.pop(ended.child, ()):
            if not future.done():
                future.set_result(None)
        self._on_end()

    # ------------------------------------------------------------ for tools

    async def learn(self, end: AgentEnd) -> None:
        """A call was told how a session ended: if it is a child, no message says so again. Raises StorageError."""
        assert self._journal is not None
        if end.session not in self._started and end.session not in self._ended:
            return
        if end.session not in self._ended:
            notice = ChildNotice(child=end.session, agent=end.role, cause=end.cause, result=end.result, name=end.name)
            await self.heard(notice, is_told=True)
        else:
            await self._inbox.withdraw_report(end.session, self._journal)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A call waits for another session."""
        self.waiting_calls += 1
        self._on_wait()
        try:
            yield
        finally:
            self.waiting_calls -= 1

    def dismiss(self) -> None:
        """The work is done: conversations that were started for it end when they have nothing to do."""
        for child in self._live:
            started = self._started.get(child)
            if started is not None and started.mode == "conversation" and child not in self._dismissed:
                self._dismissed.add(child)
                self.later(self._dismiss(child))

    async def _dismiss(self, child: str) -> None:
        try:
            await self._link.request(StopChild(child=child, reason="its parent's work is done", when_idle=True))
        except OttoError:
            pass  # It has ended.

    async def spawn(
        self,
        *,
        agent: str,
        task: str,
        title: str,
        model: str,
        key: str,
        is_reported: bool,
        name: str = "",
        mode: Literal["oneshot", "conversation"] = "oneshot",
        hint: str = "",
    ) -> tuple[str, str]:
        """Starts a child, once for each key; gives its id and name. Raises ToolError with root's reason."""
        span = self._link.traceparent_of(key)
        body = SpawnChild(
            agent=agent,
            task=task,
            title=title,
            model=model,
            key=key,
            traceparent=span,
            name=name,
            mode=mode,
            waits=not is_reported,
            hint=hint,
        )
        return await self.start(body, is_reported=is_reported)

    async def recall(self, *, agent: str, task: str, model: str, key: str) -> KnownResult | None:
        """What another session has found out, if the agent need not be started for it. Raises nothing."""
        if self.started_as(key):
            return None
        try:
            known = (await self._link.ask(RecallResearch(agent=agent, task=task, model=model, key=key))).team.known
        except OttoError:
            return None  # Then it is found out anew.
        if known is not None:
            question = cut(task, SHOWN_QUESTION_BYTES)[0]
            self._link.emit(
                ResearchReused(agent=agent, question=question, child=known.session, found_at_ns=known.at_ns)
            )
        return known

    async def hand_over(self, *, agent: str, reason: str, note: str, call: str, key: str) -> tuple[str, str]:
        """Starts the child that has the conversation up to this call, once for each key. Raises ToolError."""
        successor = self.started_as(key)
        # A child that it knows of from root alone may be the successor, started for a process that could not note it.
        # Root knows, and refuses if it is another one.
        if any(child != successor and child in self._started for child in self._live):
            raise ToolError(
                "agents that this one started still work", code="has_children", mend="wait for them with await_agents"
            )
        body = SpawnChild(
            agent=agent,
            task=handoff_text(name=self._agent, session=self._session, reason=reason, note=note),
            title=" ".join(reason.split())[:TITLE_CHARS],
            key=key,
            traceparent=self._link.traceparent_of(key),
            waits=True,
            handoff=call,
        )
        child, name = await self.start(body)
        if not successor:
            self._link.emit(ConversationHandedOver(child=child, agent=agent, name=name, reason=reason))
        return child, name or agent

    async def start(self, body: SpawnChild, *, is_reported: bool = False) -> tuple[str, str]:
        """The same for an order that says more, as a workflow's does."""
        return await self._have(body, body, is_reported=is_reported)

    async def find(self, body: SpawnChild) -> None:
        """Notes the child that root started for this order, if it did: an earlier process may have been lost before
        it could note it. Raises ToolError."""
        if self.started_as(body.key):
            return
        try:
            await self._have(FindChild(key=body.key), body, is_reported=False)
        except ToolError as error:
            if error.code != "not_started":
                raise

    async def _have(self, asked: SpawnChild | FindChild, body: SpawnChild, *, is_reported: bool) -> tuple[str, str]:
        starting = asyncio.ensure_future(self._start(asked, body, is_reported=is_reported))
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Root may have started it already; nobody will ever ask for it.
            self.later(self._stop_when_started(starting))
            raise
        except StorageError:
            raise
        except OttoError as error:
            raise ToolError(error.message, code=error.code, mend=error.mend) from error
        child = started.child
        if is_reported and child in self._ended and not self._ended[child].number:
            # It ended before the answer to the request was here.
            await self._note_end(self._ended[child], is_reported=True)
        if child not in self._unheard:
            self._add(child, started.agent, started.name)
        return child, started.name

    async def _start(self, asked: SpawnChild | FindChild, body: SpawnChild, *, is_reported: bool) -> j.ChildStarted:
        """Has root start or find it, and notes that. Raises RefusedError, StorageError."""
        assert self._journal is not None
        async with self._starting:
            reply = await self._link.ask(asked)
        started = j.ChildStarted(
            child=reply.child,
            agent=body.agent or reply.team.chosen,
            task=body.task,
            key=body.key,
            is_reported=is_reported,
            name=reply.name,
            mode=body.mode,
        )
        if reply.child not in self._started:
            self._started[reply.child] = started
            await self._journal.put([started])
        return started

    async def wait_ended(self, child: str) -> ChildEnd:
        """Waits for a child's end. Raises ToolError if it ended unheard and nobody can say how."""
        ended = await self.end_of(child)
        return ChildEnd(
            cause=str(ended.cause),
            is_completed=ended.cause.kind == "completed",
            result=ended.result,
            whole=ended.whole,
        )

    async def end_of(self, child: str) -> j.ChildEnded:
        """A child's end, once it has come. Raises ToolError if it ended unheard and nobody can say how."""
        return self._ended.get(child) or await self._until_ended(child)

    def started_as(self, key: str) -> str:
        """The child that was started for a key, as far as this process or an earlier one has noted; else empty."""
        return next((child.child for child in self._started.values() if child.key == key), "")

    async def _until_ended(self, child: str) -> j.ChildEnded:
        future = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(child, []).append(future)
        try:
            with self.waiting():
                async with asyncio.timeout(UNHEARD_S if child in self._unheard else None):
                    await future
        except TimeoutError as error:
            raise ToolError(f"session {child} has ended; its result is not known", code="unknown") from error
        return self._ended[child]

    async def end(self, child: str) -> None:
        """Stops a child that somebody chose to end: its end is no news. Raises ToolError if it is no live child."""
        if child not in self._live:
            raise ToolError(f"{child} is no live child of this session", code="no_such_agent", mend="see list_agents")
        self._dismissed.add(child)
        await self.stop(child, "its parent ended it")
        if child not in self._ended:
            await self._until_ended(child)

    async def stop(self, child: str, reason: str) -> None:
        """Tells root to stop a child, unless it has ended or the session itself is on its way out."""
        if self.is_closing or child in self._ended:
            return
        # If root is away it is asked as soon as it is back, though nobody waits for that any more.
        asking = self.later(self._have_stopped(child, reason))
        await asyncio.wait({asking}, timeout=STOP_REQUEST_S)

    async def _have_stopped(self, child: str, reason: str) -> None:
        try:
            async with self._stopping:
                await self._link.request(StopChild(child=child, reason=reason))
        except OttoError:
            pass  # It has ended.

    async def _ask_after(self, started: j.ChildStarted) -> None:
        """A child that is to be told of ended while nobody listened: who asks for it again is told again."""
        try:
            await self._link.request(
                SpawnChild(agent=started.agent, task=started.task, key=started.key, mode=started.mode)
            )
        except OttoError as error:
            self._live.pop(started.child, None)
            text = f"session {started.child} has ended, and its result is not known: {error.message}"
            self._link.emit(LogWarning(message=text, code="child_unknown"))
            self._on_end()

    async def _stop_when_started(self, starting: asyncio.Future[j.ChildStarted]) -> None:
        try:
            started = await starting
        except OttoError:
            return
        await self.stop(started.child, "the call that started it was cancelled")

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does it beside everything else; `aclose` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Ends what still runs for the children's sake."""
        self.is_closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
