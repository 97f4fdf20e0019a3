"""Cuts texts to what an event can carry."""

from __future__ import annotations

from ottod.protocol.events import MAX_EVENT_TEXT_BYTES

MAX_ARGUMENTS_BYTES = 8 * 1024
"""Of a tool call's arguments, in an event; the journal has them whole."""


def cut(text: str, limit_bytes: int = MAX_EVENT_TEXT_BYTES) -> tuple[str, bool]:
    """The text, or as much of its beginning as fits `limit_bytes` of UTF-8, and whether it was cut."""
    if len(text) * 4 <= limit_bytes:
        return text, False
    data = text.encode("utf-8", "replace")
    if len(data) <= limit_bytes:
        return text, False
    return data[:limit_bytes].decode("utf-8", "ignore"), True


def encodable(text: str) -> str:
    """Text that any encoder accepts: halves of characters, which documents may name, become replacement marks."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def pieces(text: str, limit_bytes: int = MAX_EVENT_TEXT_BYTES) -> list[str]:
    """The text in pieces that each fit `limit_bytes` of UTF-8, whatever its characters; none of an empty text."""
    if not text:
        return []
    if len(text) * 4 <= limit_bytes:
        return [text]
    step = max(1, limit_bytes // 4)
    return [text[i : i + step] for i in range(0, len(text), step)]
