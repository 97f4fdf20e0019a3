"""A session's children without processes: the real `Children`, and a root that starts and stops as they ask."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from ottod.core.past import Past
from ottod.errors import RefusedError
from ottod.protocol import journal as j
from ottod.protocol.birth import ChildNotice
from ottod.protocol.cause import Cause
from ottod.protocol.worker_requests import FindChild, RequestReply, SpawnChild, StopChild, WorkerRequestBody
from ottod.worker.children import Children
from ottod.worker.inbox import Inbox


class Nursery:
    """Children that end when they are told to, or are stopped; each is called as its key. The session's journal and
    its line to root as well."""

    def __init__(self) -> None:
        self.bodies: list[SpawnChild] = []
        """Of all that were started."""
        self.stopped: list[str] = []
        self.started = asyncio.Event()
        self.is_here = asyncio.Event()
        """Root is: while it is away nothing is answered."""
        self.is_here.set()
        self.open_requests = 0
        self.most_requests = 0
        """That were open at the same time."""
        self.entries: list[j.JournalEntry] = []
        self._known: dict[str, ChildNotice] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.children = self._children()
        self.children.begin(self)  # type: ignore[arg-type]

    def _children(self) -> Children:
        inbox = Inbox(self, on_arrival=lambda: None)  # type: ignore[arg-type]
        return Children(self, inbox, on_end=lambda: None, on_wait=lambda: None)  # type: ignore[arg-type]

    async def reborn(self) -> None:
        """The session's process is another one: it knows what the journal holds, and of root what lives."""
        past = Past()
        for entry in self.entries:
            past.take(entry)
        self.children = self._children()
        live = tuple(notice for notice in self._known.values() if notice.cause is None)
        await self.children.restore(past.restored(), live, self)  # type: ignore[arg-type]

    # ------------------------------------------------------------ root

    def start(self, body: SpawnChild) -> None:
        """Starts one, whoever asked for it."""
        self.bodies.append(body)
        self._known[body.key] = ChildNotice(child=body.key, agent=body.agent)
        self.started.set()

    def end(self, child: str, result: str = "", kind: Any = "completed") -> None:
        """One ends, and the session is told."""
        if self._known[child].cause is None:
            self._known[child] = ChildNotice(child=child, cause=Cause(kind=kind), result=result)
        self._spawn(self.children.heard(self._known[child]))

    def stop(self, child: str) -> None:
        """Somebody stops one."""
        self.stopped.append(child)
        self.end(child, kind="cancelled")

    @property
    def has_heard(self) -> bool:
        """Whether the session has been told of everything."""
        return not self._tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ as `Link`

    def emit(self, event: object) -> None:
        pass

    async def ask(self, body: WorkerRequestBody) -> RequestReply:
        self.open_requests += 1
        self.most_requests = max(self.most_requests, self.open_requests)
        try:
            await self.is_here.wait()
            return self._answer(body)
        finally:
            self.open_requests -= 1

    def _answer(self, body: WorkerRequestBody) -> RequestReply:
        match body:
            case FindChild() if body.key not in self._known:
                raise RefusedError("nothing was started for it", code="not_started")
            case SpawnChild() if body.key not in self._known:
                self.start(body)
            case SpawnChild() | FindChild() if self._known[body.key].cause is not None:
                self.end(body.key)
            case StopChild():
                if self._known[body.child].cause is None:
                    self.stop(body.child)
                return RequestReply(id=0, child=body.child)
            case SpawnChild() | FindChild():
                pass
            case _:
                raise AssertionError(body)
        return RequestReply(id=0, child=body.key)

    async def request(self, body: WorkerRequestBody) -> str:
        return (await self.ask(body)).child

    # ------------------------------------------------------------ as `JournalWriter`

    def note(self, entry: j.JournalEntry) -> None:
        self.entries.append(entry)

    async def put(self, entries: Sequence[j.JournalEntry]) -> None:
        self.entries += entries
        await asyncio.sleep(0)
