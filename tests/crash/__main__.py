"""`make crash-sweep`: every place at every record, and the table."""

from __future__ import annotations

import argparse
import sys

from tests.crash.sweep import POINTS, Place, Sweep, table, what_is_wrong
from tests.daemon.harness import running_daemon
from tests.daemon.program import run_program


def main() -> int:
    """Prints the table; exit status 1 if a session differs from the undisturbed one where it must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=8, help="sessions that run at the same time")
    at_once = parser.parse_args().at_once
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client() as otto:
        sweep = Sweep(daemon, otto, at_once=at_once)
        (undisturbed,) = sweep.live([Place()])
        places = [Place(point, record) for record in range(len(undisturbed.kinds)) for point in POINTS]
        lives = []
        for life in sweep.live(places):
            lives.append(life)
            for wrong in what_is_wrong(life, undisturbed):
                print(f"killed {life.place}: {wrong}", file=sys.stderr)
    print(table(lives, undisturbed))
    return 1 if any(what_is_wrong(life, undisturbed) for life in lives) else 0


if __name__ == "__main__":
    run_program(main)
