"""The supervisor node by example: each rule in a few lines. `tests/core/otp` compares the whole with OTP."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ottod.core.supervision import (
    ArmTimer,
    AutoShutdown,
    ChildAdded,
    ChildDeleted,
    ChildExited,
    ChildReady,
    ChildSpec,
    ChildStopRequested,
    DisarmTimer,
    DropChild,
    GiveUp,
    GroupStopped,
    KeepDown,
    NodeSnapshot,
    StartChild,
    StartFailed,
    StopChild,
    StopRequested,
    SupervisionAction,
    SupervisionEvent,
    SupervisorNode,
    TimerFired,
    Unparked,
)
from ottod.protocol.specs import Backoff, Group

S = 1_000_000_000
AT_ONCE = Backoff(base_s=0, jitter=0)
PERIOD_S = 10


def child(name: str, restart: Any = "permanent", *, significant: bool = False, base_s: float = 0) -> ChildSpec:
    return ChildSpec(
        id=name, restart=restart, significant=significant, backoff=Backoff(base_s=base_s, factor=2, max_s=8, jitter=0)
    )


def node(*children: ChildSpec, strategy: Any = "one_for_one", max_restarts: int = 3, auto: Any = "never") -> Any:
    group = Group(strategy=strategy, max_restarts=max_restarts, period_s=PERIOD_S, auto_shutdown=auto)
    return SupervisorNode(group=group, children=children)


def say(to: SupervisorNode, *events: SupervisionEvent, at_s: float = 0) -> list[str]:
    """The orders that these events lead to, one word each: start:a2, arm:a@1.5, disarm:a, stop:a, restop:a, …"""
    orders: list[SupervisionAction] = []
    for event in events:
        orders += to.step(event, now_ns=round(at_s * S))
        to.validate()
    return [short(order) for order in orders]


def short(order: SupervisionAction) -> str:
    match order:
        case StartChild(child=name, attempt=attempt):
            return f"start:{name}{attempt}"
        case ArmTimer(child=name, due_ns=due_ns):
            return f"arm:{name}@{due_ns / S:g}"
        case DisarmTimer(child=name):
            return f"disarm:{name}"
        case StopChild(child=name, for_restart=for_restart):
            return f"{'restop' if for_restart else 'stop'}:{name}"
        case KeepDown(child=name):
            return f"down:{name}"
        case DropChild(child=name):
            return f"drop:{name}"
        case GiveUp(restarts=restarts):
            return f"give_up:{restarts}"
        case AutoShutdown(child=name):
            return f"auto:{name}"
        case GroupStopped():
            return "stopped"


def crash(name: str, ran_s: float = 0) -> ChildExited:
    return ChildExited(child=name, reason="error", ran_ns=round(ran_s * S))


def stopped(name: str) -> ChildExited:
    return ChildExited(child=name, reason="shutdown")


@pytest.mark.parametrize(
    ("restart", "reason", "order"),
    [
        ("permanent", "normal", "start:a1"),
        ("permanent", "shutdown", "start:a1"),
        ("permanent", "error", "start:a1"),
        ("permanent", "withdrawn", "drop:a"),
        ("transient", "normal", "down:a"),
        ("transient", "shutdown", "down:a"),
        ("transient", "error", "start:a1"),
        ("transient", "withdrawn", "drop:a"),
        ("temporary", "normal", "drop:a"),
        ("temporary", "shutdown", "drop:a"),
        ("temporary", "error", "drop:a"),
        ("temporary", "withdrawn", "drop:a"),
    ],
)
def test_restart_types(restart: str, reason: Any, order: str) -> None:
    """Which exit restarts which type, leaves it down, or forgets it."""
    assert say(node(child("a", restart)), ChildExited(child="a", reason=reason)) == [order]


def test_one_for_one_leaves_the_siblings_alone() -> None:
    """Only the child itself is started again, and side by side with others."""
    group = node(child("a"), child("b"), child("c"))
    assert say(group, crash("b")) == ["start:b1"]
    assert say(group, crash("a")) == ["start:a1"]


def test_one_for_all_stops_backwards_and_starts_forwards() -> None:
    """One at a time; temporary children are not started again."""
    group = node(child("a"), child("b"), child("t", "temporary"), child("d"), strategy="one_for_all")
    assert say(group, crash("b")) == ["restop:d"]
    assert say(group, stopped("d")) == ["stop:t"]
    assert say(group, stopped("t")) == ["drop:t", "restop:a"]
    assert say(group, stopped("a")) == ["start:a0"]
    assert say(group, ChildReady(child="nobody"), TimerFired(child="d")) == []
    assert say(group, ChildReady(child="a")) == ["start:b1"]
    assert say(group, ChildReady(child="b")) == ["start:d0"]
    assert say(group, ChildReady(child="d")) == []


def test_rest_for_one_takes_those_after_it() -> None:
    """Children before the one that crashed keep running."""
    group = node(child("a"), child("b"), child("c"), strategy="rest_for_one")
    assert say(group, crash("b"), stopped("c"), ChildReady(child="b")) == ["restop:c", "start:b1", "start:c0"]


def test_more_restarts_than_allowed_end_the_group() -> None:
    """The others are stopped in reverse order, then it is said; the last crash starts nothing."""
    group = node(child("a"), child("b"), child("c"), max_restarts=1)
    assert say(group, crash("b"), ChildReady(child="b"), crash("b")) == ["start:b1", "stop:c"]
    assert say(group, stopped("c"), stopped("a")) == ["stop:a", "give_up:2"]
    assert group.is_closed and group.children == ("a", "b", "c")


def test_a_failed_start_is_booked_and_tried_again() -> None:
    """As often as the window allows."""
    group = node(child("a"), max_restarts=2)
    orders = say(group, crash("a"), StartFailed(child="a"), StartFailed(child="a"))
    assert orders == ["start:a1", "start:a2", "give_up:3"]


def test_a_failed_start_in_a_group_starts_over_from_there() -> None:
    """rest_for_one: those before it are up and stay up, those after it wait for it."""
    group = node(child("a"), child("b"), child("c"), strategy="rest_for_one")
    say(group, crash("a"), stopped("c"), stopped("b"))
    assert say(group, ChildReady(child="a"), StartFailed(child="b")) == ["start:b0", "start:b1"]
    assert say(group, ChildReady(child="b")) == ["start:c0"]


def test_the_window_slides() -> None:
    """Old restarts stop counting."""
    group = node(child("a"), max_restarts=1)
    for at_s in (0, 11, 22):
        assert say(group, crash("a"), ChildReady(child="a"), at_s=at_s)[0].startswith("start:a")
    assert say(group, crash("a"), at_s=32) == ["give_up:2"]


def test_delays_grow_and_a_good_run_resets_them() -> None:
    """1 s, 2 s, 4 s; after a run longer than the period, 1 s again."""
    group = node(child("a", base_s=1), max_restarts=9)
    for at_s, due_s in ((0, 1), (1, 3), (3, 7)):
        assert say(group, crash("a"), at_s=at_s) == [f"arm:a@{due_s}"]
        say(group, TimerFired(child="a"), ChildReady(child="a"), at_s=due_s)
    assert say(group, crash("a", ran_s=PERIOD_S + 1), at_s=100) == ["arm:a@101"]


def test_a_timer_that_fires_early_is_armed_again() -> None:
    """A shell's clock may be coarse; no restart is lost or hastened by it."""
    group = node(child("a", base_s=1))
    assert say(group, crash("a")) == ["arm:a@1"]
    assert say(group, TimerFired(child="a"), at_s=0.999) == ["arm:a@1"]
    assert say(group, TimerFired(child="a"), at_s=1) == ["start:a1"]


