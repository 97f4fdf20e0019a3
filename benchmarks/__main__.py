"""`make bench`: measures Otto on this machine and sets the figures beside their targets.

    python -m benchmarks [CASE …] [--sessions 5,50,100,200] [--seconds 10] [--quick] [--json FILE]

The cases: stream, saturation, spawn, memory, replay; faults (what siblings feel of each fault), recovery (a worker
or root is killed, a tree is stopped), fanout (a hundred steps ten at a time; a child that floods), crowd (500 and
1,000 idle sessions). Without any, all of them.

Every figure is measured from outside, through the public client, against a daemon of the benchmark's own with default
settings, the durable ring among them. Nothing else should run meanwhile; the load is printed beside each row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.disturbance import measure_faults
from benchmarks.fan_out import measure_fan_out, measure_flood
from benchmarks.recovery import measure_crowd, measure_rebirth, measure_resume, measure_tree_stop
from benchmarks.replay import measure_replay
from benchmarks.report import CELLS
from benchmarks.spawn import measure_memory, measure_spawn
from benchmarks.stream import measure_saturation, measure_stream

ALL = ("stream", "saturation", "spawn", "memory", "replay", "faults", "recovery", "fanout", "crowd")

Row = dict[str, Any]


def rows(only: list[str], sessions: list[int], seconds: float, *, quick: bool = False) -> list[Row]:
    """Runs what was chosen, one after the other; `quick` makes faults, recovery, fanout and crowd small."""
    out: list[Row] = []

    def add(row: Row) -> None:
        out.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    if "stream" in only:
        for count in sessions:
            add(measure_stream(count, seconds=seconds))
    if "saturation" in only:
        add(measure_saturation(1))
        add(measure_saturation(4))
    if "spawn" in only:
        add(measure_spawn(warm=2))
        add(measure_spawn(warm=0))
    if "memory" in only:
        add(measure_memory())
    if "replay" in only:
        add(measure_replay(sessions=1, rate_hz=0, events=700_000))
        add(measure_replay(sessions=50, rate_hz=100, events=100_000))
    if "faults" in only:
        for row in measure_faults(5, rate_hz=20) if quick else measure_faults():
            add(row)
    if "recovery" in only:
        add(measure_resume(10 if quick else 50))
        add(measure_rebirth(5, rate_hz=20, roots=2) if quick else measure_rebirth())
        add(measure_tree_stop(3, 3) if quick else measure_tree_stop())
    if "fanout" in only:
        add(measure_fan_out(20, at_once=5, rounds=2) if quick else measure_fan_out())
        for row in measure_flood(3, rate_hz=20, seconds=1.5) if quick else measure_flood():
            add(row)
    if "crowd" in only:
        for count in (20, 40) if quick else (500, 1000):
            add(measure_crowd(count, settle_s=1) if quick else measure_crowd(count))
    return out


def table(found: list[Row]) -> str:
    """The figures beside their targets, as Markdown."""
    lines = ["| measure | measured | target | load |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(CELLS[row['benchmark']](row))} | {row['load']} |" for row in found)])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Otto on this machine.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure: " + ", ".join(ALL))
    parser.add_argument("--only", default="", help="the same, comma-separated")
    parser.add_argument("--sessions", default="5,50,100,200", help="session counts of the stream benchmark")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each stream measurement")
    parser.add_argument("--quick", action="store_true", help="a short look at faults, recovery, fanout and crowd")
    parser.add_argument("--json", default="bench.json", help="where the raw figures go")
    options = parser.parse_args()
    only = [*options.cases, *filter(None, options.only.split(","))] or list(ALL)
    if unknown := set(only) - set(ALL):
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")
    found = rows(only, [int(n) for n in options.sessions.split(",")], options.seconds, quick=options.quick)
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    Path(options.json).write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
