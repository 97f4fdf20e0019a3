"""A supervisor node under every interleaving: a stop wins, no child is lost, nothing is started or stopped twice.

The machine is the world around one node: it has a process for every child that was started, carries orders out when
it pleases, lets timers fire late, lets children end in the middle of everything, and at times replaces the node by
one restored from its snapshot on a clock of another zero.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
    ExitReason,
    GiveUp,
    GroupStopped,
    KeepDown,
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
MAX_CHILDREN = 8
PERIOD_S = 10
STRATEGY = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])
AUTO_SHUTDOWN = st.sampled_from(["never", "any_significant", "all_significant"])
REASON = st.sampled_from(["normal", "shutdown", "error", "error", "error", "withdrawn"])
PICK = st.integers(0, 1_000)


class SupervisedWorld(RuleBasedStateMachine):
    """`process` says for each child that has one whether it is starting, up or asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.offset_ns = 0
        self.process: dict[str, str] = {}
        self.timers: dict[str, int] = {}
        self.specs: dict[str, ChildSpec] = {}
        self.finished: set[str] = set()
        self.never_again: set[str] = set()
        self.stop_was_asked = False
        self.endings: list[SupervisionAction] = []

    @initialize(strategy=STRATEGY, max_restarts=st.integers(0, 4), auto=AUTO_SHUTDOWN)
    def begin(self, strategy: str, max_restarts: int, auto: str) -> None:
        self.group = Group(strategy=strategy, max_restarts=max_restarts, period_s=PERIOD_S, auto_shutdown=auto)  # type: ignore[arg-type]
        self.node = SupervisorNode(group=self.group)

    # ---------------------------------------------------------- the world acts

    def tell(self, event: SupervisionEvent, random: float = 0.5) -> None:
        actions = self.node.step(event, now_ns=self.now_ns + self.offset_ns, random=random)
        self.node.validate()
        for action in actions:
            self.obey(action)

    def obey(self, action: SupervisionAction) -> None:
        match action:
            case StartChild(child=child):
                assert child not in self.process, "started twice"
                assert child not in self.never_again, "a stop lost against a restart"
                assert not self.stop_was_asked and not self.endings, "started in a group that has ended"
                self.process[child] = "starting"
                self.finished.discard(child)
            case StopChild(child=child, for_restart=for_restart):
                assert self.process[child] != "stopping for good", "stopped twice"
                assert self.process[child] != "stopping" or not for_restart
                self.process[child] = "stopping" if for_restart else "stopping for good"
            case ArmTimer(child=child, due_ns=due_ns):
                assert child not in self.process
                self.timers[child] = due_ns
            case DisarmTimer(child=child):
                del self.timers[child]
            case KeepDown(child=child):
                assert child not in self.process
                self.finished.add(child)
            case DropChild(child=child):
                assert child not in self.process, "dropped alive"
                assert self.node.member(child) is None
                self.finished.discard(child)
                self.never_again.add(child)
            case GiveUp() | AutoShutdown() | GroupStopped():
                assert not self.process, f"{action} while children live"
                self.endings.append(action)

    def pick(self, among: list[str], index: int) -> str:
        return among[index % len(among)]

    def having(self, *states: str) -> list[str]:
        return [child for child, state in self.process.items() if state in states]

    @precondition(lambda self: len(self.specs) < MAX_CHILDREN)
    @rule(
        restart=st.sampled_from(["permanent", "transient", "temporary"]),
        significant=st.booleans(),
        base_s=st.sampled_from([0, 0, 1, 4]),
    )
    def add(self, restart: str, significant: bool, base_s: int) -> None:
        child = f"c{len(self.specs)}"
        backoff = Backoff(base_s=base_s, max_s=20, jitter=0.5)
        self.specs[child] = ChildSpec(id=child, restart=restart, significant=significant, backoff=backoff)  # type: ignore[arg-type]
        self.process[child] = "starting"
        self.tell(ChildAdded(child=self.specs[child]))

    @precondition(lambda self: self.having("starting"))
    @rule(index=PICK)
    def get_ready(self, index: int) -> None:
        child = self.pick(self.having("starting"), index)
        self.process[child] = "up"
        self.tell(ChildReady(child=child))

    @precondition(lambda self: self.having("starting"))
    @rule(index=PICK, random=st.floats(0, 1, exclude_max=True))
    def fail_to_start(self, index: int, random: float) -> None:
        child = self.pick(self.having("starting"), index)
        del self.process[child]
        self.tell(StartFailed(child=child), random)

    @precondition(lambda self: self.process)
    @rule(index=PICK, reason=REASON, ran_s=st.integers(0, 20), random=st.floats(0, 1, exclude_max=True))
    def exit(self, index: int, reason: ExitReason, ran_s: int, random: float) -> None:
        child = self.pick(list(self.process), index)
        del self.process[child]
        if reason == "withdrawn":
            self.never_again.add(child)
        self.tell(ChildExited(child=child, reason=reason, ran_ns=ran_s * S), random)

    @precondition(lambda self: self.having("stopping", "stopping for good"))
    @rule(index=PICK)
    def end_as_ordered(self, index: int) -> None:
        child = self.pick(self.having("stopping", "stopping for good"), index)
        del self.process[child]
        self.tell(ChildExited(child=child, reason="shutdown"))

    @precondition(lambda self: self.timers)
    @rule(index=PICK, late_ns=st.integers(0, 2 * S))
    def fire(self, index: int, late_ns: int) -> None:
        child = self.pick(list(self.timers), index)
        self.now_ns = max(self.now_ns, self.timers.pop(child) - self.offset_ns + late_ns)
        self.tell(TimerFired(child=child))

    @rule(seconds=st.integers(1, 15))
    def let_time_pass(self, seconds: int) -> None:
        self.now_ns += seconds * S

    # ---------------------------------------------------------- people act

    @precondition(lambda self: self.specs)
    @rule(index=PICK)
    def stop_one(self, index: int) -> None:
        child = self.pick(list(self.specs), index)
        self.never_again.add(child)
        self.tell(ChildStopRequested(child=child))

    @precondition(lambda self: self.finished)
    @rule(index=PICK)
    def delete_finished(self, index: int) -> None:
        child = self.pick(sorted(self.finished), index)
        self.finished.discard(child)
        self.never_again.add(child)
        self.tell(ChildDeleted(child=child))

    @precondition(lambda self: self.finished or self.timers)
    @rule(index=PICK)
    def start_by_hand(self, index: int) -> None:
        """Somebody starts a child that is down, or does not want to wait for it."""
        child = self.pick([*sorted(self.finished), *self.timers], index)
        self.finished.discard(child)
        self.process[child] = "starting"
        self.tell(ChildAdded(child=self.specs[child]))

    @precondition(lambda self: len(self.specs) > 3)
    @rule(index=PICK)
    def stop_all(self, index: int) -> None:
        if index % 3:
            return
        self.stop_was_asked = True
        self.endings.clear()
        self.tell(StopRequested())

    @precondition(lambda self: self.endings and isinstance(self.endings[-1], GiveUp))
    @rule()
    def unpark(self) -> None:
        self.endings.clear()
        self.tell(Unparked())

    @rule(child=st.sampled_from(["c0", "c1", "nobody"]), which=st.integers(0, 3))
    def say_something_late(self, child: str, which: int) -> None:
        """Words that mean nothing in this state change nothing."""
        if child in self.process or child in self.timers or child in self.finished:
            return
        event = (
            ChildReady(child=child),
            TimerFired(child=child),
            ChildExited(child=child, reason="error"),
            StartFailed(child=child),
        )[which]
        before = self.node.snapshot(now_ns=self.now_ns + self.offset_ns)
        assert self.node.step(event, now_ns=self.now_ns + self.offset_ns) == []
        assert self.node.snapshot(now_ns=self.now_ns + self.offset_ns) == before

    @rule(offset_ns=st.integers(-(10**15), 10**15))
    def restart_the_daemon(self, offset_ns: int) -> None:
        """Everything survives; only the clock has another zero."""
        before_ns = self.now_ns + self.offset_ns
        snapshot = self.node.snapshot(now_ns=before_ns)
        self.node = SupervisorNode.restore(
            group=self.group, children=self.specs.values(), snapshot=snapshot, now_ns=self.now_ns + offset_ns
        )
        assert self.node.snapshot(now_ns=self.now_ns + offset_ns) == snapshot
        self.offset_ns = offset_ns
        again = {action.child: action.due_ns for action in self.node.outstanding() if isinstance(action, ArmTimer)}
        assert set(again) == set(self.timers)
        self.timers = again

    # ---------------------------------------------------------- what always holds

    @invariant()
    def no_child_is_lost(self) -> None:
        """Who is a member is alive, waits for a timer, has ended well, or belongs to an order that is under way."""
        if not hasattr(self, "node"):
            return
        members = {child: self.node.member(child) for child in self.node.children}
        under_way = self.process or self.timers or self.endings
        for child, member in members.items():
            assert member is not None
            alive = {"starting": "starting", "running": "up", "stopping": "stopping"}.get(member.state, "")
            assert self.process.get(child, "").startswith(alive or "\0") == bool(alive), (child, member.state)
            assert (member.state == "waiting") == (child in self.timers)
            assert alive or child in self.timers or child in self.finished or under_way, f"{child} is lost"
        assert set(self.process) <= set(members)
        assert len(self.endings) <= 1

    @invariant()
    def children_stop_one_at_a_time(self) -> None:
        """A group's stop is in reverse order; only stops of single children come beside it."""
        assert len(self.having("stopping")) <= 1

    def teardown(self) -> None:
        """From wherever it got to: left alone, the group comes to rest, and a stop brings it to its end."""
        if not hasattr(self, "node"):
            return
        for _ in range(1_000):
            if self.having("starting"):
                self.get_ready(0)
            elif self.having("stopping", "stopping for good"):
                self.end_as_ordered(0)
            elif self.timers:
                self.fire(0, 0)
            else:
                break
            self.no_child_is_lost()
        assert not self.timers and set(self.process.values()) <= {"up"}
        if not self.endings:
            assert set(self.node.children) == set(self.process) | self.finished
        if not self.stop_was_asked:
            self.stop_was_asked = True
            self.endings.clear()
            self.tell(StopRequested())
        while self.process:
            self.end_as_ordered(0)
        assert [type(ending) for ending in self.endings] == [GroupStopped]
        assert self.node.children == ()


SupervisedWorld.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestSupervisedWorld = SupervisedWorld.TestCase