def test_who_crashes_meanwhile_joins_the_wait() -> None:
    """rest_for_one: `b` waits until 4 s; `a` crashes and would be started at 1 s, but not before `b` may."""
    group = node(child("a", base_s=1), child("b", base_s=4), strategy="rest_for_one")
    assert say(group, crash("b")) == ["arm:b@4"]
    assert say(group, crash("a")) == ["disarm:b", "arm:a@4"]
    assert say(group, TimerFired(child="a"), ChildReady(child="a"), at_s=4) == ["start:a1", "start:b1"]


def test_a_wait_that_is_over_needs_no_timer_any_more() -> None:
    """The timer is late, `b` crashes at once after its time: the timer is disarmed and the start begins."""
    group = node(child("a", base_s=4), strategy="one_for_all")
    say(group, crash("a"))
    say(group, ChildAdded(child=child("b")), ChildReady(child="b"), at_s=1)
    assert say(group, crash("b"), at_s=4) == ["disarm:a", "start:a1"]
    assert say(group, TimerFired(child="a"), ChildReady(child="a"), at_s=5) == ["start:b1"]


def test_a_child_withdrawn_while_it_is_being_stopped_stays_away() -> None:
    """one_for_all: the stop for the restart meets a child that its budget or a person has ended."""
    group = node(child("a"), child("b"), strategy="one_for_all")
    assert say(group, crash("a")) == ["restop:b"]
    assert say(group, ChildExited(child="b", reason="withdrawn")) == ["drop:b", "start:a1"]
    assert say(group, ChildReady(child="a")) == []


