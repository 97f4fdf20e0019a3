"""What is too long to be shown: a part of it, and the whole as an artifact. Secrets go before anything is cut."""

from __future__ import annotations

import asyncio

import msgspec

from ottod.core.cut_text import clip, cut_middle
from ottod.errors import ToolError
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES
from ottod.tools.base import ToolContext

MAX_KEPT_BYTES = 4 * 1024 * 1024
"""Of a program's output, if it is to be kept; of a longer one the middle is missing there as well."""
LONG_CHARS = 256 * 1024
"""From here on looking for secrets is work for a thread."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """As much of a text as there is room for. `notes` say where the rest is."""

    text: str
    notes: tuple[str, ...] = ()
    is_cut: bool = False


async def keep_whole(text: str, context: ToolContext, *, name: str, kind: str = "file", room_bytes: int) -> Shown:
    """The text if it has room, else its beginning, with the whole kept as an artifact where that is possible."""
    text = await without_secrets(text, context)
    size_bytes = len(text.encode("utf-8", "replace"))
    if size_bytes <= room_bytes:
        return Shown(text=text)
    shown = clip(text, max(0, room_bytes), from_end=False)
    note = f"shown are the first {len(shown.encode('utf-8', 'replace'))} of {size_bytes} bytes"
    where = await _kept(text, context, name=name, kind=kind)
    return Shown(text=shown, notes=(f"{note}; {where}" if where else note,), is_cut=True)


async def keep_output(text: str, context: ToolContext, *, name: str, is_truncated: bool = False) -> Shown:
    """The same for a program's output, whose end says as much as its beginning: the middle is what is not shown.

    `is_truncated`: it is not the whole as it is, and says so where something is missing.
    """
    text = await without_secrets(text, context)
    if len(text.encode("utf-8", "replace")) <= context.max_output_bytes:
        return Shown(text=text, is_cut=is_truncated)
    what = f"its first and last {MAX_KEPT_BYTES // 2} bytes are" if is_truncated else "the whole is"
    where = await _kept(text, context, name=name, kind="file", what=what)
    return Shown(text=cut_middle(text, context.max_output_bytes, note=where), is_cut=True)


async def without_secrets(text: str, context: ToolContext) -> str:
    """The text as it may be cut: half a secret is not known as one."""
    if len(text) < LONG_CHARS:
        return context.redactor.text(text)
    return await asyncio.to_thread(context.redactor.text, text)


async def _kept(text: str, context: ToolContext, *, name: str, kind: str, what: str = "the whole is") -> str:
    """Where the whole is, or why nowhere; empty where there is no place for it."""
    data = text.encode("utf-8", "replace")
    if context.artifacts is None or len(data) > MAX_ARTIFACT_BYTES:
        return ""
    key = f"{context.idempotency_key}/whole"
    try:
        info = await context.artifacts.write(data, name=name, kind=kind, key=key, is_output=True)
    except ToolError as error:
        return f"the whole could not be kept: {error.message}"
    return f"{what} the artifact {info.artifact} ({info.name})"
