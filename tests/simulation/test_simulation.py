"""Root's real logic under the simulator: every invariant holds, and built-in defects are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 50
SEEDS_THAT_FAILED = (280, 820, 1349, 1767, 3064, 3561, 5883, 7745, 9500, 20581)
KILLS = ("--fault", "kill root", "--fault", "kill half of the workers")
HALTS = ("--fault", "kill root after a halt", "--fault", "kill a worker", "--fault", "kill root")
SEEDS_THAT_FAILED_UNDER = ((154, KILLS), (471, KILLS), (585, KILLS), (490, HALTS))
"""With no other faults than these: what was parked went on, stops for a restart were taken for others, a group was
stopped before its workers were known."""
MUTANT_SEEDS = 400
"""Within so many seeds each mutant must be found; most are within three."""
PATIENCE_S = 580
"""For a machine that has much else to do."""
FAULTS_FOR = {
    "loses-timers": ("--fault", "restart root"),
    "drops-when-full": ("--fault", "freeze a client"),
    "writes-twice": ("--fault", "kill root after a loss"),
    "forgets-why": ("--fault", "kill root after a halt", "--fault", "kill a worker"),
}
"""Where a mistake shows only in the company of one fault."""

pytestmark = pytest.mark.timeout(600)
MUTANT_NAMES = (
    "acknowledges-ahead",
    "answers-twice",
    "buries-in-haste",
    "drops-when-full",
    "forgets-duplicates",
    "forgets-why",
    "kills-nothing",
    "loses-timers",
    "restarts-after-stop",
    "restarts-for-ever",
    "reuses-seqs",
    "skips-the-backlog",
    "welcomes-too-far",
    "writes-twice",
)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the simulator lays hands on root's modules, and the order of sets is part of a run."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_invariants_hold() -> None:
    """Fifty seeds break none; a failure says how to see it again."""
    run = simulate("--seeds", str(SEEDS))
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert f"{SEEDS} seeds, 0 failed" in run.stdout


@pytest.mark.parametrize(
    ("seed", "faults"),
    [*((seed, ()) for seed in SEEDS_THAT_FAILED), *SEEDS_THAT_FAILED_UNDER],
)
def test_what_failed_once_holds(seed: int, faults: tuple[str, ...]) -> None:
    """Seeds far out that found something: a stop that a killed root forgot, a worker whose end no book had."""
    run = simulate("--first", str(seed), "--seeds", "1", *faults)
    assert "1 seeds, 0 failed" in run.stdout, run.stdout[-8000:] + run.stderr[-2000:]


@pytest.mark.parametrize("mutant", MUTANT_NAMES)
def test_mutants_are_found(mutant: str) -> None:
    """A root with a defect fails, and the failure names the seed."""
    run = simulate("--seeds", str(MUTANT_SEEDS), "--stop", "--mutant", mutant, *FAULTS_FOR.get(mutant, ()))
    assert run.returncode == 1, run.stdout[-3000:] + run.stderr[-3000:]
    assert "again with: make sim SEED=" in run.stdout, run.stderr[-3000:]


def test_a_seed_is_a_whole_run() -> None:
    """The same seed gives the same trace in another process, with other addresses and in other company."""
    first = simulate("--seed", "11")
    second = simulate("--seed", "11")
    assert first.stdout == second.stdout
    assert "digest" in first.stdout, first.stderr
