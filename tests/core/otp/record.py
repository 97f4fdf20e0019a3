"""Records OTP's decisions anew: `python -m tests.core.otp.record`. Needs `escript`; see README.md."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tests.core.otp.sequences import Step, Tree, as_erlang, sequence

HERE = Path(__file__).parent
RECORDED = HERE / "recorded.jsonl"
SEED = 20_240_611
SEQUENCES = 1_000
PARALLEL = (80, 8, 2, 1)
"""Sequences at a time: first all, then those that fell behind, with less and less company."""
MAX_DRIFT_MS = 900
"""Real time may lag behind the steps' nominal time by this much: less than any margin that the waits leave."""
TIMEOUT_S = 1_500.0
Drawn = dict[int, tuple[Tree, list[Step]]]


def main() -> None:
    """Draws the sequences, runs them twice, and writes the record if both runs saw the same."""
    drawn = {n: sequence(Random(f"{SEED}-{n}"), n) for n in range(1, SEQUENCES + 1)}
    versions, first = _observe(drawn)
    _, second = _observe(drawn)
    unlike = [n for n in drawn if first[n] != second[n]]
    if unlike:
        sys.exit(f"two runs differ in the sequences {unlike[:20]}: the machine may be too busy")
    lines = [json.dumps({"format": 1, **versions, "seed": SEED, "sequences": len(drawn)})]
    for n, (tree, steps) in drawn.items():
        line = {"n": n, "tree": tree, "steps": steps[: len(first[n]) - 1], "seen": first[n]}
        lines.append(json.dumps(line, separators=(",", ":")))
    RECORDED.write_text("\n".join(lines) + "\n")
    print(f"{len(drawn)} sequences from OTP {versions['otp']} in {RECORDED}")


def _observe(drawn: Drawn) -> tuple[dict[str, str], dict[int, Any]]:
    """OTP's versions, and by sequence number what was seen. A sequence that fell behind its times is run again."""
    versions: dict[str, str] = {}
    seen: dict[int, Any] = {}
    for parallel in PARALLEL:
        left = {n: one for n, one in drawn.items() if n not in seen}
        if left:
            versions, *runs = observe_live(left, parallel)
            seen |= {run["n"]: run["seen"] for run in runs if not _is_late(run, left[run["n"]][1])}
    if len(seen) < len(drawn):
        sys.exit(f"{len(drawn) - len(seen)} sequences kept running late by {MAX_DRIFT_MS} ms: try when idle")
    return versions, seen


def _is_late(run: dict[str, Any], steps: list[Step]) -> bool:
    return run["drift_ms"] > MAX_DRIFT_MS and any(step[0] == "wait" for step in steps)


def observe_live(drawn: Drawn, parallel: int) -> list[Any]:
    """What the escript writes: the versions, then the sequences in the order in which they ended."""
    with tempfile.TemporaryDirectory(prefix="otp-record-") as scratch:
        terms = Path(scratch) / "sequences.terms"
        terms.write_text("".join(as_erlang(n, *one) for n, one in drawn.items()))
        command = ["escript", str(HERE / "record.escript"), str(terms), str(parallel)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        sys.exit(f"{command} failed with {done.returncode}:\n{done.stderr}{done.stdout[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
