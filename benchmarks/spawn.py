"""Spawn: from the request to a worker that is ready, with both SDKs loaded."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.measured import MeasuredDaemon
from ottoctl.sync import SyncOtto
from ottod.protocol.events import SessionStarted
from ottod.protocol.specs import AgentSpec


def silent_agent(workdir: Path) -> AgentSpec:
    """An agent that is never asked anything."""
    script = workdir / "silent.yml"
    script.write_text(json.dumps({"turns": [{"text": "hello"}]}))
    return AgentSpec(name="idle", model=f"scripted:{script}")


def measure_spawn(*, warm: int, runs: int = 60) -> dict[str, Any]:
    """Time from sending the request to receiving `session.started`, one session at a time."""
    times_ms: list[float] = []
    with MeasuredDaemon({"pool": {"warm": warm}}) as daemon, daemon.client() as otto:
        agent = silent_agent(daemon.workdir)
        _wait_ready(otto, agent, daemon.workdir)
        for _ in range(runs):
            deadline = time.monotonic() + 10
            while warm and otto.status().warm_workers < warm and time.monotonic() < deadline:
                time.sleep(0.01)
            begun = time.perf_counter()
            session = otto.start(spec=agent, cwd=daemon.workdir, mode="conversation")
            stream = session.events(session.from_offset)
            for item in stream:
                if isinstance(item.event, SessionStarted):
                    break
            times_ms.append((time.perf_counter() - begun) * 1000)
            stream.close()
            session.kill()
    times_ms.sort()
    return {
        "benchmark": "spawn",
        "pool": warm,
        "runs": runs,
        "p50_ms": round(times_ms[len(times_ms) // 2], 2),
        "p90_ms": round(times_ms[int(len(times_ms) * 0.9)], 2),
        "min_ms": round(times_ms[0], 2),
        "max_ms": round(times_ms[-1], 2),
        "load": round(os.getloadavg()[0], 2),
    }


def _wait_ready(otto: SyncOtto, agent: AgentSpec, cwd: Path) -> None:
    """The zygote has imported everything once the first session has run."""
    session = otto.start(spec=agent, cwd=cwd, mode="conversation")
    session.wait(idle=True)
    session.kill()


def measure_memory(sessions: int = 50) -> dict[str, Any]:
    """Private memory and proportional share of idle sessions, in MiB, and what root and the zygote need."""
    with MeasuredDaemon() as daemon, daemon.client() as otto:
        agent = silent_agent(daemon.workdir)
        started = [otto.start(spec=agent, cwd=daemon.workdir, mode="conversation") for _ in range(sessions)]
        for session in started:
            session.wait(idle=True)
        workers = [memory_of(s.info().pid) for s in started]
        status = otto.status()
        root, zygote = memory_of(daemon.pid), memory_of(status.zygote_pid)
    return {
        "benchmark": "memory",
        "sessions": sessions,
        "private_mib_per_session": round(sum(w["private"] for w in workers) / sessions, 2),
        "pss_mib_per_session": round(sum(w["pss"] for w in workers) / sessions, 2),
        "root_private_mib": round(root["private"], 1),
        "zygote_private_mib": round(zygote["private"], 1),
        "load": round(os.getloadavg()[0], 2),
    }


def memory_of(pid: int) -> dict[str, float]:
    """Private memory and proportional share of a process, in MiB, as `private` and `pss`."""
    sums: dict[str, float] = {"private": 0.0, "pss": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"):
            sums["private"] += int(rest.split()[0]) / 1024
        elif name == "Pss":
            sums["pss"] += int(rest.split()[0]) / 1024
    return sums
