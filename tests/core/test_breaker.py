"""The breaker: it opens for the reasons it is given and no others, tries with few calls, and forgets none of it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ottod.core.breaker import FAILURES, JITTER, Breaker, BreakerSnapshot, Leave, Move, verdict
from ottod.settings.sections import BreakerSettings

S = 1_000_000_000
SETTINGS = BreakerSettings(window_s=10, min_calls=4, error_rate=0.5, open_s=5, max_open_s=40, probes=2)


def call(
    breaker: Breaker, at_s: float, code: str = "", *, first_s: float | None = None, tokens: int = 0
) -> Move | None:
    """A call that takes no time."""
    now_ns = int(at_s * S)
    leave = breaker.begin(now_ns=now_ns)
    move = breaker.end(leave, verdict(code), first_s=first_s, tokens=tokens, now_ns=now_ns, random=0.5)
    return move or leave.move


def opened(settings: BreakerSettings = SETTINGS, at_s: float = 0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(settings)
    moves = [call(breaker, at_s, "overloaded") for _ in range(settings.min_calls)]
    assert moves[-1] is not None and breaker.state == "open"
    return breaker


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "answered"),
        *((code, "failed") for code in sorted(FAILURES)),
        *((code, "nothing") for code in ("rate_limited", "auth", "bad_request", "context_too_long", "refused")),
        *((code, "nothing") for code in ("cancelled", "lost", "provider_defect")),
    ],
)
def test_what_a_calls_end_says(code: str, said: str) -> None:
    """Only what the provider answers for counts: a wrong key, a long context or a cancelled call says nothing."""
    assert verdict(code) == said


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ("fff", "closed"),
        ("ffff", "open"),
        ("aaff", "open"),
        ("aaaf", "closed"),
        ("aaaff", "closed"),
        ("aaafff", "open"),
        ("nnnnnn", "closed"),
        ("nfnfnf", "closed"),
    ],
)
def test_a_share_of_failures_opens_it_once_there_are_enough_calls(ends: str, state: str) -> None:
    """Half of at least four; calls that say nothing are not counted at all."""
    breaker = Breaker(SETTINGS)
    for end in ends:
        call(breaker, 1, {"f": "timeout", "a": "", "n": "auth"}[end])
    assert breaker.state == state


def test_failures_age() -> None:
    """What ended longer ago than the window counts no more."""
    breaker = Breaker(SETTINGS)
    for at_s in (0, 4, 8, 12, 16, 20):
        assert call(breaker, at_s, "cut") is None
    assert breaker.rates(now_ns=20 * S) == (3, 1.0, 0.0)


def test_slow_answers_open_it() -> None:
    """If it is told what slow is; a failure that came slowly is slow too, and an unknown time is not."""
    slow = BreakerSettings(window_s=10, min_calls=4, slow_after_s=2, slow_rate=0.75)
    breaker = Breaker(slow)
    for first_s in (3.0, None, 2.0, 2.1, 5.0):
        assert call(breaker, 0, first_s=first_s) is None
    move = [call(breaker, 0, first_s=9) for _ in range(3)][-1]
    assert move == Move(state="open", previous="closed", reason="75% of 8 calls took over 2 s")
    unconcerned = Breaker(SETTINGS)
    assert [call(unconcerned, 0, first_s=900) for _ in range(9)] == [None] * 9


def test_a_quota_that_is_nearly_used_opens_it_until_enough_is_old() -> None:
    """80 % of 1,000 tokens an hour; it stays open until the oldest slice that matters is an hour old."""
    breaker = Breaker(BreakerSettings(quota_tokens=1000, quota_period_s=3600, quota_share=0.8))
    assert call(breaker, 0, tokens=500) is None
    assert call(breaker, 1800, tokens=299) is None
    move = call(breaker, 1900, tokens=1)
    assert move == Move(state="open", previous="closed", reason="80% of 1000 tokens used in 3600 s")
    # The first slice of a minute, with 500 tokens, is whole beyond the hour at 3660 s.
    assert breaker.open_until_ns == 3660 * S
    assert breaker.refuses(now_ns=3660 * S - 1)
    assert [call(breaker, 3660, tokens=10), call(breaker, 3661, tokens=10)][1] == Move(
        state="closed", previous="half_open", reason="2 probes succeeded"
    )


def test_probes_that_use_up_the_quota_open_it_again() -> None:
    """Success is not enough if the quota is still used."""
    breaker = Breaker(BreakerSettings(quota_tokens=100, quota_period_s=600, quota_share=0.5, open_s=1, probes=1))
    call(breaker, 0, tokens=50)
    assert breaker.open_until_ns == 610 * S
    leave = breaker.begin(now_ns=610 * S)
    move = breaker.end(leave, "answered", tokens=60, now_ns=611 * S, random=0.5)
    assert move is not None and (move.state, move.previous) == ("open", "half_open")


def test_open_it_refuses_until_its_time_is_over() -> None:
    """Then the first call to come is a probe, and says that it has moved."""
    breaker = opened()
    assert not breaker.admits(now_ns=5 * S - 1)
    assert breaker.refuses(now_ns=5 * S - 1)
    leave = breaker.begin(now_ns=5 * S)
    assert leave.move == Move(state="half_open", previous="open", reason="its time is over")
    assert leave.is_probe


def test_half_open_it_lets_few_calls_through_at_once() -> None:
    """Two at a time; one that says nothing makes room for another."""
    breaker = opened()
    first, second = (breaker.begin(now_ns=6 * S) for _ in range(2))
    assert not breaker.admits(now_ns=7 * S)
    assert not breaker.refuses(now_ns=7 * S)
    assert breaker.end(first, "nothing", now_ns=7 * S, random=0) is None
    third = breaker.begin(now_ns=7 * S)
    assert not breaker.admits(now_ns=7 * S)
    assert breaker.end(second, "answered", now_ns=8 * S, random=0) is None
    closed = breaker.end(third, "answered", now_ns=8 * S, random=0)
    assert closed == Move(state="closed", previous="half_open", reason="2 probes succeeded")


@pytest.mark.parametrize(("said", "first_s"), [("failed", None), ("answered", 99.0)])
def test_a_probe_that_fails_or_is_slow_opens_it_again(said: str, first_s: float | None) -> None:
    """At once, whatever the others say."""
    breaker = opened(BreakerSettings(min_calls=4, open_s=5, slow_after_s=30))
    one, other = (breaker.begin(now_ns=5 * S) for _ in range(2))
    move = breaker.end(one, said, first_s=first_s, now_ns=6 * S, random=0.5)  # type: ignore[arg-type]
    assert move is not None and (move.state, move.previous) == ("open", "half_open")
    assert breaker.end(other, "answered", now_ns=7 * S, random=0.5) is None
    assert breaker.state == "open"


def test_each_opening_in_a_row_lasts_twice_as_long() -> None:
    """5, 10, 20, 40 and again 40 seconds; after a window's time of health it is 5 again."""
    breaker, at_s, lasted = opened(), 0.0, []
    for _ in range(5):
        lasted.append(breaker.open_until_ns / S - at_s)
        at_s = breaker.open_until_ns / S
        call(breaker, at_s, "overloaded")
    assert lasted == pytest.approx([5, 10, 20, 40, 40])
    at_s = breaker.open_until_ns / S
    for _ in range(2):
        call(breaker, at_s)
    assert breaker.state == "closed"
    for _ in range(4):
        call(breaker, at_s + 10.1, "overloaded")
    assert breaker.open_until_ns / S - at_s - 10.1 == pytest.approx(5)


