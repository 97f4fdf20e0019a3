"""Model providers as text: the table of `providers`."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.amounts import duration, in_seconds, tokens
from ottoctl.rendering.ansi import one_line, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.results import ModelLine, ProviderLineInfo
from ottod.settings.units import plural

STYLES = {"closed": "green", "open": "red", "half_open": "yellow"}


def providers_table(found: Sequence[ProviderLineInfo], *, now_ns: int, width: int, color: bool) -> str:
    """A line for each model: its breaker, what runs and waits, and why it is slow. `now_ns` is the wall clock."""
    rows = [
        [
            Cell(printable(provider.provider), "bold"),
            printable(line.model),
            Cell(line.breaker.replace("_", "-"), STYLES.get(line.breaker, "")),
            f"{line.running}/{line.allowance}",
            str(line.waiting),
            duration(line.oldest_wait_ms / 1000) if line.waiting else "-",
            duration(line.longest_wait_ms / 1000),
            _limits(provider),
            _state(line, now_ns),
        ]
        for provider in found
        for line in provider.models
    ]
    header = ("PROVIDER", "MODEL", "BREAKER", "RUNNING", "WAITING", "OLDEST", "LONGEST", "LIMITS", "STATE")
    return render_table(header, rows, width=width, color=color, right=frozenset({3, 4, 5, 6}))


def _limits(provider: ProviderLineInfo) -> str:
    """`64 at once, 1000/min, 400.0k tokens/min`: of all models of the provider together."""
    parts = [f"{provider.max_concurrent} at once"]
    if provider.requests_per_minute is not None:
        parts.append(f"{provider.requests_per_minute}/min")
    if provider.tokens_per_minute is not None:
        parts.append(f"{tokens(provider.tokens_per_minute)} tokens/min")
    return ", ".join(parts)


def _state(line: ModelLine, now_ns: int) -> str:
    """What is out of the ordinary; else how many of the newest calls failed."""
    parts = []
    if line.breaker == "open":
        parts.append(f"tries again in {in_seconds(max(0, line.open_until_ns - now_ns) / 1e9)}")
    if line.paused_until_ns > now_ns:
        parts.append(f"paused for {in_seconds((line.paused_until_ns - now_ns) / 1e9)}: too many requests")
    if line.reason:
        parts.append(one_line(line.reason))
    if not parts and line.calls:
        parts.append(f"{line.failed_share:.0%} of {plural(line.calls, 'call')} failed")
    return "; ".join(parts) or "-"
