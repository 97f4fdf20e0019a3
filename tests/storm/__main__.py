"""Runs a provider storm.

    python -m tests.storm --sessions 50 --seed 1

Prints a report in Markdown. The exit status is 1 if a session ended without a typed cause, or a limit was exceeded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.daemon.program import run_program
from tests.storm.run import broken_sequences, report, run_storm


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-minute", type=int, default=120, help="requests, of each provider")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="otto-storm-") as directory:
        outcome = run_storm(
            Path(directory), sessions=arguments.sessions, seed=arguments.seed, per_minute=arguments.per_minute
        )
    print(report(outcome))
    wrong = [*outcome.untyped, *broken_sequences(outcome.moves)]
    wrong += [f"{t.provider}: {t.above_limit} above the limit" for t in outcome.tallies if t.above_limit > 0]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    run_program(main)