def test_a_relapse_is_no_fresh_start() -> None:
    """Closed and soon open again, it stays open for longer than before."""
    breaker = opened()
    for _ in range(2):
        call(breaker, 5)
    for _ in range(4):
        call(breaker, 14, "overloaded")
    assert breaker.open_until_ns == 24 * S


def test_turned_off_it_closes_and_counts_nothing() -> None:
    """Also if it was open."""
    breaker = opened()
    assert breaker.configure(BreakerSettings(enabled=False)) == Move(
        state="closed", previous="open", reason="turned off"
    )
    for _ in range(100):
        assert call(breaker, 1, "overloaded") is None


def test_every_move_is_one_of_the_diagrams() -> None:
    """Of all pairs of states, exactly the five of the diagram are reached, by random ends of calls."""
    seen = set()
    for seed in product("fan", repeat=6):
        breaker, at_s = Breaker(BreakerSettings(min_calls=2, open_s=1, max_open_s=1, probes=1)), 0.0
        for end in seed:
            at_s += 1.2
            leave = breaker.begin(now_ns=int(at_s * S))
            move = breaker.end(
                leave, verdict({"f": "cut", "a": "", "n": "auth"}[end]), now_ns=int(at_s * S), random=0.5
            )
            seen |= {(m.previous, m.state) for m in (leave.move, move) if m is not None}
    assert seen == {
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("half_open", "closed"),
    }


ENDS = st.tuples(st.sampled_from(["answered", "failed", "nothing"]), st.integers(0, 4 * S))


