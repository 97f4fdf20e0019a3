"""Runs the storm.

    python -m tests.chaos --minutes 10 --sessions 50 --seed 7

Prints a report in Markdown; `--json FILE` keeps the numbers. The exit status is 1 if an invariant was broken, or if
the run did not inject or check what it was to. Then the trace and the daemon's log are kept, and their place is
named.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import markdown, summary, to_json
from tests.chaos.run import Run, new_daemon
from tests.daemon.program import ToldToEnd, run_program


def main() -> int:
    """The command."""
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    command = f"python -m tests.chaos --minutes {arguments.minutes:g} --sessions {arguments.sessions} --seed {seed}"
    print(f"seed {seed}", file=sys.stderr, flush=True)
    daemon = new_daemon()
    run = Run(daemon, seed=seed, sessions=arguments.sessions, duration_s=arguments.minutes * 60)
    try:
        run.execute()
        data = summary(run, command=command)
        print(markdown(data))
        if arguments.json is not None:
            arguments.json.write_text(to_json(data))
        is_good = bool(data["passed"])
    except ToldToEnd:
        raise
    except BaseException:
        print(f"the run itself failed; again with: {command}\nevidence: {keep(run)}", file=sys.stderr)
        raise
    else:
        if not is_good:
            print(f"evidence: {keep(run)}", file=sys.stderr)
    finally:
        daemon.close()
    return 0 if is_good else 1


def keep(run: Run) -> Path:
    """The trace, the daemon's log and its books, in a place that stays."""
    place = Path(tempfile.mkdtemp(prefix=f"otto-chaos-{run.seed}-"))
    (place / "trace.txt").write_text("\n".join(run.findings.trace) + "\n")
    for path in (run.daemon.log_path, *(run.daemon.base / "state").glob("otto.db*")):
        if path.exists():
            shutil.copy(path, place)
    return place


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the storm lasts (default 10)")
    parser.add_argument("--sessions", type=int, default=50, help="how many live at a time (default 50)")
    parser.add_argument("--seed", type=int, help="the storm's seed (default: a new one, which is printed)")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    return parser.parse_args()


if __name__ == "__main__":
    run_program(main)