def test_exits_during_a_task_wait_for_its_end() -> None:
    """rest_for_one: `a` crashes while `c` is being started again; only then is that decided on."""
    group = node(child("a"), child("b"), child("c"), strategy="rest_for_one")
    assert say(group, crash("b"), crash("a"), stopped("c")) == ["restop:c", "start:b1"]
    assert say(group, ChildReady(child="b")) == ["start:c0"]
    assert say(group, ChildReady(child="c")) == ["restop:c"]


def test_an_exit_of_a_child_that_is_being_stopped_is_not_booked() -> None:
    """one_for_all with a single restart allowed: the sibling crashes before its stop reaches it."""
    group = node(child("a"), child("b"), child("c"), strategy="one_for_all", max_restarts=1)
    assert say(group, crash("c"), crash("a"), crash("b")) == ["restop:b", "start:a0"]


def test_a_child_that_finishes_before_its_stop_is_reported_as_finished() -> None:
    """one_for_all: `a` delivers while `b` is being stopped; taken out, it is not started again."""
    group = node(child("a", "transient"), child("b"), child("c"), strategy="one_for_all")
    assert say(group, crash("c"), ChildExited(child="a", reason="normal")) == ["restop:b", "down:a"]
    assert say(group, ChildDeleted(child="a"), stopped("b"), ChildReady(child="b")) == ["start:b0", "start:c1"]


def test_a_finished_child_returns_with_its_group_unless_deleted() -> None:
    """OTP starts it again with its siblings; root deletes it, so that a session that is over stays over."""
    for deleted, starts in ((False, ["start:a0", "start:b1"]), (True, ["start:b1"])):
        group = node(child("a", "transient"), child("b"), strategy="one_for_all")
        assert say(group, ChildExited(child="a", reason="normal")) == ["down:a"]
        if deleted:
            assert say(group, ChildDeleted(child="a")) == []
        assert say(group, crash("b"), ChildReady(child="a"), ChildReady(child="b")) == starts


@pytest.mark.parametrize(
    ("auto", "orders"),
    [
        ("never", [["drop:a"], ["drop:b"]]),
        ("any_significant", [["drop:a", "stop:c"], []]),
        ("all_significant", [["drop:a"], ["drop:b", "stop:c"]]),
    ],
)
def test_auto_shutdown(auto: str, orders: list[list[str]]) -> None:
    """When the first or the last significant child has ended, the others are stopped, and that is the end."""
    kinds = [child("a", "temporary", significant=True), child("b", "temporary", significant=True), child("c")]
    group = node(*kinds, auto=auto)
    assert say(group, crash("a")) == orders[0]
    if auto == "any_significant":
        assert say(group, stopped("c"), stopped("b")) == ["stop:b", "drop:b", "auto:a"]
        return
    assert say(group, stopped("b")) == orders[1]
    assert auto == "never" or say(group, stopped("c")) == ["auto:b"]


def test_a_child_that_is_being_stopped_holds_up_no_auto_shutdown() -> None:
    """The last significant child that counts has ended, though one that was stopped for good is not down yet."""
    kinds = [child("a", "transient", significant=True), child("b", "transient", significant=True), child("c")]
    group = node(*kinds, auto="all_significant")
    assert say(group, ChildStopRequested(child="a")) == ["stop:a"]
    assert say(group, ChildExited(child="b", reason="normal")) == ["down:b", "stop:c"]
    assert say(group, stopped("c"), stopped("a")) == ["drop:a", "auto:b"]


def test_a_stop_of_the_group_goes_backwards_and_drops_everybody() -> None:
    """Who waits for a restart is dropped at once."""
    group = node(child("a"), child("b", base_s=5), child("c"))
    say(group, crash("b"))
    assert say(group, StopRequested()) == ["disarm:b", "drop:b", "stop:c"]
    assert say(group, stopped("c"), stopped("a")) == ["drop:c", "stop:a", "drop:a", "stopped"]
    assert say(group, StopRequested()) == ["stopped"]


def test_a_stop_overtakes_a_group_restart() -> None:
    """The child that is being stopped for its restart is stopped for good instead; nothing is started."""
    group = node(child("a"), child("b"), strategy="one_for_all")
    assert say(group, crash("a")) == ["restop:b"]
    assert say(group, StopRequested()) == ["stop:b", "drop:a"]
    assert say(group, stopped("b")) == ["drop:b", "stopped"]


def test_a_stop_overtakes_giving_up() -> None:
    """The group that was giving up is stopped, and says so."""
    group = node(child("a"), child("b"), max_restarts=0)
    assert say(group, crash("a")) == ["stop:b"]
    assert say(group, StopRequested(), stopped("b")) == ["drop:a", "drop:b", "stopped"]


