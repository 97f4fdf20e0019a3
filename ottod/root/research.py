"""Results that stand for those of another session: of the same agent, asked the same, in the same working directory.

Before a worker starts a child whose agent says `cacheable`, it asks here. What the key is made of is all that the
answer may follow from: the agent's definition, the model, the question, the rules that bind the child from above, and
what it would find (`surroundings`). A result is kept when the session that came to it has completed, and all of that
is then as it was when the question was asked: whoever changes files is never kept. Nor is what stood in for a model
that did not answer.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

import msgspec
from msgspec.structs import replace

from ottod.errors import OttoError
from ottod.protocol.requests import ForgetResearch, ListResearch, StartSession
from ottod.protocol.results import Done, ResearchEntry, ResearchList
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker_requests import KnownResult, RecallResearch, RequestReply, TeamReply
from ottod.root.children import SPAWN_TOOL
from ottod.root.context import RootContext
from ottod.root.resolve import Resolver
from ottod.root.rulings import handed_down
from ottod.root.session_table import Session
from ottod.root.surroundings import Surroundings
from ottod.storage import research_rows as rows

MAX_ASKED = 1000
"""Questions whose sessions are awaited."""
SHOWN_QUESTION_CHARS = 2000
_pack = msgspec.msgpack.Encoder().encode


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question to which nobody knew the answer. `state` is what its agent would have found."""

    key: str
    digest: str
    cwd: str
    question: str
    state: str


class Research:
    """Of this root."""

    def __init__(self, context: RootContext, resolver: Resolver, surroundings: Surroundings) -> None:
        self._c = context
        self._resolver = resolver
        self._surroundings = surroundings
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        """By the key of the child that is to be started."""

    async def recall(self, parent: Session, body: RecallResearch) -> RequestReply:
        """What is known, or nothing; then the child that follows is awaited. Raises StorageError."""
        plan, child_key = parent.plan, f"{parent.id}/{body.key}"
        if plan is None or SPAWN_TOOL not in plan.spec.tools or not body.key:
            return RequestReply(id=0)
        if await self._c.database.session_by_key(child_key):
            return RequestReply(id=0)  # It was begun by an earlier incarnation, and goes on.
        wanted = await self._c.in_thread(self._look_up, parent, body)
        state = await self._surroundings.state(*wanted, parent) if wanted is not None else ""
        if wanted is None or not state:
            return RequestReply(id=0)
        asked = self._asked_of(parent, body, *wanted, state)
        now_ns = time.time_ns()
        found = await self._c.database.transact(lambda connection: rows.recall(connection, asked.key, now_ns=now_ns))
        if found is None:
            self._asked[child_key] = asked
            while len(self._asked) > MAX_ASKED:
                self._asked.popitem(last=False)
            return RequestReply(id=0)
        result, session, at_ns = found
        return RequestReply(id=0, team=TeamReply(known=KnownResult(session=session, text=result, at_ns=at_ns)))

    def _look_up(self, parent: Session, body: RecallResearch) -> tuple[AgentSpec, str] | None:
        """On a thread: who would be asked, and where, if the answer may be kept."""
        plan = parent.plan
        assert plan is not None
        try:
            spec, cwd = self._resolver.look_up(StartSession(agent=body.agent, cwd=plan.cwd, env={}, model=body.model))
        except OttoError:
            return None  # Whoever starts it is told why not.
        return (spec, cwd) if spec.cacheable else None

    def _asked_of(self, parent: Session, body: RecallResearch, spec: AgentSpec, cwd: str, state: str) -> Asked:
        plan = parent.plan
        assert plan is not None
        bound = handed_down(parent.id, plan.spec, self._c.settings.permissions, plan.inherited)
        rules = [replace(each, name="") for each in bound]
        made_of = (spec.name, spec.digest, body.model, body.task, cwd, state, parent.info.run_mode, rules)
        return Asked(
            key=hashlib.sha256(_pack(made_of)).hexdigest(),
            digest=spec.digest,
            cwd=cwd,
            question=body.task[:SHOWN_QUESTION_CHARS],
            state=state,
        )

    def ended(self, child: Session) -> None:
        """A session has ended: perhaps with an answer that is worth keeping."""
        plan = child.plan
        if plan is None or not plan.spawn_key:
            return
        asked = self._asked.pop(f"{child.info.parent}/{plan.spawn_key}", None)
        cause = child.info.cause
        is_answer = cause is not None and cause.kind == "completed" and bool(child.info.result)
        is_answer = is_answer and self._c.table.is_a_models(child.info)
        if asked is not None and is_answer and plan.spec.digest == asked.digest:
            self._c.spawn(self._keep(child, asked))

    async def _keep(self, child: Session, asked: Asked) -> None:
        try:
            assert child.plan is not None
            if await self._surroundings.state(child.plan.spec, asked.cwd, child) != asked.state:
                return
            entry = ResearchEntry(
                key=asked.key,
                agent=child.info.agent,
                cwd=asked.cwd,
                question=asked.question,
                session=child.id,
                at_ns=time.time_ns(),
            )
            result = child.info.result
            await self._c.database.transact(lambda connection: rows.keep(connection, entry, result))
        except OttoError as error:
            self._c.log(f"a result cannot be kept: {error}", session=child.id)

    # ------------------------------------------------------------ for clients

    async def list(self, body: ListResearch) -> ResearchList:
        """What is kept, newest first. Raises StorageError."""
        found = await self._c.database.query(lambda connection: rows.listed(connection, body.agent, body.limit))
        return ResearchList(entries=tuple(found))

    async def forget(self, body: ForgetResearch) -> Done:
        """All of an agent, or everything. Raises StorageError."""
        count = await self._c.database.transact(lambda connection: rows.forget(connection, body.agent))
        return Done(detail=str(count))
