"""The same jobs, done by Otto: with its default settings, the durable ring among them, through its public client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measured import MeasuredDaemon
from benchmarks.peers.jobs import CALM, DIE, LEAK, SIBLINGS_S, SPIN, WARM_S
from benchmarks.peers.rig import PeerError, PeerReader
from benchmarks.peers.row import (
    LEAK_BYTES,
    OTTO,
    SPIN_MS,
    Row,
    load,
    saturation_row,
    sibling_rows,
    stream_row,
    times_row,
)
from benchmarks.peers.wire import RECORD_BYTES
from benchmarks.spawn import measure_memory, measure_spawn, silent_agent
from benchmarks.stream import streaming_agent
from ottoctl.private import PrivateDaemon
from ottoctl.sync import SyncOtto, SyncSession
from ottod.protocol.events import SessionExited, SessionStarted
from ottod.protocol.specs import AgentSpec, Backoff, Group, Restart

T = TypeVar("T")
COLD = "otto-cold"
"""Otto without workers in reserve: what a start costs when the pool is empty."""

START_TIMEOUT_S = 60.0
RAMP_S, RAMP_PER_SESSION_S = 1.5, 0.015
"""Sessions begin when they hear of it, one after the other; they emit for this much longer than is measured."""

PATIENCE = (1, 2, 4, 8)
"""On a machine that is busy with other things sessions begin later; then the job is done anew with a longer ramp."""


class LateError(PeerError):
    """Not all sessions had begun when the ramp was over."""


def _patiently(job: Callable[[float], T]) -> T:
    """The job with the shortest ramp that is long enough. Raises: LateError."""
    for factor in PATIENCE[:-1]:
        try:
            return job(factor)
        except LateError:
            continue
    return job(PATIENCE[-1])


class OttoReader(PeerReader):
    """The subscriber's process; see `otto_reader`."""

    def __init__(self, daemon: PrivateDaemon, otto: SyncOtto, *, sessions: int, events: int) -> None:
        numbers = (otto.status().ring_head, sessions, events)
        self._start(["benchmarks.peers.otto_reader", daemon.endpoint, *map(str, numbers)])

    def report(self, expected: int, windows: list[tuple[int, int]]) -> dict[str, Any]:
        """Waits until all expected events are there; what it measured."""
        self._expect("done")
        self.tell(" ".join(f"{start_ns} {end_ns}" for start_ns, end_ns in windows))
        report: dict[str, Any] = json.loads(self._said.next())
        return report


def conversations(otto: SyncOtto, agent: AgentSpec, cwd: Path, count: int) -> list[SyncSession]:
    """Sessions that wait for a word."""
    started = [otto.start(spec=agent, cwd=cwd, mode="conversation") for _ in range(count)]
    for session in started:
        session.wait(idle=True, timeout_s=START_TIMEOUT_S)
    return started


async def _tell(daemon: PrivateDaemon, sessions: list[SyncSession]) -> None:
    """Says it to all at once: the first ones emit already and leave little time for one request after the other."""
    async with daemon.async_client() as otto:
        found = await asyncio.gather(*(otto.session(session.id) for session in sessions))
        await asyncio.gather(*(session.send("emit") for session in found))


def _begin(daemon: PrivateDaemon, otto: SyncOtto, sessions: list[SyncSession], within_s: float) -> int:
    """Tells all sessions to emit: when all had begun, in ns."""
    first_ns = time.monotonic_ns()
    asyncio.run(_tell(daemon, sessions))
    while sum(1 for info in otto.list() if info.state == "running") < len(sessions):
        if time.monotonic_ns() > first_ns + within_s * 1e9:
            raise LateError(f"otto: not all of {len(sessions)} sessions began to emit within {within_s:.1f} s")
        time.sleep(0.02)
    return time.monotonic_ns()


def stream(*, counts: list[int], rate_hz: int, seconds: float) -> list[Row]:
    """N sessions × R events/s for every N, each in a daemon of its own."""
    return [_patiently(partial(_stream, count, rate_hz, seconds)) for count in sorted(counts)]


def _stream(count: int, rate_hz: int, seconds: float, patience: float) -> Row:
    ramp_s = (RAMP_S + count * RAMP_PER_SESSION_S) * patience
    events = int((ramp_s + WARM_S + seconds) * rate_hz)
    with MeasuredDaemon() as daemon, daemon.client() as otto:
        agent = streaming_agent(daemon.workdir, events=events, rate_hz=rate_hz, text_bytes=RECORD_BYTES)
        sessions = conversations(otto, agent, daemon.workdir, count)
        with OttoReader(daemon, otto, sessions=count, events=events) as reader:
            start_ns = _begin(daemon, otto, sessions, ramp_s) + int(WARM_S * 1e9)
            report = reader.report(count * events, [(start_ns, start_ns + int(seconds * 1e9))])
    return stream_row(OTTO, sessions=count, rate_hz=rate_hz, expected=count * events, report=report)


