"""What siblings feel of a fault: their latency before, during and after it, in one run of one daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.faults import CATALOGUE, SETTINGS, Fault, commit
from benchmarks.siblings import Siblings, Window, calm
from benchmarks.upheavals import UPHEAVALS
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto

CALM_S = 2.0
AFTER_S = 1.0
"""Right after the end of the fault, whatever it left to be cleared away is felt too."""

Deed = Callable[[PrivateDaemon, SyncOtto], str]
"""Does the damage, and says how it ended."""


def measure_faults(sessions: int = 50, *, rate_hz: float = 100.0, only: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """One row for each fault and upheaval, or for those named in `only`, all beside the same siblings.

    `ratio` is the siblings' p99 during the fault over their p99 in the calm before it.
    """
    rows: list[dict[str, Any]] = []
    with (
        PrivateDaemon(SETTINGS) as daemon,
        daemon.client(timeout_s=120) as otto,
        Siblings(daemon, otto, count=sessions, rate_hz=rate_hz) as siblings,
    ):
        for name, what, deed in deeds():
            if not only or name in only:
                row = {"benchmark": "fault", "fault": name, "what": what, "sessions": sessions}
                rows.append(row | _measure(daemon, otto, siblings, deed))
    return rows


def deeds() -> Iterator[tuple[str, str, Deed]]:
    """All faults and upheavals: name, description, and how to do it."""
    for fault in CATALOGUE:
        yield fault.name, fault.what, partial(ending, fault)
    for upheaval in UPHEAVALS:
        yield upheaval.name, upheaval.what, partial(_happen, upheaval.happen)


def ending(fault: Fault, daemon: PrivateDaemon, otto: SyncOtto) -> str:
    """Commits the fault: its cause, and what is wrong with it."""
    info = commit(fault, daemon, otto)
    cause = str(info.cause)
    left = f", left {info.remaining_pids}" if info.remaining_pids else ""
    return cause + left if cause in fault.ends else f"{cause}{left}, expected {' or '.join(sorted(fault.ends))}"


def _happen(happen: Callable[[PrivateDaemon, SyncOtto], None], daemon: PrivateDaemon, otto: SyncOtto) -> str:
    happen(daemon, otto)
    return "over"


def _measure(daemon: PrivateDaemon, otto: SyncOtto, siblings: Siblings, deed: Deed) -> dict[str, Any]:
    calm_ns = calm(CALM_S)
    begun_ns, load_before = time.monotonic_ns(), os.getloadavg()[0]
    ended = deed(daemon, otto)
    over_ns = time.monotonic_ns()
    after_ns = calm(AFTER_S)
    before, during = siblings.window(*calm_ns), siblings.window(begun_ns, over_ns)
    after = siblings.window(*after_ns)
    return {
        "rate_hz": siblings.rate_hz,
        "ended": ended,
        "took_s": round((over_ns - begun_ns) / 1e9, 2),
        "before": _figures(before),
        "during": _figures(during),
        "after": _figures(after),
        "ratio": round(during.p99_ms / before.p99_ms, 2) if before.p99_ms else None,
        "lost": after.lost,
        "doubled": after.doubled,
        "gaps": after.gaps,
        "silent": len(after.silent),
        "disturbed": siblings.disturbed(),
        "loop_lag_p99_ms": otto.status().loop_lag_p99_ms,
        "load": round(load_before, 2),
    }


def _figures(window: Window) -> dict[str, float]:
    return {
        "p50_ms": window.p50_ms,
        "p99_ms": window.p99_ms,
        "p999_ms": window.p999_ms,
        "max_ms": window.max_ms,
        "measured": window.measured,
    }
