"""Sizes, durations and counts as people write them: `512 MiB`, `2G`, `90s`, `5m`, `1h30m`, `1 turn`, `2 turns`."""

from __future__ import annotations

import re

SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": 1024,
    "kib": 1024,
    "kb": 1000,
    "m": 1024**2,
    "mib": 1024**2,
    "mb": 1000**2,
    "g": 1024**3,
    "gib": 1024**3,
    "gb": 1000**3,
    "t": 1024**4,
    "tib": 1024**4,
    "tb": 1000**4,
}
"""Bytes per unit, lower case. As in systemd, a bare letter is a power of 1024."""

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
"""Seconds per unit."""

_SIZE = re.compile(r"\s*([0-9][0-9_]{0,20}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]{0,3})\s*", re.ASCII)
_DURATION_PART = re.compile(r"\s*([0-9][0-9_]{0,20}(?:\.[0-9]{1,9})?)\s*(ms|min|s|m|h|d)", re.ASCII)


def parse_size(text: str) -> int:
    """The bytes that a text such as `512 MiB` names. Raises: ValueError."""
    match = _SIZE.fullmatch(text)
    if not match or match[2].lower() not in SIZE_UNITS:
        raise ValueError(f"not a size: {text!r}")
    size = float(match[1].replace("_", "")) * SIZE_UNITS[match[2].lower()]
    if size > 2**62:
        raise ValueError(f"too large: {text!r}")
    return int(size)


def parse_duration(text: str) -> float:
    """The seconds that a text such as `90s`, `5m` or `1h30m` names. Raises: ValueError."""
    seconds, position = 0.0, 0
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if not match:
            raise ValueError(f"not a duration: {text!r}")
        seconds += float(match[1].replace("_", "")) * DURATION_UNITS[match[2]]
        position = match.end()
    if not text.strip():
        raise ValueError("not a duration: an empty text")
    return seconds


def format_size(size_bytes: float) -> str:
    """A size in the largest binary unit that divides it: `64 MiB`; bytes otherwise."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes / factor:g} {unit}"
    return f"{size_bytes:g}"


def format_duration(seconds: float) -> str:
    """A duration in the largest unit that divides it: `5m`, `0.2s`; 0 without one."""
    for unit, factor in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % factor == 0:
            return f"{seconds / factor:g}{unit}"
    return f"{seconds:g}s" if seconds else "0"


def plural(count: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{count} {noun}{ending}"
