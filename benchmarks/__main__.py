"""`make bench`: measures Otto on this machine and sets the figures beside their targets.

    python -m benchmarks [--only stream,saturation,spawn,memory,replay] [--sessions 5,50,100,200] [--json FILE]

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

from benchmarks.replay import measure_replay
from benchmarks.spawn import measure_memory, measure_spawn
from benchmarks.stream import measure_saturation, measure_stream

ALL = ("stream", "saturation", "spawn", "memory", "replay")


def rows(only: list[str], sessions: list[int], seconds: float) -> list[dict[str, Any]]:
    """Runs what was chosen, one after the other."""
    out: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
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
    return out


def table(found: list[dict[str, Any]]) -> str:
    """The figures beside their targets, as Markdown."""
    lines = ["| measure | measured | target | load |", "|---|---|---|---|"]
    targets = {200: "p99 ≤ 10 ms, no loss", 500: "p99 ≤ 100 ms"}
    for row in found:
        match row["benchmark"]:
            case "stream":
                p = row["from_scheduled"]
                what = f"event latency, {row['sessions']} × {row['rate_hz']:g}/s"
                value = (
                    f"p50 {p['p50_ms']:.2f}, p99 {p['p99_ms']:.2f}, max {p['max_ms']:.1f} ms; "
                    f"lost {row['lost']}, out of order {row['out_of_order']}, gaps {row['gaps']}"
                )
                target = targets.get(row["sessions"], "")
            case "saturation":
                what = f"saturated throughput, {row['sessions']} session(s)"
                value, target = f"{row['events_per_s']:,} events/s; lost {row['lost']}", "≥ 500,000/s"
            case "spawn":
                what = f"request → ready, {'warm pool' if row['pool'] else 'cold'}"
                value = f"p50 {row['p50_ms']}, p90 {row['p90_ms']} ms"
                target = "p50 ≤ 3 ms" if row["pool"] else "p50 ≤ 10 ms"
            case "memory":
                what = f"private memory of an idle session ({row['sessions']} of them)"
                value, target = f"{row['private_mib_per_session']} MiB", "≤ 3.5 MiB"
            case _:
                what = f"replay, {row['events'] // max(1, row['records'])} events a record"
                value = f"{row['raw_events_per_s']:,}/s raw, {row['decoded_events_per_s']:,}/s decoded"
                target = "≥ 1,000,000 events/s"
        lines.append(f"| {what} | {value} | {target} | {row['load']} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Otto on this machine.")
    parser.add_argument("--only", default=",".join(ALL), help="comma-separated: " + ", ".join(ALL))
    parser.add_argument("--sessions", default="5,50,100,200", help="session counts of the stream benchmark")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each stream measurement")
    parser.add_argument("--json", default="bench.json", help="where the raw figures go")
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - set(ALL):
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")
    found = rows(only, [int(n) for n in options.sessions.split(",")], options.seconds)
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    Path(options.json).write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
