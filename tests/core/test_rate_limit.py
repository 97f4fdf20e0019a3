"""The token bucket: no minute holds more than the limit allows, and nobody waits longer than that takes."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ottod.core.rate_limit import MINUTE_NS, TokenBucket

S = 1_000_000_000


@pytest.mark.parametrize(
    ("per_minute", "begins_s"),
    [
        (1, [0, 60, 120]),
        (2, [0, 30, 60]),
        (60, [0, 0, 1, 2]),
        (600, [0] * 11),
    ],
)
def test_calls_begin_evenly_behind_a_small_burst(per_minute: int, begins_s: list[int]) -> None:
    """One call and about a second's worth begin at once, the others as fast as the limit fills."""
    bucket = TokenBucket.of_requests(per_minute, now_ns=0)
    now_ns, found = 0, []
    for _ in begins_s:
        now_ns = max(now_ns, bucket.due_ns(1, now_ns=now_ns))
        bucket.take(1, now_ns=now_ns)
        found.append(now_ns // S)
    assert found == begins_s


@pytest.mark.parametrize(("per_minute", "burst"), [(0, 0), (1, 0), (5, 6), (-1, 1)])
def test_a_burst_is_part_of_the_minute(per_minute: int, burst: int) -> None:
    """A bucket that could never give anything, or gives more than its minute, cannot be made."""
    with pytest.raises(ValueError, match="burst"):
        TokenBucket(per_minute=per_minute, burst=burst, now_ns=0)


def test_a_cost_above_the_burst_waits_for_a_full_bucket_and_is_paid_off() -> None:
    """What costs more than may be taken at once waits for a full bucket, and others wait for its debt."""
    bucket = TokenBucket(per_minute=600, burst=100, now_ns=0)
    bucket.take(1, now_ns=0)
    due_ns = bucket.due_ns(1000, now_ns=0)
    assert 0 < due_ns <= S
    bucket.take(1000, now_ns=due_ns)
    # 900 tokens of debt and one more, at 501 a minute.
    assert bucket.due_ns(1, now_ns=due_ns) - due_ns == pytest.approx(901 / 501 * 60 * S, rel=1e-6)


def test_what_was_taken_too_much_comes_back_and_what_was_taken_too_little_is_owed() -> None:
    """A settled call leaves the bucket as if its real cost had been taken."""
    for taken, cost in ((100, 10), (10, 100), (50, 50)):
        bucket, exact = (TokenBucket(per_minute=600, burst=100, now_ns=0) for _ in range(2))
        bucket.take(taken, now_ns=0)
        bucket.settle(taken=taken, cost=cost, now_ns=0)
        exact.take(cost, now_ns=0)
        assert bucket.due_ns(100, now_ns=0) == exact.due_ns(100, now_ns=0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Only time that has really passed fills the bucket."""
    bucket = TokenBucket(per_minute=1, burst=1, now_ns=100 * S)
    bucket.take(1, now_ns=100 * S)
    assert bucket.due_ns(1, now_ns=50 * S) == 160 * S
    assert bucket.due_ns(1, now_ns=159 * S) == 160 * S


@st.composite
def limits(draw: st.DrawFn) -> tuple[int, int]:
    per_minute = draw(st.integers(1, 2000))
    return per_minute, draw(st.integers(1, per_minute))


@hypothesis_settings(deadline=None)
@given(
    limits(),
    st.lists(
        st.tuples(st.integers(0, 90 * S) | st.sampled_from([0, 1, MINUTE_NS]), st.integers(0, 100)), max_size=60
    ),
)
def test_no_minute_holds_more_than_its_limit(limit: tuple[int, int], asked: list[tuple[int, int]]) -> None:
    """However calls come, those that begin within any sixty seconds cost no more than the limit, by brute force."""
    per_minute, burst = limit
    bucket = TokenBucket(per_minute=per_minute, burst=burst, now_ns=0)
    begun: list[tuple[int, int]] = []
    now_ns = 0
    for pause_ns, raw in asked:
        cost = min(raw, burst)
        now_ns = max(now_ns + pause_ns, bucket.due_ns(cost, now_ns=now_ns + pause_ns))
        bucket.take(cost, now_ns=now_ns)
        begun.append((now_ns, cost))
    for start_ns, _ in begun:
        within = sum(cost for at_ns, cost in begun if start_ns <= at_ns < start_ns + MINUTE_NS)
        assert within <= per_minute


class BucketMachine(RuleBasedStateMachine):
    """The bucket beside one that computes with fractions and remembers everything."""

    @initialize(limit=limits())
    def begin(self, limit: tuple[int, int]) -> None:
        self.per_minute, self.burst = limit
        self.now_ns = 0
        self.bucket = TokenBucket(per_minute=self.per_minute, burst=self.burst, now_ns=0)
        self.level = Fraction(self.burst)
        self.taken: list[int] = []

    @rule(ns=st.integers(0, 2 * MINUTE_NS))
    def pass_time(self, ns: int) -> None:
        self.now_ns += ns
        filled = Fraction(ns * (self.per_minute - self.burst + 1), MINUTE_NS)
        self.level = min(Fraction(self.burst), self.level + filled)

    @rule(cost=st.integers(0, 5000))
    def take(self, cost: int) -> None:
        if self.bucket.due_ns(cost, now_ns=self.now_ns) <= self.now_ns:
            assert self.level >= min(cost, self.burst)
            self.bucket.take(cost, now_ns=self.now_ns)
            self.level -= cost
            self.taken.append(cost)
        else:
            assert self.level < min(cost, self.burst)

    @rule(share=st.fractions(0, 3))
    def settle(self, share: Fraction) -> None:
        if self.taken:
            taken = self.taken.pop()
            cost = int(taken * share)
            self.bucket.settle(taken=taken, cost=cost, now_ns=self.now_ns)
            self.level = min(Fraction(self.burst), self.level + taken - cost)

    @invariant()
    def the_wait_is_exact(self) -> None:
        """It says the first nanosecond at which there is enough."""
        wait_ns = self.bucket.due_ns(self.burst, now_ns=self.now_ns) - self.now_ns
        lacking = max(Fraction(0), self.burst - self.level)
        exact = lacking * MINUTE_NS / (self.per_minute - self.burst + 1)
        assert wait_ns == -(-exact.numerator // exact.denominator)


TestBucket = BucketMachine.TestCase
TestBucket.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
