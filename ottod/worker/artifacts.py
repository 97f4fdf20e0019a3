"""The session's artifacts: content goes to root, and comes from it, through files in the session's own directory.

Only root can reach the store. The worker writes a file, which programs of tools cannot see, and tells root of it;
root takes a copy and answers with the artifact. For reading it is the other way round. Neither file outlives the
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from ottod.errors import OttoError, ToolError
from ottod.protocol.artifacts import HANDOVER_DIR, MAX_ARTIFACT_BYTES, ArtifactInfo, SinkDelivery, name_problem
from ottod.protocol.events import ArtifactWritten
from ottod.protocol.worker_requests import FetchArtifact, FindArtifacts, FindDelivered, NoteDelivery, WriteArtifact
from ottod.worker.link import Link

TOKEN_BYTES = 16
MAX_OUTPUTS_BYTES = 64 * 1024 * 1024
"""Of outputs that were too long to be shown, by one incarnation: a tree has room for sixteen times as much."""


class Artifacts:
    """Of one session: it may write to its tree, and read what others of the tree have written."""

    def __init__(self, link: Link, *, session_dir: str) -> None:
        self._link = link
        self._handover = Path(session_dir) / HANDOVER_DIR
        self._told: set[str] = set()
        self._outputs_bytes = 0
        with contextlib.suppress(OSError):
            for left in self._handover.iterdir():
                left.unlink()  # An earlier incarnation died over it.

    async def write(
        self,
        data: bytes,
        *,
        name: str,
        kind: str = "file",
        sources: Sequence[str] = (),
        key: str = "",
        is_output: bool = False,
        producer: str = "",
        step: str = "",
    ) -> ArtifactInfo:
        """Keeps the next version of a name; when it returns, it is durable, and told in an event.

        The same key gives the same artifact, whatever happened in between. `sources` are ids, names, or
        `NAME@VERSION`. `is_output`: nobody asked for it, so it must not use up the tree's room. `producer` and
        `step`: a workflow keeps what a session of its own has made. Raises ToolError.
        """
        if problem := name_problem(name, kind):
            raise ToolError(problem, code="bad_arguments")
        if len(data) > MAX_ARTIFACT_BYTES:
            raise ToolError(
                f"{name} has {len(data)} bytes; {MAX_ARTIFACT_BYTES} is the limit of an artifact", code="too_large"
            )
        if is_output and self._outputs_bytes + len(data) > MAX_OUTPUTS_BYTES:
            raise ToolError("this session has kept as many outputs as it may", code="too_large")
        data = await asyncio.to_thread(self._link.redactor.data, data)
        token = secrets.token_hex(TOKEN_BYTES)
        body = WriteArtifact(
            token=token,
            name=name,
            kind=kind,
            digest=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            sources=tuple(sources),
            key=key,
            producer=producer,
            step=step,
        )
        try:
            await asyncio.to_thread(self._hand_over, token, data)
            (info,) = (await self._link.ask(body)).artifacts
        except OttoError as error:
            raise ToolError(error.message, code=error.code) from error
        finally:
            (self._handover / token).unlink(missing_ok=True)
        self._outputs_bytes += len(data) if is_output else 0
        self._tell(info)
        return info

    def _tell(self, info: ArtifactInfo) -> None:
        """An artifact of an earlier incarnation may have been told already: nobody knows, and twice is harmless."""
        if info.artifact not in self._told:
            self._told.add(info.artifact)
            self._link.emit(
                ArtifactWritten(
                    artifact=info.artifact,
                    name=info.name,
                    kind=info.kind,
                    digest=info.digest,
                    size_bytes=info.size_bytes,
                    version=info.version,
                )
            )

    async def read(self, artifact: str, *, version: int = 0) -> tuple[ArtifactInfo, bytes]:
        """An artifact of the tree, by id or name, and its content. Raises ToolError."""
        token = secrets.token_hex(TOKEN_BYTES)
        try:
            reply = await self._link.ask(FetchArtifact(token=token, artifact=artifact, version=version))
            (info,) = reply.artifacts
            data = await asyncio.to_thread((self._handover / token).read_bytes)
        except OttoError as error:
            raise ToolError(error.message, code=error.code) from error
        except OSError as error:
            raise ToolError(f"{artifact} was not handed over: {error.strerror}", code="storage") from error
        finally:
            (self._handover / token).unlink(missing_ok=True)
        if hashlib.sha256(data).hexdigest() != info.digest:
            raise ToolError(f"{artifact} is damaged: its content does not have its digest", code="storage")
        return info, data

    async def list(self, *, name: str = "", kind: str = "") -> tuple[ArtifactInfo, ...]:
        """What the tree has, newest first: the newest version of each name, or all of one name. Raises ToolError."""
        try:
            return (await self._link.ask(FindArtifacts(name=name, kind=kind))).artifacts
        except OttoError as error:
            raise ToolError(error.message, code=error.code) from error

    async def note_delivery(self, artifacts: Sequence[str], delivery: SinkDelivery) -> None:
        """Keeps what a sink did with them. Raises ToolError."""
        try:
            await self._link.ask(NoteDelivery(artifacts=tuple(artifacts), delivery=delivery))
        except OttoError as error:
            raise ToolError(error.message, code=error.code) from error

    async def delivered_to(self, place: str) -> tuple[str, ...]:
        """Digests of what was delivered to a place. Raises ToolError."""
        try:
            return (await self._link.ask(FindDelivered(place=place))).digests
        except OttoError as error:
            raise ToolError(error.message, code=error.code) from error

    def _hand_over(self, token: str, data: bytes) -> None:
        """Raises ToolError."""
        try:
            self._handover.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._handover / token, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except OSError as error:
            raise ToolError(f"the artifact cannot be written: {error.strerror}", code="storage") from error
