"""One measured figure, and the rows that a job makes of what it saw. Otto and the peers fill the same rows."""

from __future__ import annotations

import os
from typing import Any, Literal

import msgspec

OTTO = "otto"
FAULTS = ("spins 2 s", "leaks 200 MB", "dies")
SPIN_MS = 2000
LEAK_BYTES = 200_000_000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`value` is None when the system was asked and could not; `detail` then says why."""

    measure: str
    system: str
    value: float | None
    unit: str
    better: Literal["less", "more"] = "less"
    detail: str = ""
    load: float
    """The machine's load average over the last minute, right after the measurement."""
    raw: dict[str, Any] = {}


def load() -> float:
    """The machine's load average over the last minute."""
    return round(os.getloadavg()[0], 2)


def percentiles(window: dict[str, Any]) -> str:
    """Both latencies of a window, in words."""
    due, actual = window["from_scheduled"], window["from_actual"]
    return (
        f"p50 {due['p50_ms']:.2f}, max {due['max_ms']:.0f}; "
        f"from actual emission p50 {actual['p50_ms']:.2f}, p99 {actual['p99_ms']:.2f}"
    )


def faithful(report: dict[str, Any], expected: int) -> str:
    """What was lost or out of order, if anything was."""
    lost, disorder = expected - report["received"], report["out_of_order"]
    return (f"; **lost {lost:,} of {expected:,}**" if lost else "") + (
        f"; **{disorder:,} out of order**" if disorder else ""
    )


def stream_row(system: str, *, sessions: int, rate_hz: int, expected: int, report: dict[str, Any]) -> Row:
    """Latency of N × R, by scheduled time. A system that could not keep up has no p99 worth comparing."""
    window = report["windows"][0]
    return Row(
        measure=f"event latency p99, {sessions} × {rate_hz}/s",
        system=system,
        value=window["from_scheduled"]["p99_ms"] if window["measured"] else None,
        unit="ms",
        detail=percentiles(window) + faithful(report, expected),
        load=load(),
        raw=report,
    )


def saturation_row(system: str, *, sessions: int, expected: int, report: dict[str, Any]) -> Row:
    """Events per second when sessions emit without pause."""
    return Row(
        measure=f"saturated throughput, {sessions} session{'s' if sessions > 1 else ''}",
        system=system,
        value=report["events_per_s"],
        unit="events/s",
        better="more",
        detail=f"subscriber {report['subscriber_cpu_us_per_event']} µs CPU an event" + faithful(report, expected),
        load=load(),
        raw=report,
    )


def times_row(measure: str, system: str, times_ms: list[float], detail: str = "") -> Row:
    """The median of a few durations, at least one."""
    ordered = sorted(times_ms)
    return Row(
        measure=measure,
        system=system,
        value=round(ordered[len(ordered) // 2], 2),
        unit="ms",
        detail=(f"{ordered[0]:.1f}–{ordered[-1]:.1f}, {len(ordered)} times" if len(ordered) > 1 else "once") + detail,
        load=load(),
        raw={"times_ms": [round(time_ms, 3) for time_ms in ordered]},
    )


def sibling_rows(system: str, *, sessions: int, rate_hz: int, expected: int, report: dict[str, Any]) -> list[Row]:
    """The others' p99 undisturbed, and while one session spins, leaks and dies."""
    calm, *disturbed = report["windows"]
    calm_ms = calm["from_scheduled"]["p99_ms"]
    rows = []
    for fault, window in zip(("nothing happens", *FAULTS), (calm, *disturbed), strict=True):
        p99_ms = window["from_scheduled"]["p99_ms"]
        times = "" if window is calm or not calm_ms else f"{p99_ms / calm_ms:.1f} × undisturbed; "
        rows.append(
            Row(
                measure=f"siblings' p99 while one {fault}, {sessions} × {rate_hz}/s".replace(
                    "one nothing", "nothing"
                ),
                system=system,
                value=p99_ms if window["measured"] else None,
                unit="ms",
                detail=times + percentiles(window) + faithful(report, expected),
                load=load(),
                raw=window,
            )
        )
    return rows
