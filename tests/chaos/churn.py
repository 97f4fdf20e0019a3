"""Starts and ends sessions, thousands in a row and several at a time, and looks for whatever grows.

    python -m tests.chaos.churn --sessions 2000

Half of the sessions complete by themselves, the others are stopped, killed through the daemon, or lose their worker
to SIGKILL; every tenth runs a tool. A tenth of all is the warm-up. What root and zygote hold is read behind it
and at the end, each time when no session lives and ended ones are pruned; `gauges.BOUNDS` says what may have grown.
The exit status is 1 if anything grew beyond its bound, or ended otherwise than it should.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ottoctl.sync import SyncOtto
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.specs import AgentSpec
from tests.chaos.gauges import BOUNDS, Gauges, excesses, read_gauges
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.program import run_program

RETAIN = 30
AT_ONCE = 8
ANSWER_S = 120.0
SETTLE_S = 120.0
SETTINGS: dict[str, dict[str, object]] = {
    "ring": {"size_bytes": 4 * 1024 * 1024, "segment_bytes": 128 * 1024},
    "sessions": {"retain_ended": RETAIN, "worker_priority": "idle"},
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "brief": {"turns": [{"text": "It is done, and there is nothing more to say."}]},
    "tool": {
        "turns": [
            {"tools": [{"name": "shell", "arguments": {"command": "echo done"}}]},
            {"text": "The tool is done."},
        ]
    },
    "long": {"turns": [{"stream": {"events": 1_000_000, "rate_hz": 50, "text_bytes": 40}}]},
}
EXPECTED = {
    "complete": "completed",
    "tool": "completed",
    "stop": "cancelled",
    "kill": "cancelled",
    "crash": "crashed",
}
"""How a session is ended → the cause that it must have."""


class Churn:
    """Several threads, a client each, share what is left to be done."""

    def __init__(self, daemon: RealDaemon, seed: int) -> None:
        self.daemon = daemon
        self.seed = seed
        self.ends: Counter[str] = Counter()
        self.errors: list[str] = []
        self.seen: set[str] = set()
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        for name, script in SCRIPTS.items():
            (daemon.workdir / f"{name}.yml").write_text(yaml.safe_dump(script))

    def run(self, sessions: int) -> None:
        """That many sessions, from the first start to the last end."""
        todo = [self._way(number) for number in range(sessions)]
        threads = [threading.Thread(target=self._work, args=(todo,)) for _ in range(min(AT_ONCE, sessions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _way(self, number: int) -> str:
        if number % 10 == 9:
            return "tool"
        return self._random.choices(("complete", "stop", "kill", "crash"), (5, 2, 1, 2))[0]

    def _work(self, todo: list[str]) -> None:
        try:
            with self.daemon.client(timeout_s=ANSWER_S) as otto:
                while True:
                    with self._lock:
                        if not todo or self.errors:
                            return
                        way = todo.pop()
                    self._one(otto, way)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs into the report, not onto a thread's stderr
            with self._lock:
                self.errors.append(f"{type(error).__name__}: {error}")

    def _one(self, otto: SyncOtto, way: str) -> None:
        name = {"complete": "brief", "tool": "tool"}.get(way, "long")
        spec = AgentSpec(
            name=name, model=f"scripted:{self.daemon.workdir}/{name}.yml", tools=("shell",) if way == "tool" else ()
        )
        session = otto.start(spec=spec, task="go", cwd=self.daemon.workdir)
        if way in ("stop", "kill", "crash"):
            wait_for("it runs", lambda: session.info().state == "running", ANSWER_S)
        if way == "stop":
            session.stop(grace_s=5)
        elif way == "kill":
            session.kill()
        elif way == "crash":
            worker = identify(session.info().pid)
            assert worker is not None and send_signal(worker, signal.SIGKILL)
        end = session.wait(timeout_s=ANSWER_S).cause
        cause = end.kind if end is not None else "none"
        with self._lock:
            self.seen.add(session.id)
            self.ends[f"{way}: {cause}"] += 1
            if cause != EXPECTED[way]:
                self.errors.append(f"{session.id}: {way} ended as {cause}")

    def settle(self) -> Gauges:
        """A reading, when no session lives, all is pruned and the warm pool is full again."""
        with self.daemon.client(timeout_s=ANSWER_S) as otto:

            def is_quiet() -> bool:
                status = otto.status()
                return not otto.list() and status.warm_workers >= 2 and bool(status.zygote_pid)

            wait_for("no session lives", is_quiet, SETTLE_S)
            zygote_pid = otto.status().zygote_pid

        def read() -> Gauges | None:
            gauges = read_gauges(self.daemon.pid, zygote_pid, self.daemon.base, self.seen.__contains__)
            return gauges if not gauges.zombies and not gauges.cgroup_leaves else None

        deadline_s = time.monotonic() + 10
        while (found := read()) is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return found or read_gauges(self.daemon.pid, zygote_pid, self.daemon.base, self.seen.__contains__)


def churn(daemon: RealDaemon, *, sessions: int, seed: int) -> dict[str, Any]:
    """Runs it on a daemon that is up; gives the report, whose `problems` should be empty."""
    began_s = time.monotonic()
    job = Churn(daemon, seed)
    # The ring and the retained sessions must be full before anything is compared.
    warm_up = max(sessions // 10, RETAIN + 25)
    job.run(warm_up)
    before = job.settle()
    job.run(sessions - warm_up)
    after = job.settle()
    problems = [*job.errors, *excesses(before, after)]
    if sum(job.ends.values()) != sessions:
        problems.append(f"{sum(job.ends.values())} sessions ended, {sessions} were to")
    return {
        "sessions": sessions,
        "warm_up": warm_up,
        "seed": seed,
        "took_s": round(time.monotonic() - began_s, 1),
        "ends": dict(sorted(job.ends.items())),
        "before": before._asdict(),
        "after": after._asdict(),
        "bounds": {name: bound.growth for name, bound in BOUNDS.items()},
        "problems": problems,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    verdict = "FAILED" if report["problems"] else "nothing grew beyond its bound"
    lines = [
        f"# Churn: {verdict}",
        "",
        f"{report['sessions']} sessions in {report['took_s']:g} s, {AT_ONCE} at a time, seed {report['seed']}.",
        "",
        f"| held | after {report['warm_up']} sessions | at the end | may grow by |",
        "|---|---:|---:|---:|",
    ]
    for name, growth in report["bounds"].items():
        lines.append(f"| {name} | {report['before'][name]:,} | {report['after'][name]:,} | {growth:,} |")
    lines += ["", "| end | sessions |", "|---|---:|", *(f"| {k} | {v} |" for k, v in report["ends"].items()), ""]
    lines += [f"- {problem}" for problem in report["problems"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.churn")
    parser.add_argument("--sessions", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--seed", type=int, default=1, help="of the ways in which they end")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    options = parser.parse_args(arguments)
    if options.sessions <= RETAIN + 25:
        parser.error(f"--sessions must be more than {RETAIN + 25}, which warm it up")
    daemon = RealDaemon(SETTINGS)
    try:
        daemon.start()
        report = churn(daemon, sessions=options.sessions, seed=options.seed)
    finally:
        daemon.close()
    print(markdown(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    run_program(main)
