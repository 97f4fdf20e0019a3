"""Artifacts as root serves them: to workers, which hand content over in their sessions' directories, and to clients.

A worker writes content into its own directory and says so. Root copies it into the store, where it has its digest
for a name, and only when that is on disk does a row of the index mean it. What a crash leaves between the two is a
content without a row, which the next start sweeps away. The same request again, by its key, is answered with the same
artifact.

A tree's artifacts go when the last of its sessions is forgotten. Until then the sessions that go on from one of that
tree, resumed or forked, read them too, as they were when they began: their conversation speaks of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from ottod.errors import RefusedError, StorageError
from ottod.ids import key_from_bytes, session_id
from ottod.protocol.artifacts import (
    DIGEST,
    HANDOVER_DIR,
    ID_PREFIX,
    MAX_ARTIFACT_BYTES,
    MAX_LISTED,
    MAX_PLACE_CHARS,
    MAX_REASON_CHARS,
    MAX_SOURCES,
    TOKEN,
    ArtifactInfo,
    SinkDelivery,
    name_problem,
)
from ottod.protocol.requests import GetArtifact, ListArtifacts, ReadArtifact
from ottod.protocol.results import ArtifactFound, ArtifactList, ArtifactPart, SessionInfo
from ottod.protocol.worker_requests import (
    FetchArtifact,
    FindArtifacts,
    FindDelivered,
    NoteDelivery,
    RequestReply,
    WriteArtifact,
)
from ottod.protocol.workflows import sinks_of
from ottod.root.context import RootContext
from ottod.root.missing_artifact import missing_artifact
from ottod.root.session_table import Session
from ottod.storage.artifact_index import ArtifactIndex, Refusal
from ottod.storage.artifacts import ArtifactStore

MAX_REFERENCE_CHARS = 200
MAX_KEY_CHARS = 1000
MAX_LINEAGE = 16
"""Of sessions that went on from each other, how many trees are looked through."""

MAX_ATTEMPTS = 1_000_000

ArtifactRequest = WriteArtifact | FetchArtifact | FindArtifacts | NoteDelivery | FindDelivered


class Artifacts:
    """Of all trees of this root."""

    def __init__(self, context: RootContext, store: ArtifactStore) -> None:
        self._c = context
        self._store = store
        self._index = ArtifactIndex(context.database)
        self._placing = asyncio.Lock()
        """Held from the moment content has its name to the one it has a row, and while unnamed content is removed."""

    async def open(self) -> None:
        """Makes the store ready. Raises StorageError."""
        await self._c.in_thread(self._store.prepare)

    # ------------------------------------------------------------ for workers

    async def serve(self, session: Session, number: int, body: ArtifactRequest) -> RequestReply:
        """The answer to a worker's request. Raises OttoError with the reason why not."""
        match body:
            case WriteArtifact():
                return RequestReply(id=number, artifacts=(await self._write(session, body),))
            case FetchArtifact():
                return RequestReply(id=number, artifacts=(await self._fetch(session, body),))
            case FindArtifacts():
                found = await self._index.select(
                    tree=tree_of(session),
                    name=_checked_name(body.name),
                    kind=_checked_name(body.kind),
                    all_versions=bool(body.name),
                    limit=MAX_LISTED + 1,
                )
                found += await self._listed_before(session, body, {info.name for info in found})
                return RequestReply(id=number, artifacts=tuple(found[:MAX_LISTED]), truncated=len(found) > MAX_LISTED)
            case NoteDelivery():
                await self._note_delivery(session, body)
                return RequestReply(id=number)
            case FindDelivered():
                digests = await self._index.delivered_to(body.place[:MAX_PLACE_CHARS])
                return RequestReply(id=number, digests=tuple(digests))

    async def _note_delivery(self, session: Session, body: NoteDelivery) -> None:
        """Only a workflow has sinks; they take what it, or whom it goes on from, has. Raises RefusedError."""
        said = body.delivery
        if session.plan is None or session.plan.workflow is None:
            raise RefusedError(f"{session.id} is no workflow", code="refused")
        if len(body.artifacts) > MAX_LISTED or len(said.sink) > MAX_REFERENCE_CHARS:
            raise RefusedError("not a delivery that could be kept", code="bad_artifact")
        kept = SinkDelivery(
            sink=said.sink,
            state=said.state,
            place=said.place[:MAX_PLACE_CHARS],
            reason=said.reason[:MAX_REASON_CHARS],
            attempts=max(0, min(said.attempts, MAX_ATTEMPTS)),
            at_ns=time.time_ns(),
        )
        trees = [tree_of(session), *(tree for tree, _ in await self._before(session))]
        sinks = {sink.label: sink.to for sink in sinks_of(session.plan.workflow.spec)}
        is_file = sinks.get(said.sink) == "filesystem"
        await self._index.note_delivery(body.artifacts, trees, kept, is_file=is_file)

    async def _write(self, session: Session, body: WriteArtifact) -> ArtifactInfo:
        _check(body)
        key = f"{session.id}/{body.key}" if body.key else ""
        if key and (known := await self._index.by_key(key)) is not None:
            return known
        made_by = await self._producer(session, body.producer)
        new = ArtifactInfo(
            artifact=ID_PREFIX + session_id(key_from_bytes(os.urandom(8))).removeprefix("s-"),
            tree=tree_of(session),
            session=made_by.session,
            agent=made_by.agent,
            step=body.step[:MAX_REFERENCE_CHARS] if body.producer else self._step_of(session),
            name=body.name,
            kind=body.kind,
            digest=body.digest,
            size_bytes=body.size_bytes,
            at_ns=time.time_ns(),
        )
        sources = [await self._source(session, reference) for reference in body.sources]
        async with self._placing:
            await self._c.in_thread(self._take, session.id, body)
            added = await self._index.add(new, sources=sources, key=key)
        if isinstance(added, Refusal):
            raise RefusedError(added.message, code=added.code)
        return added

    async def _producer(self, session: Session, named: str) -> SessionInfo:
        """Who made it: who writes, or whom a workflow names of its own steps. Raises RefusedError."""
        if not named:
            return session.info
        info = await self._info(named[:MAX_REFERENCE_CHARS]) if session.plan and session.plan.workflow else None
        if info is None or info.parent != session.id:
            raise RefusedError(f"{named[:100]} is no step of {session.id}", code="refused")
        return info

    def _step_of(self, session: Session) -> str:
        """The step that a session works for, itself or below another."""
        above: Session | None = session
        while above is not None:
            if above.info.step:
                return above.info.step
            above = self._c.table.get(above.info.parent) if above.info.parent else None
        return ""

    def _take(self, session: str, body: WriteArtifact) -> None:
        self._store.take(self._handover(session), body.token, digest=body.digest, size_bytes=body.size_bytes)

    async def _fetch(self, session: Session, body: FetchArtifact) -> ArtifactInfo:
        if not TOKEN.match(body.token):
            raise RefusedError("not a name for a copy", code="bad_artifact")
        info = await self._known(session, body.artifact, body.version)
        await self._c.in_thread(self._store.give, info.digest, self._handover(session.id), body.token)
        return info

    def _handover(self, session: str) -> Path:
        return self._c.sessions_dir / session / HANDOVER_DIR

    # ------------------------------------------------------------ of those that a session goes on from

    async def _known(self, session: Session, reference: str, version: int) -> ArtifactInfo:
        """What a session means: its own tree's, else what one that it goes on from had then. Raises RefusedError."""
        try:
            return await self._one(reference, tree=tree_of(session), version=version)
        except RefusedError as error:
            if error.code != "no_such_artifact":
                raise
            for tree, until_ns in await self._before(session):
                if (info := await self._as_of(reference, tree, version, until_ns)) is not None:
                    return info
            raise

    async def _as_of(self, reference: str, tree: str, version: int, until_ns: int) -> ArtifactInfo | None:
        found = await self._index.find(reference[:MAX_REFERENCE_CHARS], tree=tree, version=max(0, version))
        if len(found) == 1 and found[0].at_ns > until_ns and found[0].name == reference and not version:
            # It has got newer versions since.
            found = await self._index.select(tree=tree, name=reference, all_versions=True, limit=MAX_LISTED)
        return next((info for info in found if info.at_ns <= until_ns), None)

    async def _source(self, session: Session, reference: str) -> str:
        """The id of what something is made from. Raises RefusedError."""
        try:
            return (await self._known(session, reference, 0)).artifact
        except RefusedError as error:
            raise RefusedError(
                f"there is no artifact {reference[:120]!r} to be made from", code="no_such_artifact"
            ) from error

    async def _listed_before(self, session: Session, body: FindArtifacts, known: set[str]) -> list[ArtifactInfo]:
        """What is listed of those that the session goes on from, without names that are hidden by newer ones."""
        listed: list[ArtifactInfo] = []
        for tree, until_ns in await self._before(session):
            found = await self._index.select(
                tree=tree, name=body.name, kind=body.kind, all_versions=True, limit=MAX_LISTED
            )
            for info in found:
                if info.at_ns <= until_ns and (body.name or info.name not in known):
                    listed.append(info)
                    known.add(info.name)
        return listed

    async def _before(self, session: Session) -> list[tuple[str, int]]:
        """The trees that a session's tree goes on from, the nearest first, each with the moment it did."""
        trees: list[tuple[str, int]] = []
        top, until_ns = tree_of(session), time.time_ns()
        for _ in range(MAX_LINEAGE):
            info = await self._info(top)
            if info is None or not info.resumed_from:
                break
            top, until_ns = await self.tree_on_record(info.resumed_from), min(until_ns, info.created_at_ns)
            trees.append((top, until_ns))
        return trees

    async def _info(self, session_id: str) -> SessionInfo | None:
        live = self._c.table.get(session_id)
        if live is not None:
            return live.info
        return next(iter(await self._c.database.session_by_prefix(session_id, limit=1)), None)

    async def state(self, session: Session) -> str:
        """A digest of all that the session can read here."""
        trees = [tree_of(session), *(tree for tree, _ in await self._before(session))]
        return " ".join([await self._index.state(tree) for tree in trees])

    # ------------------------------------------------------------ for clients

    async def list(self, body: ListArtifacts, *, tree: str) -> ArtifactList:
        """The artifacts of a tree, or, without one, of all."""
        found = await self._index.select(
            tree=tree,
            name=_checked_name(body.name),
            kind=_checked_name(body.kind),
            all_versions=body.all_versions,
            limit=body.limit + 1,
        )
        shown = await self._index.with_deliveries(found[: body.limit])
        return ArtifactList(artifacts=tuple(shown), truncated=len(found) > body.limit)

    async def get(self, body: GetArtifact, *, tree: str) -> ArtifactFound:
        """The artifact that is meant. Raises RefusedError `no_such_artifact`, `ambiguous_artifact`."""
        try:
            found = await self._one(body.artifact, tree=tree, version=body.version)
        except RefusedError as error:
            reference, version = body.artifact[:MAX_REFERENCE_CHARS], max(0, body.version)
            if error.code != "no_such_artifact" or not reference:
                raise
            # Workers are not told what other trees have.
            raise await missing_artifact(
                self._index, reference, tree=tree, version=version, in_thread=self._c.in_thread
            ) from error
        return ArtifactFound(artifact=(await self._index.with_deliveries([found]))[0])

    async def read(self, body: ReadArtifact) -> ArtifactPart:
        """A part of its content. Raises RefusedError, StorageError."""
        info = await self._one(body.artifact, tree="", version=0)
        data = await self._c.in_thread(self._store.read, info.digest, body.offset, body.length)
        return ArtifactPart(artifact=info.artifact, offset=body.offset, data=data)

    async def _one(self, reference: str, *, tree: str, version: int) -> ArtifactInfo:
        shown = reference[:MAX_REFERENCE_CHARS]
        found = await self._index.find(shown, tree=tree, version=max(0, version)) if shown else []
        if not found:
            which = f"{shown}@{version}" if version else shown
            raise RefusedError(
                f"there is no artifact {which}", code="no_such_artifact", mend="see `ottoctl artifact list`"
            )
        if len(found) > 1:
            some = ", ".join(f"{info.artifact} (of {info.tree})" for info in found[:4])
            raise RefusedError(
                f"{shown} can mean several artifacts: {some}",
                code="ambiguous_artifact",
                mend="give the whole id, or name the session",
            )
        return found[0]

    # ------------------------------------------------------------ forgetting

    async def sweep(self) -> int:
        """Removes content that no row means: a crash came between the two. Gives its number. Raises StorageError."""
        async with self._placing:
            if await self._is_kept_unnamed():
                self._c.log("artifacts: what no row means is kept, as it may be a damaged database's")
                return 0
            return await self._c.in_thread(self._store.sweep, await self._index.digests())

    async def session_forgotten(self, tree: str) -> None:
        """A session of this tree is on record no more; if it was the last, the tree's artifacts go."""
        try:
            async with self._placing:
                unnamed = await self._index.forget_tree(tree)
                if unnamed and not await self._is_kept_unnamed():
                    await self._c.in_thread(self._store.remove, unnamed)
        except StorageError as error:
            self._c.log(f"artifacts of {tree} cannot be removed: {error}")

    async def _is_kept_unnamed(self) -> bool:
        """Whether a damaged database lies there, whose rows may mean what none of this one's does."""
        state_dir = self._c.sessions_dir.parent
        return await self._c.in_thread(lambda: any(state_dir.glob("otto.db.broken-*")))

    async def tree_on_record(self, session: str) -> str:
        """The tree of a session that may have ended long ago. Raises StorageError."""
        return await self._index.tree_of(session)


def tree_of(session: Session) -> str:
    """The topmost session of its tree."""
    return session.info.tree or session.id


def _checked_name(name: str) -> str:
    if len(name) > MAX_REFERENCE_CHARS:
        raise RefusedError("no artifact has a name or kind as long as this", code="no_such_artifact")
    return name


def _check(body: WriteArtifact) -> None:
    """Raises OttoError for what a worker in order would not have said."""
    if problem := name_problem(body.name, body.kind):
        raise RefusedError(problem, code="bad_artifact")
    if not TOKEN.match(body.token) or not DIGEST.match(body.digest) or len(body.key) > MAX_KEY_CHARS:
        raise RefusedError("not an artifact that could be taken", code="bad_artifact")
    if not 0 <= body.size_bytes <= MAX_ARTIFACT_BYTES:
        raise RefusedError(
            f"an artifact of {body.size_bytes} bytes; {MAX_ARTIFACT_BYTES} is the limit", code="too_large"
        )
    if len(body.sources) > MAX_SOURCES or any(len(source) > MAX_REFERENCE_CHARS for source in body.sources):
        raise RefusedError(f"{MAX_SOURCES} sources are the limit", code="too_large")
