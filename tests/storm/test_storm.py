"""A storm in small; the large one is `make storm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.run import DELIVERY_S, broken_sequences, report, run_storm, tally

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
    for told in outcome.tallies:
        assert told.requests >= SESSIONS // 3 * 3
        assert told.above_limit <= 0, told
    assert {"429", "500", "stall", "cut"} <= set(outcome.weather)
    assert not broken_sequences(outcome.moves)


def test_more_than_a_limit_allows_is_seen_in_any_stretch() -> None:
    """Also after a pause, in which nothing was let through."""
    steady = [float(n) for n in range(30)]
    allowed = 2 + int(DELIVERY_S)
    assert tally("p", steady, 60, 0).above_limit <= 0
    assert tally("p", [*steady, *[100.0] * allowed], 60, 0).above_limit == 0
    assert tally("p", [*steady, *[100.0] * (allowed + 3)], 60, 0).above_limit == 3
