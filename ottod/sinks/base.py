"""What a sink is given, what it gives back, and what it says when it cannot.

A parcel may come again: after a crash nobody knows whether it arrived. So whoever takes one makes of its `key`, which
is the same each time, that nothing is there twice.
"""

from __future__ import annotations

import base64
import codecs
from typing import Any, Protocol

import msgspec

from ottod.errors import OttoError
from ottod.protocol.artifacts import ArtifactInfo


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact with its content, or, for a sink that takes whole steps, all that a step left, without.

    `workflow` is its name, `session` its session, `origins` are those that it goes on from, the nearest first.
    `path`, `attempt` and `at_ns` are of the step's end, `at_ns` later than that of any which ended before; `tree` is
    git's name for the working directory at that moment, `before` for it as it was when the workflow began.
    """

    key: str
    workflow: str
    session: str
    path: str
    attempt: int
    at_ns: int
    artifacts: tuple[ArtifactInfo, ...] = ()
    data: bytes = b""
    tree: str = ""
    before: str = ""
    origins: tuple[str, ...] = ()

    @property
    def artifact(self) -> ArtifactInfo:
        """The one that it is about."""
        (found,) = self.artifacts
        return found


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is now: a file, a commit, a URL. `note` says what else was done, if anybody should know."""

    place: str = ""
    note: str = ""


class Undelivered(OttoError):
    """An attempt failed. `is_final`: another one would as well. `retry_after_s`: when it may be worth while."""

    code = "undelivered"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        mend: str = "",
        is_final: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, mend=mend)
        self.is_final = is_final
        self.retry_after_s = retry_after_s


class Destination(Protocol):
    """One sink of one workflow. Parcels come one after the other."""

    async def deliver(self, parcel: Parcel) -> Receipt:
        """Takes a parcel, or finds that it has it. Raises Undelivered, or another OttoError if it may be tried again.

        A cancelled delivery leaves nothing running.
        """
        ...


def described(parcel: Parcel, *, content_bytes: int) -> dict[str, Any]:
    """An artifact's parcel as JSON has it, the same each time. Of a longer content only the beginning goes along.

    `content.encoding` is `utf-8`, or `base64` for what is no text.
    """
    info = parcel.artifact
    data = parcel.data[:content_bytes]
    is_cut = len(data) < len(parcel.data)
    try:
        # What was cut may end in the middle of a character, which is then left out.
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=not is_cut)
        encoding = "utf-8" if b"\0" not in data else "base64"
    except UnicodeDecodeError:
        text, encoding = "", "base64"
    return {
        "delivery": parcel.key,
        "workflow": {"name": parcel.workflow, "session": parcel.session},
        "step": {"path": parcel.path, "attempt": parcel.attempt, "session": info.session, "agent": info.agent},
        "artifact": {
            "id": info.artifact,
            "name": info.name,
            "version": info.version,
            "kind": info.kind,
            "digest": info.digest,
            "size_bytes": info.size_bytes,
            "sources": list(info.sources),
            "at_ns": info.at_ns,
        },
        "content": {
            "encoding": encoding,
            "data": text if encoding == "utf-8" else base64.b64encode(data).decode("ascii"),
            "truncated": is_cut,
        },
    }
