"""Artifacts as files of the working directory, each under its name, always the newest version.

A file is replaced only if it holds what Otto put there: an earlier version, or the same. Anything else is somebody's
own work, and the parcel fails with `conflict`, unless the sink says `on_conflict: replace`; then the receipt says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from ottod.errors import ToolError
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES
from ottod.protocol.sinks import Sink
from ottod.protocol.toolio import Files
from ottod.sinks.base import Parcel, Receipt, Undelivered

FINAL_CODES = frozenset({"bad_path", "outside", "protected", "denied", "not_a_file", "read_only"})
"""What another attempt does not change."""
MAX_RACES = 8
"""How often somebody may make or remove the file between a look and the write."""

DeliveredTo = Callable[[str], Awaitable[Sequence[str]]]
"""Gives the digests of what was delivered to a place."""


class _Settled(Exception):
    """There is nothing to write."""


class MakesFiles(Files, Protocol):
    """Files that can be made without taking another's place."""

    def create(self, path: str, data: bytes) -> None: ...


class Filesystem:
    """`Destination` of files below one directory."""

    def __init__(self, sink: Sink, files: MakesFiles, *, delivered_to: DeliveredTo) -> None:
        self._sink = sink
        self._files = files
        self._delivered_to = delivered_to

    async def deliver(self, parcel: Parcel) -> Receipt:
        """See `Destination.deliver`."""
        path = file_for(self._sink, parcel.artifact.name)
        try:
            relative = self._files.relative(path)
            place = f"{self._files.root}/{relative}"
            known = frozenset(await self._delivered_to(place))
            note = await asyncio.to_thread(self._put, relative, parcel.data, known)
        except ToolError as error:
            raise Undelivered(
                error.message, code=error.code, mend=error.mend, is_final=error.code in FINAL_CODES
            ) from error
        return Receipt(place=place, note=note)

    def _put(self, path: str, data: bytes, known: Collection[str]) -> str:
        """Raises ToolError, Undelivered."""
        for _ in range(MAX_RACES):
            try:
                self._files.create(path, data)
            except ToolError as error:
                if error.code != "exists":
                    raise
            else:
                return ""
            try:
                return self._replace(path, data, known)
            except ToolError as error:
                if error.code != "not_found":
                    raise
        raise ToolError(f"{path} keeps coming and going", code="conflict")

    def _replace(self, path: str, data: bytes, known: Collection[str]) -> str:
        lost = ""

        def transform(old: bytes) -> bytes:
            nonlocal lost
            lost = ""
            if old == data:
                raise _Settled
            digest = hashlib.sha256(old).hexdigest()
            if digest not in known:
                if self._sink.on_conflict == "fail":
                    raise _conflict(path)
                lost = digest
            return data

        try:
            self._files.change(path, transform, max_bytes=MAX_ARTIFACT_BYTES)
        except _Settled:
            return ""
        except ToolError as error:
            if error.code != "too_large":
                raise
            if self._sink.on_conflict == "fail":
                raise _conflict(path) from error
            self._files.write(path, data)
            lost = "a file too large for an artifact"
        return f"{path} had been changed by somebody else, and was replaced ({lost})" if lost else ""


def _conflict(path: str) -> Undelivered:
    return Undelivered(
        f"{path} holds what Otto did not write there",
        code="conflict",
        mend="move it, or write `on_conflict: replace` in the sink",
        is_final=True,
    )


def file_for(sink: Sink, name: str) -> str:
    """Where an artifact goes, relative to the working directory; empty if the sink has no place for it."""
    if name in sink.files:
        return sink.files[name]
    return f"{sink.path.rstrip('/') or '.'}/{name}" if sink.path else ""
