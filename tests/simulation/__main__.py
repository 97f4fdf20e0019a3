"""Runs seeds of the simulator.

    python -m tests.simulation --seed 7          one seed, with its whole trace
    python -m tests.simulation --seeds 10000 -j 2

A seed is a whole run of root: see `scenario`. The exit status is 1 if an invariant was broken.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType

from ottod.isolation.processes import set_parent_death_signal
from tests.daemon.program import ToldToEnd
from tests.simulation.faults import FAULTS
from tests.simulation.mutants import MUTANTS
from tests.simulation.root import Parts
from tests.simulation.scenario import Outcome, run_seed
from tests.simulation.stage import set_stage

FAST_DIR = Path("/dev/shm")
SHOWN_LINES = 60
COLLECT_EVERY = 25
FEW_SEEDS = 200


def main() -> int:
    arguments = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of strings is part of a run.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], environment)
    kinds = tuple(arguments.fault)
    given = [
        *(f"--fault {kind!r}" for kind in kinds),
        *([f"--mutant {arguments.mutant}"] if arguments.mutant else []),
    ]
    options = f" (run as `python -m tests.simulation --seed N {' '.join(given)}`)" if given else ""
    if arguments.seed is not None:
        outcome = _run([arguments.seed], arguments.mutant, kinds, keep_trace=True)[0]
        print("\n".join(outcome.lines))
        print(f"seed {outcome.seed}: {outcome.steps} steps, {outcome.events} events, digest {outcome.digest:x}")
        return _report([outcome], 0.0, options)
    started_s = time.monotonic()
    seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    outcomes: list[Outcome] = []
    jobs = arguments.jobs or (1 if arguments.seeds <= FEW_SEEDS or arguments.stop else os.cpu_count() or 1)
    if jobs == 1:
        outcomes = _run(seeds, arguments.mutant, kinds, stop_at_failure=arguments.stop)
    else:
        chunks = [seeds[at : at + 50] for at in range(0, len(seeds), 50)]
        with ProcessPoolExecutor(jobs, initializer=_end_with_parent) as pool:
            for part in pool.map(partial(_work, mutant=arguments.mutant, kinds=kinds), chunks):
                outcomes += part
    return _report(outcomes, time.monotonic() - started_s, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="one seed, with its trace")
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("-j", "--jobs", type=int, default=0, help="processes (default: one for few seeds, else all)")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append", default=[], help="only this fault, often")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default="", help="run root with a defect built in")
    return parser.parse_args()


def _end_with_parent() -> None:
    """In a process of the pool: it goes when the one that it works for is gone, and leaves no directory behind."""

    def told(number: int, _frame: FrameType | None) -> None:
        raise ToldToEnd(number)

    signal.signal(signal.SIGTERM, told)
    set_parent_death_signal(signal.SIGTERM)


def _work(seeds: list[int], mutant: str, kinds: Sequence[str]) -> list[Outcome]:
    try:
        return _run(seeds, mutant, kinds)
    except ToldToEnd as end:
        os._exit(end.status)  # There is nobody left to answer.


def _run(
    seeds: list[int],
    mutant: str = "",
    kinds: Sequence[str] = (),
    keep_trace: bool = False,
    stop_at_failure: bool = False,
) -> list[Outcome]:
    """Runs seeds in this process."""
    outcomes = []
    parts = MUTANTS[mutant] if mutant else Parts
    base = FAST_DIR if os.access(FAST_DIR, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="otto-sim-", dir=base) as directory, set_stage() as stage:
        # Collected between seeds only: a collection in the middle would be a step that no seed knows of.
        gc.disable()
        try:
            for number, seed in enumerate(seeds):
                outcomes.append(
                    run_seed(seed, stage, Path(directory), parts=parts, kinds=kinds, keep_trace=keep_trace)
                )
                if outcomes[-1].failure and stop_at_failure:
                    break
                if number % COLLECT_EVERY == 0:
                    gc.collect()
        except BaseException:
            print(f"the simulator itself failed at seed {seed}; again with: make sim SEED={seed}", file=sys.stderr)
            traceback.print_exc()
            raise
        finally:
            gc.enable()
    return outcomes


def _report(outcomes: list[Outcome], elapsed_s: float, options: str = "") -> int:
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    failed = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failed[:3]:
        print(f"--- seed {outcome.seed}: the last {SHOWN_LINES} lines of its trace")
        print("\n".join(outcome.lines[-SHOWN_LINES:]))
    for outcome in failed[:20]:
        print(f"seed {outcome.seed} failed: {outcome.failure}\n  again with: make sim SEED={outcome.seed}{options}")
    for what, count in sorted(counts.items()):
        print(f"{count:9} {what}")
    events, simulated_s = sum(o.events for o in outcomes), sum(o.simulated_s for o in outcomes)
    print(f"{len(outcomes)} seeds, {len(failed)} failed; {events} events, {simulated_s:.0f} simulated seconds")
    if elapsed_s:
        print(f"{elapsed_s:.1f} s, {elapsed_s / max(1, len(outcomes)) * 1000:.1f} ms a seed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