@pytest.mark.parametrize(
    ("before", "order"),
    [
        ((), ["stop:a"]),
        ((crash("a"),), ["disarm:a", "drop:a"]),
        ((crash("a"), TimerFired(child="a")), ["stop:a"]),
        ((ChildExited(child="a", reason="normal"),), ["drop:a"]),
    ],
)
def test_a_stop_of_one_child_wins(before: tuple[SupervisionEvent, ...], order: list[str]) -> None:
    """Running, waiting, starting or down: it never comes back."""
    group = node(child("a", "transient", base_s=1))
    say(group, *before, at_s=1 if TimerFired(child="a") in before else 0)
    for event in before[1:]:
        say(group, event, at_s=2)
    assert say(group, ChildStopRequested(child="a"), at_s=2) == order
    assert say(group, crash("a"), TimerFired(child="a"), at_s=9) == (["drop:a"] if order == ["stop:a"] else [])
    assert group.children == ()


def test_siblings_do_not_wait_for_a_child_that_was_stopped() -> None:
    """one_for_all, waiting for `a`: when `a` is stopped for good, the others start at once."""
    group = node(child("a", base_s=5), child("b"), strategy="one_for_all")
    assert say(group, crash("a"), stopped("b")) == ["restop:b", "arm:a@5"]
    assert say(group, ChildStopRequested(child="a")) == ["disarm:a", "drop:a", "start:b0"]


def test_unparked_it_starts_who_was_down_and_counts_anew() -> None:
    """In start order, one at a time; finished children stay down."""
    group = node(child("a"), child("f", "transient"), child("b", base_s=1), max_restarts=0)
    assert say(group, Unparked()) == []
    say(group, ChildExited(child="f", reason="normal"))
    assert say(group, crash("b"), stopped("a")) == ["stop:a", "give_up:1"]
    assert say(group, Unparked()) == ["start:a0"]
    again = node(child("a", base_s=1), max_restarts=1)
    say(again, crash("a"), at_s=0)
    say(again, TimerFired(child="a"), StartFailed(child="a"), Unparked(), ChildReady(child="a"), at_s=1)
    assert say(again, crash("a"), at_s=2) == ["arm:a@3"]
    assert say(group, ChildReady(child="a"), ChildReady(child="b")) == ["start:b0"]
    assert say(group, crash("a")) == ["stop:b"]


def test_unparked_one_that_does_not_know_that_it_gave_up_counts_anew() -> None:
    """Root died between parking the session and noting that its node had given up."""
    group = node(child("a"), max_restarts=1)
    assert say(group, crash("a"), TimerFired(child="a"), ChildReady(child="a"), at_s=1)[-1] == "start:a1"
    say(group, Unparked(), at_s=2)
    assert say(group, crash("a"), at_s=3) == ["start:a1"]


def test_added_to_a_group_that_has_ended_it_is_stopped() -> None:
    """Nobody would look after it."""
    group = node(child("a"))
    say(group, StopRequested(), stopped("a"))
    assert say(group, ChildAdded(child=child("late"))) == ["stop:late"]
    assert say(group, StopRequested()) == []
    assert say(group, stopped("late")) == ["drop:late", "stopped"]


def test_a_snapshot_is_plain_data() -> None:
    """It goes through JSON, and the restored node finds its delay, its window and its task again."""
    group = node(child("a", base_s=4), child("b"), strategy="one_for_all", max_restarts=1)
    say(group, crash("a"), stopped("b"), at_s=100)
    packed = msgspec.json.encode(group.snapshot(now_ns=101 * S))
    again = SupervisorNode.restore(
        group=group.group,
        children=[child("a", base_s=4), child("b")],
        snapshot=msgspec.json.decode(packed, type=NodeSnapshot),
        now_ns=7 * S,
    )
    again.validate()
    assert [short(order) for order in again.outstanding()] == ["arm:a@10"]
    assert say(again, TimerFired(child="a"), ChildReady(child="a"), at_s=10) == ["start:a1", "start:b0"]
    assert say(again, ChildReady(child="b"), at_s=10) == []
    assert say(again, crash("b"), at_s=11) == ["stop:a"]


def test_members_that_are_not_known_any_more_are_left_out() -> None:
    """A restored node goes on with those whose specs it is given; a task over others does not hold it up."""
    group = node(child("a"), child("b"), child("c"), strategy="one_for_all")
    say(group, crash("a"))
    again = SupervisorNode.restore(
        group=group.group, children=[child("a"), child("b")], snapshot=group.snapshot(now_ns=0), now_ns=0
    )
    assert [short(order) for order in again.outstanding()] == ["restop:b"]
    assert [short(order) for order in again.outstanding()] == ["restop:b"]
    assert say(again, stopped("b")) == ["start:a1"]
