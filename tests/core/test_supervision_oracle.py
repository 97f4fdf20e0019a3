"""A supervisor node without delays does what a naive synchronous supervisor does, whatever its children do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.core.supervision import ChildExited, ChildSpec, ChildStopRequested, ExitReason
from ottod.protocol.specs import Group
from tests.core.naive_supervisor import NaiveSupervisor
from tests.core.otp.replay import NO_DELAY, Supervisor, World

S = 1_000_000_000
IDS = "abcde"
CHILD = st.tuples(st.sampled_from(["permanent", "transient", "temporary"]), st.booleans())
STEP = st.one_of(
    st.tuples(st.just("exit"), st.sampled_from(IDS), st.sampled_from(["normal", "shutdown", "error", "withdrawn"])),
    st.tuples(st.just("exit"), st.sampled_from(IDS), st.just("error")),
    st.tuples(st.just("stop"), st.sampled_from(IDS), st.just("")),
    st.tuples(st.just("fail"), st.sampled_from(IDS), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.just(""), st.integers(1, 12)),
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
    st.integers(0, 4),
    st.sampled_from(["never", "any_significant", "all_significant"]),
    st.lists(CHILD, min_size=1, max_size=5),
    st.lists(STEP, max_size=25),
)
def test_it_does_what_the_oracle_does(
    strategy: str,
    max_restarts: int,
    auto_shutdown: str,
    kinds: list[tuple[str, bool]],
    steps: list[tuple[str, str, object]],
) -> None:
    """Starts, failed starts and stops in order, the members left, and how the group ends; period 10 s."""
    children = [[IDS[i], restart, int(significant)] for i, (restart, significant) in enumerate(kinds)]
    group = Group(strategy=strategy, max_restarts=max_restarts, period_s=10, auto_shutdown=auto_shutdown)  # type: ignore[arg-type]
    world = World()
    ours = Supervisor(world, "", [strategy, max_restarts, 10, auto_shutdown, children])
    assert ours.start()
    world.did.clear()
    specs = {
        name: ChildSpec(id=name, restart=restart, significant=bool(significant), backoff=NO_DELAY)
        for name, restart, significant in children
    }
    naive = NaiveSupervisor(group=group, specs=specs, fails={}, order=list(specs), up=set(specs))
    for kind, child, value in steps:
        if kind == "wait":
            world.now_ns += int(str(value)) * S
        elif kind == "fail":
            world.fails[child] = naive.fails[child] = int(str(value))
        elif kind == "stop":
            ours.tell(ChildStopRequested(child=child))
            naive.stopped_for_good(child)
        elif child in naive.up:
            reason: ExitReason = value  # type: ignore[assignment]
            ours.workers.discard(child)
            ours.tell(ChildExited(child=child, reason=reason))
            naive.ended(child, reason, world.now_ns)
        assert world.did == naive.did
        assert ours.workers == naive.up
        assert (ours.has_ended, bool(world.gave_up)) == (bool(naive.outcome), naive.outcome == "gave_up")
        if naive.outcome:
            return
        assert list(ours.node.children) == naive.order