def saturation(*, counts: list[int], events: int) -> list[Row]:
    """`events` in all, as fast as the sessions can."""
    rows: list[Row] = []
    for count in counts:
        expected = events // count * count
        with MeasuredDaemon() as daemon, daemon.client() as otto:
            agent = streaming_agent(daemon.workdir, events=events // count, rate_hz=0, text_bytes=RECORD_BYTES)
            sessions = conversations(otto, agent, daemon.workdir, count)
            with OttoReader(daemon, otto, sessions=count, events=events // count) as reader:
                asyncio.run(_tell(daemon, sessions))
                report = reader.report(expected, [])
        rows.append(saturation_row(OTTO, sessions=count, expected=expected, report=report))
    return rows


def siblings(*, sessions: int, rate_hz: int) -> list[Row]:
    """N sessions emit while three others, one after the other, spin, leak and die."""
    return _patiently(partial(_siblings, sessions, rate_hz))


def _siblings(sessions: int, rate_hz: int, patience: float) -> list[Row]:
    ramp_s = (RAMP_S + sessions * RAMP_PER_SESSION_S) * patience
    events = int((ramp_s + SIBLINGS_S) * rate_hz)
    with MeasuredDaemon() as daemon, daemon.client() as otto:
        work = daemon.workdir
        agent = streaming_agent(work, events=events, rate_hz=rate_hz, text_bytes=RECORD_BYTES)
        emitting = conversations(otto, agent, work, sessions)
        faults: tuple[dict[str, float], ...] = (
            {"spin": SPIN_MS / 1000},
            {"leak_bytes": LEAK_BYTES},
            {"stall": SIBLINGS_S},
        )
        spins, leaks, dies = (conversations(otto, _faulty(work, fault), work, 1)[0] for fault in faults)
        with OttoReader(daemon, otto, sessions=sessions, events=events) as reader:
            all_ns = _begin(daemon, otto, emitting, ramp_s)
            for (begin_s, _), session in zip((SPIN, LEAK, DIE), (spins, leaks, dies), strict=True):
                time.sleep(max(0.0, (all_ns - time.monotonic_ns()) / 1e9 + begin_s))
                if session is dies:
                    os.kill(session.info().pid, signal.SIGKILL)
                else:
                    session.send("now")
            windows = [(all_ns + int(a * 1e9), all_ns + int(b * 1e9)) for a, b in (CALM, SPIN, LEAK, DIE)]
            report = reader.report(sessions * events, windows)
    return sibling_rows(OTTO, sessions=sessions, rate_hz=rate_hz, expected=sessions * events, report=report)


def _faulty(workdir: Path, fault: dict[str, float]) -> AgentSpec:
    name = next(iter(fault))
    script = workdir / f"{name}.yml"
    script.write_text(json.dumps({"turns": [{"text": "done", **fault}]}))
    return AgentSpec(name=f"bench-{name.replace('_', '-')}", model=f"scripted:{script}")


def life(*, sessions: int, kills: int) -> list[Row]:
    """Spawn from the warm pool and without one, idle memory, and what a kill costs."""
    rows: list[Row] = []
    for system, warm in ((OTTO, 2), (COLD, 0)):
        found = measure_spawn(warm=warm, runs=sessions)
        rows.append(
            Row(
                measure="spawn: request → session ready",
                system=system,
                value=found["p50_ms"],
                unit="ms",
                detail=f"{found['min_ms']:.1f}–{found['max_ms']:.1f}, {sessions} times",
                load=found["load"],
                raw=found,
            )
        )
    memory = measure_memory(sessions)
    rows.append(
        Row(
            measure="private memory of an idle session",
            system=OTTO,
            value=memory["private_mib_per_session"],
            unit="MiB",
            detail=f"proportional share {memory['pss_mib_per_session']:.2f} MiB; {sessions} sessions",
            load=memory["load"],
            raw=memory,
        )
    )
    return [*rows, *_kills(kills)]


def _kills(kills: int) -> Iterable[Row]:
    """kill -9 of a worker until its next incarnation is ready, without any backoff."""
    measure = "kill -9 of a session's process → ready again"
    restart = Restart(policy="permanent", backoff=Backoff(base_s=0, jitter=0))
    times_ms: list[float] = []
    with MeasuredDaemon() as daemon, daemon.client() as otto:
        agent = silent_agent(daemon.workdir)
        spec = AgentSpec(name=agent.name, model=agent.model, restart=restart, group=Group(max_restarts=kills + 1))
        # A session of its own each time: what is measured is one restart, not the allowance of restarts.
        for session in conversations(otto, spec, daemon.workdir, kills):
            pid = session.info().pid
            stream = session.events(otto.status().ring_head)
            begun_s = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            for item in stream:
                if isinstance(item.event, SessionStarted) and item.event.pid != pid:
                    times_ms.append((time.perf_counter() - begun_s) * 1000)
                    break
                if isinstance(item.event, SessionExited):
                    why = f"not restarted: the session ended ({item.event.cause})"
                    yield Row(measure=measure, system=OTTO, value=None, unit="ms", detail=why, load=load())
                    return
            stream.close()
    yield times_row(measure, OTTO, times_ms)
