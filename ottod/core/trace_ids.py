"""The ids of traces and spans, made from what is known anyway, and the header that carries them.

A session and all below it are one trace. Its id follows from the topmost session's id, and a span's from the names of
what it spans: so an incarnation knows the spans of the one before it, a parent the span that its child will be under,
and root the trace of a session, without anybody having to tell.

Source: W3C Trace Context (traceparent).
"""

from __future__ import annotations

import re
from hashlib import blake2b

TRACE_BYTES = 16
SPAN_BYTES = 8
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def trace_id(session: str) -> int:
    """The trace of a topmost session and all below it. Never 0."""
    return _number("trace", session, size=TRACE_BYTES)


def span_id(*names: object) -> int:
    """The span of something that these names tell from everything else. Never 0."""
    return _number("span", *names, size=SPAN_BYTES)


def traceparent(trace: int, span: int) -> str:
    """Both as a header."""
    return f"00-{trace:032x}-{span:016x}-01"


def parse_traceparent(text: str) -> tuple[int, int] | None:
    """Trace and span of a header; None if it is none."""
    found = TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace, span = int(found[1], 16), int(found[2], 16)
    return (trace, span) if trace and span else None


def _number(*names: object, size: int) -> int:
    digest = blake2b("\0".join(str(name) for name in names).encode(), digest_size=size, person=b"otto").digest()
    return int.from_bytes(digest, "big") or 1
