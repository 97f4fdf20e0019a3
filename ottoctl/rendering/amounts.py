"""Durations, ages, tokens, money and sizes in the few characters that a line of a terminal has for them."""

from __future__ import annotations

from collections.abc import Iterable

from ottod.protocol.usage import Usage


def duration(seconds: float) -> str:
    """`12ms`, `1.4s`, `2m05s`, `3h07m`, `4d02h`."""
    if seconds < 0.9995:
        return f"{max(0, round(seconds * 1000))}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def age(seconds: float) -> str:
    """An age without decimals: `now`, `42s`, `5m`, `3h`, `4d`."""
    whole = int(max(0.0, seconds))
    if whole < 1:
        return "now"
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if whole >= unit_s:
            return f"{whole // unit_s}{unit}"
    return f"{whole}s"


def in_seconds(seconds: float) -> str:
    """A delay in words: `1.2 s`, `45 s`, `3 min`, `2 h`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def tokens(count: int) -> str:
    """`0`, `4,012`, `12.3k`, `4.1M`: exact as long as that takes no more room."""
    if count < 10_000:
        return f"{count:,}"
    if count < 999_950:
        return f"{count / 1000:.1f}k"
    return f"{count / 1_000_000:.1f}M"


def cost(usage: Usage) -> str:
    """`$0.0123`; `$0.00` when nothing was spent; `-` when calls were made whose price is not known."""
    return usd(spent_micros(usage))


def spent_micros(usage: Usage) -> int | None:
    """Millionths of a dollar; None when no price is known. Whoever has called no model has spent nothing."""
    return 0 if usage.usd_micros is None and usage == Usage() else usage.usd_micros


def cost_of_all(usages: Iterable[Usage]) -> str:
    """The same of several together; `≥ $1.25` when the price of some of it is not known."""
    spent = [spent_micros(usage) for usage in usages]
    known = [micros for micros in spent if micros is not None]
    return partly_known(sum(known) if known or not spent else None, is_whole=len(known) == len(spent))


def partly_known(micros: int | None, *, is_whole: bool) -> str:
    """What is known of a sum; nothing at all if that is none of it."""
    text = usd(micros)
    return text if is_whole or micros is None else f"≥ {text}"


def usd(micros: int | None) -> str:
    """`$0.0123`, `$1.25`; `-` when no price is known, which is not the same as free."""
    if micros is None:
        return "-"
    dollars = micros / 1_000_000
    if 0 < dollars < 0.0001:
        return "<$0.0001"
    return f"${dollars:.4f}" if 0 < dollars < 1 else f"${dollars:.2f}"


def size(count_bytes: int) -> str:
    """`512 B`, `12.3 KiB`, `4.1 MiB`."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    value = float(count_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def usage_line(usage: Usage) -> str:
    """`12.3k in / 1,204 out / 8,000 cached`."""
    parts = [f"{tokens(usage.input_tokens)} in", f"{tokens(usage.output_tokens)} out"]
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    if cached:
        parts.append(f"{tokens(cached)} cached")
    return " / ".join(parts)
