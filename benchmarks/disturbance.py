"""What siblings feel of a fault: their latency before, during and after it, in one run of one daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

from benchmarks.faults import CATALOGUE, SETTINGS, Fault, FaultError, commit
from benchmarks.measured import MeasuredDaemon
from benchmarks.siblings import Siblings, Window, calm
from benchmarks.upheavals import UPHEAVALS, Upheaval
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto
from ottod.errors import OttoError

CALM_S = 2.0
AFTER_S = 1.0
"""Right after the end of the fault, whatever it left to be cleared away is felt too."""

DURING_S, MAX_TIMES = 2.0, 40
"""A fault that is over sooner is committed again, so that its window has events enough for a p99."""

Deed = Callable[[PrivateDaemon, SyncOtto], Generator[None, None, str]]
"""Prepares up to its one `yield`, then does the damage, and says how it ended."""


def measure_faults(sessions: int = 50, *, rate_hz: float = 100.0, only: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """One row for each fault and upheaval, or for those named in `only`, all beside the same siblings.

    `ratio` is the siblings' p99 during the fault over their p99 in the calm before it.
    """
    rows: list[dict[str, Any]] = []
    with (
        MeasuredDaemon(SETTINGS) as daemon,
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
        yield fault.name, fault.what, partial(_again_and_again, fault)
    for upheaval in UPHEAVALS:
        yield upheaval.name, upheaval.what, partial(_once, upheaval)


def ending(fault: Fault, daemon: PrivateDaemon, otto: SyncOtto) -> str:
    """Commits the fault: its cause, and what is wrong with it. Raises FaultError, OttoError."""
    info = commit(fault, daemon, otto)
    left = f" and left {info.remaining_pids}" if info.remaining_pids else ""
    if str(info.cause) not in fault.ends or left:
        raise FaultError(f"ended as {info.cause}{left}, expected {' or '.join(sorted(fault.ends))}")
    return str(info.cause)


def _again_and_again(fault: Fault, daemon: PrivateDaemon, otto: SyncOtto) -> Generator[None, None, str]:
    yield
    begun_s = time.monotonic()
    endings: list[str] = []
    while len(endings) < MAX_TIMES and (not endings or time.monotonic() < begun_s + DURING_S):
        endings.append(ending(fault, daemon, otto))
    return f"{len(endings)} × {' or '.join(sorted(set(endings)))}"


def _once(upheaval: Upheaval, daemon: PrivateDaemon, otto: SyncOtto) -> Generator[None, None, str]:
    yield from upheaval.acts(daemon, otto)
    return "over"


def _done(steps: Generator[None, None, str]) -> str:
    """Does the damage. The other faults are still worth measuring if it fails: the row says what went wrong."""
    try:
        next(steps)
    except StopIteration as stop:
        return str(stop.value)
    except (FaultError, OttoError) as error:
        return f"FAILED: {error}"
    finally:
        steps.close()
    return "FAILED: it is not over"


def _measure(daemon: PrivateDaemon, otto: SyncOtto, siblings: Siblings, deed: Deed) -> dict[str, Any]:
    steps = deed(daemon, otto)
    try:
        next(steps)
    except (FaultError, OttoError) as error:
        return {"rate_hz": siblings.rate_hz, "ended": f"FAILED to begin: {error}", "load": _load()}
    calm_ns = calm(CALM_S)
    load, begun_ns = _load(), time.monotonic_ns()
    ended = _done(steps)
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
        "load": load,
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _figures(window: Window) -> dict[str, float]:
    return {
        "p50_ms": window.p50_ms,
        "p99_ms": window.p99_ms,
        "p999_ms": window.p999_ms,
        "max_ms": window.max_ms,
        "measured": window.measured,
    }
