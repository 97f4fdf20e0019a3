"""The throttle: one refusal slows everyone, silence is kept as long as asked for, and trust comes back slowly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ottod.core.throttle import MAX_PAUSE_S, UNSAID, Throttle

S = 1_000_000_000


def refused(
    throttle: Throttle, at_s: float, *, began_s: float | None = None, running: int = 8, after_s: float | None = None
) -> None:
    began_ns = int((at_s if began_s is None else began_s) * S)
    throttle.refused(began_ns=began_ns, running=running, retry_after_s=after_s, now_ns=int(at_s * S), random=0.5)


def test_nothing_is_slowed_before_a_refusal() -> None:
    """Only the provider's cap counts."""
    throttle = Throttle(max_concurrent=8)
    throttle.answered(began_ns=0)
    assert (throttle.allowance, throttle.paused_until_ns, throttle.is_slowed) == (8, 0, False)


def test_it_is_silent_for_as_long_as_the_provider_asks() -> None:
    """A Retry-After is kept to the nanosecond, and a shorter one that follows does not cut it short."""
    throttle = Throttle(max_concurrent=8)
    refused(throttle, 1, after_s=7.5)
    assert throttle.paused_until_ns == int(8.5 * S)
    refused(throttle, 2, began_s=0.5, after_s=1)
    assert throttle.paused_until_ns == int(8.5 * S)
    refused(throttle, 3, began_s=0.5, after_s=9)
    assert throttle.paused_until_ns == 12 * S


def test_without_a_word_each_refusal_in_a_row_doubles_the_silence() -> None:
    """1 s, 2 s, 4 s …, and after an answer 1 s again."""
    throttle, at_s, pauses = Throttle(max_concurrent=8), 0.0, []
    for _ in range(4):
        refused(throttle, at_s)
        pauses.append(throttle.paused_until_ns / S - at_s)
        at_s = throttle.paused_until_ns / S + 0.1
    throttle.answered(began_ns=int(at_s * S))
    refused(throttle, at_s + 0.1)
    pauses.append(throttle.paused_until_ns / S - at_s - 0.1)
    assert pauses == pytest.approx([1, 2, 4, 8, 1])


def test_a_burst_that_is_refused_together_counts_once() -> None:
    """Of calls that had begun before the line was closed, only the first halves what may run."""
    throttle = Throttle(max_concurrent=64)
    for _ in range(10):
        refused(throttle, 5, began_s=4, running=20)
    assert throttle.allowance == 10
    refused(throttle, 9, began_s=8, running=10)
    assert throttle.allowance == 5


def test_a_late_refusal_of_an_old_call_changes_nothing() -> None:
    """The burst was refused, others got through since; one more of the burst is no news, and asks for nothing."""
    throttle = Throttle(max_concurrent=8)
    refused(throttle, 1, began_s=0.5)
    throttle.answered(began_ns=3 * S)
    refused(throttle, 4, began_s=0.6)
    assert throttle.paused_until_ns == 2 * S


def test_at_least_one_call_may_always_run() -> None:
    """However often it is refused, the line is never closed for good."""
    throttle = Throttle(max_concurrent=3)
    for at_s in range(1, 20):
        refused(throttle, at_s * 1000)
        assert throttle.allowance >= 1


def test_what_may_run_grows_by_about_one_a_round_and_then_only_the_cap_counts() -> None:
    """From 4 to 16 it takes some twelve rounds of answers."""
    throttle = Throttle(max_concurrent=16)
    refused(throttle, 1, running=8)
    rounds = 0
    while throttle.is_slowed:
        before = throttle.allowance
        for _ in range(before):
            throttle.answered(began_ns=2 * S)
        assert throttle.allowance - before in (0, 1, 2)
        rounds += 1
    assert throttle.allowance == 16
    assert 10 <= rounds <= 14


def test_answers_to_calls_from_before_prove_nothing() -> None:
    """What was on its way when the line closed says nothing of what it bears now."""
    throttle = Throttle(max_concurrent=16)
    refused(throttle, 5, running=8)
    for _ in range(100):
        throttle.answered(began_ns=4 * S)
    assert throttle.allowance == 4


@given(st.floats(0, 1e9), st.integers(0, 10**12))
def test_nobody_is_believed_who_asks_for_silence_for_ever(after_s: float, at_ns: int) -> None:
    """A pause is never longer than its bound."""
    throttle = Throttle(max_concurrent=2)
    throttle.refused(began_ns=at_ns, running=1, retry_after_s=after_s, now_ns=at_ns, random=0.0)
    assert at_ns <= throttle.paused_until_ns <= at_ns + int(MAX_PAUSE_S * S)


class ThrottleMachine(RuleBasedStateMachine):
    """Against an oracle that keeps the whole history, and across other clocks."""

    @initialize(cap=st.integers(1, 100))
    def begin(self, cap: int) -> None:
        self.cap, self.now_ns = cap, 1
        self.throttle = Throttle(max_concurrent=cap)
        self.pauses_until_ns: list[int] = [0]
        self.refusals_at_ns: list[int] = []

    @rule(ns=st.integers(1, 100 * S))
    def pass_time(self, ns: int) -> None:
        self.now_ns += ns

    @rule(age_ns=st.integers(0, 50 * S), running=st.integers(1, 100), after_s=st.none() | st.floats(0, 700))
    def refuse(self, age_ns: int, running: int, after_s: float | None) -> None:
        began_ns = max(0, self.now_ns - age_ns)
        before = self.throttle.allowance
        is_news = all(began_ns > at_ns for at_ns in self.refusals_at_ns)
        self.throttle.refused(
            began_ns=began_ns, running=running, retry_after_s=after_s, now_ns=self.now_ns, random=0.999
        )
        if is_news:
            self.refusals_at_ns.append(self.now_ns)
            assert self.throttle.allowance <= max(1, before // 2 + before % 2)
        else:
            assert self.throttle.allowance == before
        if after_s is not None:
            self.pauses_until_ns.append(self.now_ns + int(min(after_s, MAX_PAUSE_S) * S))

    @rule(age_ns=st.integers(0, 50 * S))
    def answer(self, age_ns: int) -> None:
        began_ns = max(0, self.now_ns - age_ns)
        before = self.throttle.allowance
        self.throttle.answered(began_ns=began_ns)
        is_old = any(began_ns <= at_ns for at_ns in self.refusals_at_ns)
        assert self.throttle.allowance == before if is_old else before <= self.throttle.allowance

    @rule()
    def move_to_another_clock(self) -> None:
        there = Throttle(max_concurrent=self.cap)
        there.take_over(self.throttle.snapshot(now_ns=self.now_ns), now_ns=self.now_ns)
        assert there.allowance == self.throttle.allowance
        assert max(there.paused_until_ns, self.now_ns) == max(self.throttle.paused_until_ns, self.now_ns)

    @invariant()
    def every_wish_is_kept(self) -> None:
        """The line is closed at least as long as any provider's word, and the allowance is within its bounds."""
        assert self.throttle.paused_until_ns >= max(self.pauses_until_ns)
        longest_ns = int(max(MAX_PAUSE_S, UNSAID.max_s * (1 + UNSAID.jitter)) * S)
        assert self.throttle.paused_until_ns <= self.now_ns + longest_ns
        assert 1 <= self.throttle.allowance <= self.cap


TestThrottle = ThrottleMachine.TestCase
TestThrottle.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
