"""Moments in the past as people write them: a span before now, a date, a time of today. Pure."""

from __future__ import annotations

import re
from datetime import datetime, time

from ottod.errors import OttoError

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
FORMS = "90s, 15m, 1h30m, 7d, 14:30, 2026-11-27 or 2026-11-27T14:30"
_SPAN = re.compile(r"(?:\d{1,9}[smhdw])+")
_PART = re.compile(r"(\d+)([smhdw])")


def since_ns_of(text: str, *, now_s: float) -> int:
    """Such a moment as wall clock nanoseconds. Raises OttoError."""
    try:
        if _SPAN.fullmatch(text):
            span_s = sum(int(count) * UNITS_S[unit] for count, unit in _PART.findall(text))
            return int(max(0.0, now_s - span_s) * 1e9)
        return int(max(0.0, _moment(text, now_s).timestamp()) * 1e9)
    except (ValueError, OverflowError, OSError) as error:
        raise OttoError(
            f"--since {text!r} is neither a span nor a date", code="usage", mend=f"write {FORMS}"
        ) from error


def _moment(text: str, now_s: float) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        # A time alone is today's.
        return datetime.combine(datetime.fromtimestamp(now_s), time.fromisoformat(text))
