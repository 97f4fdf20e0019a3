"""The decision graph as root serves it: workers add to that of their project and ask about it, people look at all.

Whose project a session belongs to is root's finding, from its working directory; no worker can name another. The same
call again, by its key, is answered with the same nodes. A project's graph outlives its sessions.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from msgspec.structs import replace

from ottod.errors import OttoError, RefusedError, StorageError
from ottod.ids import key_from_bytes, session_id, session_key
from ottod.protocol.decisions import COMMIT, ID_PREFIX, REF, DecisionFilter, FoundDecisions, NewNode
from ottod.protocol.requests import ForgetDecisions
from ottod.protocol.results import DecisionsFound, Done
from ottod.protocol.worker_requests import FindDecisions, LogDecisions, RequestReply
from ottod.root.artifacts import tree_of
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.settings.levels import project_root
from ottod.storage.decision_graph import Author, DecisionGraph, Entry, Refusal

DecisionRequest = LogDecisions | FindDecisions


class Decisions:
    """Of all projects."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._graph = DecisionGraph(context.database)

    # ------------------------------------------------------------ for workers

    async def serve(self, session: Session, body: DecisionRequest) -> RequestReply:
        """The answer to a worker's request. Raises OttoError with the reason why not."""
        project = await self._project_of(session.info.cwd)
        match body:
            case LogDecisions():
                found = await self._log(session, body, project)
            case FindDecisions():
                wanted = replace(
                    body.filter,
                    project=project,
                    tree=tree_of(session) if body.filter.tree else "",
                    session=session.id if body.filter.session else "",
                )
                found = _checked(await self._graph.query(wanted))
        return RequestReply(id=0, decisions=found)

    async def _log(self, session: Session, body: LogDecisions, project: str) -> FoundDecisions:
        if not (body.nodes or body.edges or body.changes):
            raise RefusedError("nothing to log", code="bad_node")
        author = Author(
            session=session.id,
            agent=session.info.agent,
            tree=tree_of(session),
            project=project,
            at_ns=time.time_ns(),
        )
        entry = Entry(
            key=body.key,
            ids=tuple(_new_id() for _ in body.nodes),
            nodes=tuple(_in_order(node) for node in body.nodes),
            edges=body.edges,
            changes=body.changes,
        )
        return _checked(await self._graph.log(entry, author))

    async def state(self, cwd: str) -> str:
        """What tells one state of the graph of this directory's project from the next. Raises StorageError."""
        return await self._graph.state(await self._project_of(cwd))

    async def _project_of(self, cwd: str) -> str:
        return str(await self._c.in_thread(project_root, Path(cwd or "/"), Path(os.path.expanduser("~"))))

    # ------------------------------------------------------------ for clients

    async def query(self, wanted: DecisionFilter) -> DecisionsFound:
        """Raises RefusedError `no_such_node`, `ambiguous_node`, StorageError."""
        if wanted.project:
            wanted = replace(wanted, project=await self._project_of(wanted.project))
        found = _checked(await self._graph.query(wanted))
        return DecisionsFound(nodes=found.nodes, edges=found.edges, project=wanted.project, truncated=found.truncated)

    async def forget(self, body: ForgetDecisions) -> Done:
        """Forgets a project's graph. Raises StorageError."""
        count = await self._graph.forget_project(await self._project_of(body.project))
        return Done(detail=str(count))

    async def session_forgotten(self, session: str) -> None:
        """What it logged stays; that it may repeat a call does not."""
        try:
            await self._graph.forget_calls(session)
        except StorageError as error:
            self._c.log(f"the calls of {session} cannot be forgotten: {error}", session=session)


def _new_id() -> str:
    return ID_PREFIX + session_id(key_from_bytes(os.urandom(8))).removeprefix("s-")


def _checked(found: FoundDecisions | Refusal) -> FoundDecisions:
    if isinstance(found, Refusal):
        raise RefusedError(found.message, code=found.code, mend=found.mend)
    return found


def _in_order(node: NewNode) -> NewNode:
    """The node with a title on one line. Raises RefusedError for what a worker in order would not have said."""
    title = " ".join(node.title.split())
    if not title:
        raise RefusedError("a node needs a title", code="bad_node")
    if node.ref and not REF.match(node.ref):
        raise RefusedError(f"{node.ref!r} is no ref: letters, digits, `.`, `_`, `-`, not `d-…`", code="bad_node")
    for commit in node.commits:
        if not COMMIT.match(commit):
            raise RefusedError(f"{commit!r} is no commit: give 7 to 64 hexadecimal digits", code="bad_node")
    for session in node.sessions:
        try:
            session_key(session)
        except OttoError:
            raise RefusedError(f"{session!r} is no session's id", code="bad_node") from None
    if any(not artifact or " " in artifact for artifact in node.artifacts):
        raise RefusedError("an artifact is named by an id or a name without blanks", code="bad_node")
    return replace(node, title=title)
