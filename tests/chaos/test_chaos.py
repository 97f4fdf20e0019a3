"""A short storm and a short churn, for every run of the tests; the long ones are `make chaos` and `make churn`."""

from __future__ import annotations

import json
import random

import pytest

from tests.chaos.churn import SETTINGS as CHURN_SETTINGS
from tests.chaos.churn import churn
from tests.chaos.report import markdown, summary
from tests.chaos.run import Run, new_daemon
from tests.daemon.harness import running_daemon

STORM_S = 20.0
SESSIONS = 10
CHURNED = 60
TIMEOUT_S = 600


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_S)
def test_every_invariant_holds_in_a_storm() -> None:
    """Each kind of fault at least once, each invariant checked, none broken; a failure says what to run again."""
    seed = random.randrange(1_000_000)
    command = f"python -m tests.chaos --minutes {STORM_S / 60:.2f} --sessions {SESSIONS} --seed {seed}"
    print(command)
    daemon = new_daemon()
    run = Run(daemon, seed=seed, sessions=SESSIONS, duration_s=STORM_S)
    try:
        run.execute()
    finally:
        daemon.close()
    report = summary(run, command=command)
    trace = "\n".join(list(run.findings.trace)[-200:])
    assert report["passed"], f"{markdown(report)}\n{trace}"
    assert json.loads(json.dumps(report)) == report


@pytest.mark.timeout(TIMEOUT_S)
def test_nothing_grows_in_a_churn() -> None:
    """Sessions that come and go leave no descriptor, process, control group or file, and each its own cause."""
    with running_daemon(CHURN_SETTINGS) as daemon:
        report = churn(daemon, sessions=CHURNED, seed=random.randrange(1_000_000))
    assert not report["problems"], report
    assert sum(report["ends"].values()) == CHURNED
