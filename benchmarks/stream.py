"""Streaming: N sessions that each emit at a fixed rate, through the ring, to one outside subscriber."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measured import MeasuredDaemon
from ottod.protocol.specs import AgentSpec

DEADLINE_S = 300.0


class Subscriber:
    """The subscriber's process, and the conversation with it."""

    def __init__(self, endpoint: str, *, sessions: int, from_offset: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.subscriber", endpoint, str(sessions), str(from_offset)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self._expect("ready")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"the subscriber said {said!r}, not {word!r}")

    def report(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        """Waits until it has everything, and gives its measurement of the window."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._expect("done")
        self._process.stdin.write(f"{start_ns} {end_ns}\n")
        self._process.stdin.flush()
        report: dict[str, Any] = json.loads(self._process.stdout.readline())
        self._process.wait(30)
        return report

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def streaming_agent(workdir: Path, *, events: int, rate_hz: float, text_bytes: int) -> AgentSpec:
    """An agent whose model emits `events` measured deltas."""
    script = workdir / f"stream-{events}-{rate_hz:g}.yml"
    stream = {"events": events, "rate_hz": rate_hz, "text_bytes": text_bytes}
    script.write_text(json.dumps({"turns": [{"stream": stream}]}))
    return AgentSpec(name="bench", model=f"scripted:{script}")


def cpu_s(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_stream(sessions: int, *, rate_hz: float = 100.0, seconds: float = 10.0) -> dict[str, Any]:
    """p50, p99 and maximum latency at `sessions` × `rate_hz`, with loss and order checked."""
    started_s = time.monotonic()
    with MeasuredDaemon({"sessions": {"max_live": 2000}}) as daemon:
        # Long enough that all sessions are streaming during the window, however long starting them takes.
        ramp_s = 4.0 + sessions * 0.12
        events = int((ramp_s + seconds + 1) * rate_hz)
        agent = streaming_agent(daemon.workdir, events=events, rate_hz=rate_hz, text_bytes=64)
        subscriber = Subscriber(daemon.endpoint, sessions=sessions)
        try:
            with daemon.client() as otto:
                begun_s = time.monotonic()
                for _ in range(sessions):
                    otto.start(spec=agent, task="stream", cwd=daemon.workdir)
                starts_s = time.monotonic() - begun_s
                while sum(1 for s in otto.list() if s.state == "running") < sessions:
                    if time.monotonic() - begun_s > ramp_s:
                        raise RuntimeError(f"not all {sessions} sessions ran within {ramp_s:.0f} s")
                    time.sleep(0.05)
                time.sleep(0.5)
                start_ns, root_before = time.monotonic_ns(), cpu_s(daemon.pid)
                time.sleep(seconds)
                end_ns, root_after = time.monotonic_ns(), cpu_s(daemon.pid)
                load = os.getloadavg()[0]
                report = subscriber.report(start_ns, end_ns)
                status = otto.status()
        finally:
            subscriber.close()
    return {
        "benchmark": "stream",
        "sessions": sessions,
        "rate_hz": rate_hz,
        "expected": events * sessions,
        "lost": events * sessions - report["deltas"],
        "start_all_s": round(starts_s, 2),
        "root_cpu_share": round((root_after - root_before) / seconds, 3),
        "loop_lag_p99_ms": status.loop_lag_p99_ms,
        "load": round(load, 2),
        "took_s": round(time.monotonic() - started_s, 1),
        **report,
    }


def measure_saturation(sessions: int = 1, *, events: int = 1_000_000) -> dict[str, Any]:
    """Events per second when sessions emit as fast as they can: worker → ring → subscriber."""
    with MeasuredDaemon() as daemon:
        agent = streaming_agent(daemon.workdir, events=events // sessions, rate_hz=0, text_bytes=40)
        subscriber = Subscriber(daemon.endpoint, sessions=sessions)
        try:
            with daemon.client() as otto:
                for _ in range(sessions):
                    otto.start(spec=agent, task="stream", cwd=daemon.workdir)
                report = subscriber.report(0, 0)
                load = os.getloadavg()[0]
        finally:
            subscriber.close()
    expected = events // sessions * sessions
    return {
        "benchmark": "saturation",
        "sessions": sessions,
        "expected": expected,
        "lost": expected - report["deltas"],
        "events_per_s": report["events_per_s"],
        "gaps": report["gaps"],
        "out_of_order": report["out_of_order"],
        "subscriber_cpu_us_per_event": report["subscriber_cpu_us_per_event"],
        "load": round(load, 2),
    }
