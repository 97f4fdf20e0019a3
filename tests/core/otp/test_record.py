"""The recorder works, where Erlang is installed: fresh sequences against OTP itself and against our nodes."""

from __future__ import annotations

import shutil
from random import Random

import pytest

from tests.core.otp.record import observe_live
from tests.core.otp.replay import replay
from tests.core.otp.sequences import sequence

SEED = 7
SEQUENCES = 24
PARALLEL = 8


@pytest.mark.skipif(shutil.which("escript") is None, reason="escript (Erlang) is not installed")
def test_fresh_sequences_agree() -> None:
    """Sequences that are not in the record and do not depend on time."""
    print(f"seed {SEED}")
    drawn = {n: sequence(Random(f"{SEED}-{n}"), n) for n in range(1, 10 * SEQUENCES)}
    timeless = {n: one for n, one in drawn.items() if all(step[0] != "wait" for step in one[1])}
    chosen = {n: timeless[n] for n in sorted(timeless)[:SEQUENCES]}
    versions, *runs = observe_live(chosen, PARALLEL)
    assert int(versions["otp"]) >= 24
    assert {run["n"] for run in runs} == set(chosen)
    for run in runs:
        tree, steps = chosen[run["n"]]
        assert replay(tree, steps[: len(run["seen"]) - 1]) == run["seen"], run["n"]
