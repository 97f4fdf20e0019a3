"""Texts that are too long, cut in the middle: both ends are kept, and a mark between them says what is missing."""

from __future__ import annotations


def cut_middle(text: str, max_bytes: int, *, note: str = "") -> str:
    """The text, with its middle replaced by a mark if it exceeds `max_bytes` in UTF-8. `note` is said in the mark."""
    size_bytes = len(text.encode("utf-8", "replace"))
    if size_bytes <= max_bytes:
        return text
    head = clip(text, max_bytes - max_bytes // 2, from_end=False)
    tail = clip(text, max_bytes // 2, from_end=True)
    missing = size_bytes - len(head.encode("utf-8", "replace")) - len(tail.encode("utf-8", "replace"))
    return head + cut_mark(missing, note=note) + tail


def clip(text: str, max_bytes: int, *, from_end: bool) -> str:
    """The beginning of a text, or its end, in at most so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    if max_bytes <= 0:
        return ""
    return (data[-max_bytes:] if from_end else data[:max_bytes]).decode("utf-8", "ignore")


def cut_mark(missing_bytes: int, *, note: str = "") -> str:
    """What stands where something is missing."""
    return f"\n[… {missing_bytes} bytes not shown{'; ' if note else ''}{note} …]\n"
