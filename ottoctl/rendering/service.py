"""The service's status as a page."""

from __future__ import annotations

from ottoctl.rendering.amounts import duration, size
from ottoctl.rendering.ansi import one_line, paint
from ottoctl.service import ServiceStatus
from ottod.settings.units import plural

ORIGIN = {"": "", "ottoctl": "by ottoctl", "package": "by a package", "elsewhere": "not by ottoctl"}


def service_page(status: ServiceStatus, *, color: bool) -> str:
    """A line for each fact that there is."""
    since = (
        f" since {status.active_since} ({duration(status.active_for_s)})" if status.active_for_s is not None else ""
    )
    result = f", {status.result}" if status.result not in ("", "success") else ""
    sessions = [status.sessions_active]
    if status.sessions_tasks is not None and status.sessions_active == "active":
        sessions.append(plural(status.sessions_tasks, "task"))
        sessions.append(size(status.sessions_memory_bytes or 0))
    lines = [
        ("service", f"{status.unit} ({status.scope}, systemd {status.systemd})"),
        ("installed", f"{status.file}, {ORIGIN[status.from_]}" if status.installed else "no"),
        ("enabled", status.enabled),
        ("active", f"{status.active} ({status.substate}{result}){since}"),
        ("pid", str(status.main_pid) if status.main_pid else ""),
        ("says", one_line(status.status)),
        ("restarts", str(status.restarts) if status.installed else ""),
        ("watchdog", f"{status.watchdog_s:g} s" if status.watchdog_s else "none"),
        ("sessions", f"{status.sessions_unit}: {', '.join(sessions)}"),
        ("lingers", {True: "yes", False: "no", None: ""}[status.lingers]),
    ]
    width = max(len(name) for name, _ in lines)
    return "".join(f"{paint(name.ljust(width), 'bold', color=color)}  {text}\n" for name, text in lines if text)
