"""The daemon's status as a page."""

from __future__ import annotations

from ottoctl.rendering.amounts import duration, size
from ottoctl.rendering.ansi import one_line, paint
from ottod.protocol.control import DaemonStatus


def status_page(status: DaemonStatus, *, color: bool) -> str:
    """A line for each fact, counters last."""
    sessions = ", ".join(f"{count} {state}" for state, count in sorted(status.sessions.items()) if count)
    used = f"{size(status.ring_used_bytes)} of {size(status.ring_bytes)}"
    lines = [
        ("daemon", f"ottod {status.version}, protocol {status.protocol}, pid {status.pid}"),
        ("up", duration(status.uptime_s)),
        ("sessions", sessions or "none"),
        ("zygote", f"pid {status.zygote_pid}, generation {status.zygote_generation}, {status.warm_workers} warm"),
        ("ring", f"{used}, offsets {status.ring_tail}-{status.ring_head}"),
        ("recovered", one_line(status.ring_recovery)),
        ("clients", f"{status.clients}, {status.subscriptions} subscriptions"),
        ("loop lag", f"{status.loop_lag_p99_ms:.1f} ms p99"),
        ("memory", size(status.rss_bytes)),
        ("runtime", status.runtime_dir),
        ("state", status.state_dir),
        ("config", status.config_file),
        *((f"{layer}", one_line(how)) for layer, how in sorted(status.isolation.items())),
        *((name.replace("_", " "), str(count)) for name, count in sorted(status.counters.items())),
    ]
    width = max(len(name) for name, _ in lines)
    return "".join(f"{paint(name.ljust(width), 'bold', color=color)}  {text}\n" for name, text in lines if text)
