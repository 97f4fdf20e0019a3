"""The daemon's status as a page."""

from __future__ import annotations

from ottoctl.rendering.amounts import duration, size
from ottoctl.rendering.ansi import one_line, paint
from ottod.protocol.results import DaemonStatus

NOTABLE_LAG_MS = 50.0
"""Below this the loop's lag is no news."""


def status_page(status: DaemonStatus, *, verbose: bool = False, color: bool) -> str:
    """A line for each fact: what a user wants to know first; with `verbose` the inner instruments too."""
    sessions = ", ".join(f"{count} {state}" for state, count in sorted(status.sessions.items()) if count)
    lag_ms = status.loop_lag_p99_ms
    lines = [
        ("daemon", f"ottod {status.version}, pid {status.pid}, up {duration(status.uptime_s)}"),
        ("sessions", sessions or "none"),
        ("isolation", _isolation(status)),
        ("memory", f"{size(status.rss_bytes)} (the daemon itself)" if status.rss_bytes else ""),
        ("loop lag", f"{lag_ms:.1f} ms p99: it is overloaded" if lag_ms > NOTABLE_LAG_MS and not verbose else ""),
        ("config", status.config_file),
        ("state", status.state_dir),
        ("runtime", status.runtime_dir),
        *(_inner(status) if verbose else ()),
    ]
    width = max(len(name) for name, _ in lines)
    return "".join(f"{paint(name.ljust(width), 'bold', color=color)}  {text}\n" for name, text in lines if text)


def _isolation(status: DaemonStatus) -> str:
    """The layers by how far they hold; `doctor` tries them, and has the reasons."""
    parts = []
    for word, shown in (("yes", "{}"), ("partly", "{} partly"), ("no", "{} missing")):
        layers = [layer for layer, how in status.isolation.items() if how.split(":")[0].split(" ")[0] == word]
        if layers:
            parts.append(shown.format(", ".join(layers)))
    return "; ".join(parts)


def _inner(status: DaemonStatus) -> list[tuple[str, str]]:
    used = f"{size(status.ring_used_bytes)} of {size(status.ring_bytes)}"
    return [
        ("protocol", str(status.protocol)),
        ("instance", status.instance),
        ("zygote", f"pid {status.zygote_pid}, generation {status.zygote_generation}, {status.warm_workers} warm"),
        ("ring", f"{used}, offsets {status.ring_tail}-{status.ring_head}"),
        ("recovered", one_line(status.ring_recovery)),
        ("clients", f"{status.clients}, {status.subscriptions} subscriptions"),
        ("loop lag", f"{status.loop_lag_p99_ms:.1f} ms p99"),
        *((layer, one_line(how)) for layer, how in sorted(status.isolation.items())),
        *((name.replace("_", " "), str(count)) for name, count in sorted(status.counters.items())),
    ]
