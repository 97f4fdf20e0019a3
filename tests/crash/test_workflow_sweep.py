"""Wherever a workflow's process, a step's, or root is killed: the same artifacts, no finished step twice."""

from __future__ import annotations

import pytest

from ottod.protocol import journal as j
from ottod.worker.failpoints import VARIABLE
from tests.crash.sweep import POINTS, Place
from tests.crash.workflow_sweep import WorkflowSweep, what_is_wrong, workflow_life
from tests.daemon.harness import running_daemon, wait_for

STEPS = ("plan", "work[1]/build", "work[1]/review", "work[2]/build", "work[2]/review")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fails", [False, True])
def test_a_workflow_that_is_killed_comes_to_the_same_end(fails: bool) -> None:
    """At every eighteenth record of its journal at one of its places in turn; `make workflow-sweep` takes them all.

    Where it fails, what it has done is undone exactly once.
    """
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client() as otto:
        sweep = WorkflowSweep(daemon, otto, fails=fails)
        (undisturbed,) = sweep.live([Place()])
        assert undisturbed.ended[:5] == STEPS and undisturbed.incarnations == 1
        assert undisturbed.outcome == ("failed" if fails else "completed")
        assert undisturbed.undone == (("both/left", "work[2]/build", "work[1]/build", "plan") if fails else ())
        assert undisturbed.effects.get("undo-plan", 0) == fails, "its effect is had once, in two attempts"
        places = [Place(POINTS[n // 18 % len(POINTS)], n) for n in range(2 + fails * 9, undisturbed.records, 18)]
        lives = list(sweep.live(places))
    wrong = [f"killed {life.place}: {why}" for life in lives for why in what_is_wrong(life, undisturbed)]
    assert not wrong
    assert sum(life.incarnations == 2 for life in lives) > 0.7 * len(lives), "they were to be killed"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "place",
    [
        Place("written", 0),
        *(pytest.param(p, marks=pytest.mark.long) for p in (Place("synced", 2), Place("before", 3))),
    ],
    ids=str,
)
def test_steps_whose_processes_are_killed_come_to_the_same_end(place: Place) -> None:
    """Every step's first process dies at the same place of its own journal."""
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client() as otto:
        sweep = WorkflowSweep(daemon, otto, fails=False, at_once=2)
        (undisturbed,) = sweep.live([Place()])
        (life,) = sweep.live([place], VARIABLE)
    assert not what_is_wrong(life, undisturbed, may_miss=True)
    if place.record == 0:
        assert life.restarts >= len(life.ended), "each step was to be killed once"


@pytest.mark.timeout(600)
def test_root_is_killed_at_every_step_boundary() -> None:
    """Each time a step has ended root dies, and the next one takes over."""
    with running_daemon() as daemon:
        with daemon.client() as otto:
            sweep = WorkflowSweep(daemon, otto, fails=True)
            (undisturbed,) = sweep.live([Place()])
            session, directory = sweep._start(Place(), VARIABLE)
            seen = 0
        while True:
            with daemon.client(timeout_s=60) as otto:
                known = otto.session(session.id)

                def news(known=known, seen=seen) -> int:  # type: ignore[no-untyped-def]
                    ends = sum(isinstance(e, j.StepEnded | j.CompensationEnded) for e in known.journal())
                    return ends if ends > seen or known.info().state == "ended" else 0

                seen = wait_for("a step has ended", news)
                if known.info().state == "ended":
                    life = workflow_life(Place(), otto, known, directory)
                    break
            daemon.kill()
            daemon.start()
    assert not what_is_wrong(life, undisturbed)
