"""Wherever a worker is killed, its session comes to the same end for at most one model call more."""

from __future__ import annotations

import pytest

from tests.crash.sweep import POINTS, RESULT, Place, Sweep, what_is_wrong
from tests.daemon.harness import running_daemon


@pytest.mark.timeout(600)
def test_killed_at_records_of_every_kind() -> None:
    """At every third record of the journal at one of its places, in turn; `make crash-sweep` takes all of them."""
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client() as otto:
        sweep = Sweep(daemon, otto)
        (undisturbed,) = sweep.live([Place()])
        assert undisturbed.result == RESULT and undisturbed.incarnations == 1
        assert undisturbed.model_calls == undisturbed.responses == 6
        assert undisturbed.kinds.count("tool.intended") == 14
        keys = [line.split()[1] for line in undisturbed.effects]
        assert len(keys) == len(set(keys)) == 7, "each call has a key of its own"
        places = [Place(POINTS[n // 3 % len(POINTS)], n) for n in range(0, len(undisturbed.kinds), 3)]
        lives = list(sweep.live(places))
    wrong = [f"killed {life.place}: {why}" for life in lives for why in what_is_wrong(life, undisturbed)]
    assert not wrong
    assert sum(life.incarnations == 2 for life in lives) > 0.8 * len(lives), "they were to be killed"


def test_failpoints_need_the_daemons_leave() -> None:
    """What a session's environment says is nothing to a daemon that is not under test."""
    with running_daemon() as daemon, daemon.client() as otto:
        (life,) = Sweep(daemon, otto).live([Place("before", 5)])
    assert life.incarnations == 1 and life.result == RESULT