@hypothesis_settings(deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]),
    st.integers(1, 10),
    st.lists(ENDS, max_size=60),
)
def test_it_agrees_with_counting_by_hand(
    min_calls: int, error_rate: float, window_s: int, ends: list[tuple[str, int]]
) -> None:
    """Against the naive oracle: all calls ever, looked through anew after each, until the first opening."""
    breaker = Breaker(BreakerSettings(min_calls=min_calls, error_rate=error_rate, window_s=window_s))
    ever: list[tuple[int, bool]] = []
    now_ns = 0
    for said, gap_ns in ends:
        now_ns += gap_ns
        leave = breaker.begin(now_ns=now_ns)
        move = breaker.end(leave, said, now_ns=now_ns, random=0.5)  # type: ignore[arg-type]
        if said != "nothing":
            ever.append((now_ns, said == "failed"))
        counted = [failed for at_ns, failed in ever if at_ns > now_ns - window_s * S]
        should_open = len(counted) >= min_calls and sum(counted) / len(counted) >= error_rate
        assert (move is not None) == should_open
        if should_open:
            break


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap, end late and say anything, on a breaker that is moved between clocks."""

    @initialize(probes=st.integers(1, 3), quota=st.none() | st.integers(50, 500))
    def begin(self, probes: int, quota: int | None) -> None:
        self.settings = BreakerSettings(
            window_s=10, min_calls=3, open_s=4, max_open_s=30, probes=probes, quota_tokens=quota, quota_period_s=60
        )
        self.breaker = Breaker(self.settings)
        self.now_ns = 0
        self.calls: list[Leave] = []
        self.state = "closed"

    def heard(self, move: Move | None) -> None:
        """Moves follow on one another without a hole."""
        if move is not None:
            assert move.previous == self.state != move.state
            assert move.reason
            self.state = move.state

    @rule(ns=st.integers(0, 8 * S))
    def pass_time(self, ns: int) -> None:
        self.now_ns += ns

    @precondition(lambda self: self.breaker.admits(now_ns=self.now_ns))
    @rule()
    def start_call(self) -> None:
        leave = self.breaker.begin(now_ns=self.now_ns)
        self.heard(leave.move)
        assert leave.is_probe == (self.state == "half_open")
        self.calls.append(leave)

    @precondition(lambda self: self.calls)
    @rule(
        which=st.integers(0, 1000),
        said=st.sampled_from(["answered", "failed", "nothing"]),
        tokens=st.integers(0, 60),
        random=st.floats(0, 1, exclude_max=True),
    )
    def end_call(self, which: int, said: str, tokens: int, random: float) -> None:
        leave = self.calls.pop(which % len(self.calls))
        self.heard(
            self.breaker.end(leave, said, tokens=tokens, now_ns=self.now_ns, random=random)  # type: ignore[arg-type]
        )

    @rule(away_ns=st.integers(0, 20 * S), offset_ns=st.integers(0, 10**15))
    def survive_a_restart(self, away_ns: int, offset_ns: int) -> None:
        """A new root with another clock: an open breaker stays open for as long as it would have."""
        snapshot = self.breaker.snapshot(now_ns=self.now_ns)
        left_ns = max(0, snapshot.left_ns - away_ns)
        there = Breaker(self.settings)
        there.take_over(
            BreakerSnapshot(
                is_open=snapshot.is_open, left_ns=left_ns, openings=snapshot.openings, reason=snapshot.reason
            ),
            now_ns=offset_ns,
        )
        assert there.admits(now_ns=offset_ns) == (not snapshot.is_open or left_ns == 0)
        assert there.state == ("closed" if self.state == "closed" else "open")
        if self.state == "open":
            assert there.refuses(now_ns=offset_ns) == (left_ns > 0)
            assert there.admits(now_ns=offset_ns + left_ns)
        self.breaker, self.now_ns, self.calls, self.state = there, offset_ns, [], there.state

    @invariant()
    def the_states_agree(self) -> None:
        assert self.breaker.state == self.state

    @invariant()
    def few_probes_at_once(self) -> None:
        probing = sum(leave.is_probe and leave.era == self.breaker._era for leave in self.calls)
        assert probing <= self.settings.probes

    @invariant()
    def nobody_is_kept_out_for_ever(self) -> None:
        """Open, it says when; half-open, either there is room or a probe is on its way."""
        longest_ns = int(self.settings.max_open_s * (1 + JITTER) * S)
        if self.settings.quota_tokens is not None:
            longest_ns = max(longest_ns, 62 * S)
        if self.state == "open":
            assert self.breaker.open_until_ns - self.now_ns <= longest_ns
            assert self.breaker.admits(now_ns=self.breaker.open_until_ns)
        if self.state == "half_open" and not self.breaker.admits(now_ns=self.now_ns):
            assert any(leave.is_probe and leave.era == self.breaker._era for leave in self.calls)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = hypothesis_settings(max_examples=80, stateful_step_count=50, deadline=None)
