"""A storm in small; the large one is `make storm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.run import broken_sequences, report, run_storm

SESSIONS = 12


@pytest.mark.long
@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_storm_ends_for_everyone(tmp_path: Path) -> None:
    """Every session finishes or says of what it did not; the limits hold at the server; breakers tell their moves."""
    outcome = run_storm(tmp_path, sessions=SESSIONS, seed=4, per_minute=120)
    print(report(outcome))
    assert sum(outcome.ends.values()) == SESSIONS
    assert not outcome.untyped
    assert outcome.ends.get("completed", 0) > SESSIONS // 2, outcome.ends
    for tally in outcome.tallies:
        assert tally.requests >= SESSIONS // 3 * 3
        assert tally.above_limit <= 0, tally
    assert {"429", "500", "stall", "cut"} <= set(outcome.weather)
    assert not broken_sequences(outcome.moves)
