"""What is too long to be shown: its beginning, and the whole as an artifact."""

from __future__ import annotations

import msgspec

from ottod.errors import ToolError
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES
from ottod.tools.base import ToolContext


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """As much of a text as there is room for. `notes` say where the rest is."""

    text: str
    notes: tuple[str, ...] = ()
    is_cut: bool = False


async def keep_whole(text: str, context: ToolContext, *, name: str, kind: str = "file", room_bytes: int) -> Shown:
    """The text if it has room, else its beginning, with the whole kept as an artifact where that is possible."""
    data = text.encode("utf-8", "replace")
    if len(data) <= room_bytes:
        return Shown(text=text)
    shown = data[: max(0, room_bytes)].decode("utf-8", "ignore")
    note = f"shown are the first {len(shown.encode())} of {len(data)} bytes"
    if context.artifacts is None or len(data) > MAX_ARTIFACT_BYTES:
        return Shown(text=shown, notes=(note,), is_cut=True)
    try:
        info = await context.artifacts.write(data, name=name, kind=kind, key=f"{context.idempotency_key}/whole")
    except ToolError as error:
        return Shown(text=shown, notes=(f"{note}; the whole could not be kept: {error.message}",), is_cut=True)
    return Shown(text=shown, notes=(f"{note}; the whole is the artifact {info.artifact} ({info.name})",), is_cut=True)
