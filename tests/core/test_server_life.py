from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottod.core.server_life import HEALTHY_NS, MAX_FAILURES, ServerLife
from ottod.protocol.specs import Backoff

EVEN = Backoff(base_s=1.0, factor=2.0, max_s=10.0, jitter=0.0)


def test_the_pauses_grow_and_then_it_is_over() -> None:
    """Each end in a row waits longer, up to a bound; one more than allowed is the last."""
    life = ServerLife(backoff=EVEN)
    assert [life.ended(served_ns=0, random=0.5) for _ in range(MAX_FAILURES + 1)] == [1.0, 2.0, 4.0, 8.0, 10.0, None]


def test_a_server_that_served_begins_anew() -> None:
    """An end after a healthy while is the first failure of a new row, however many there were."""
    life = ServerLife(backoff=EVEN)
    for _ in range(MAX_FAILURES):
        life.ended(served_ns=HEALTHY_NS - 1, random=0.5)
    assert life.ended(served_ns=HEALTHY_NS, random=0.5) == 1.0
    assert life.ended(served_ns=0, random=0.5) == 2.0


@given(st.lists(st.integers(0, 2 * HEALTHY_NS), max_size=40), st.integers(0, 6))
def test_it_never_tries_more_often_in_a_row_than_it_may(served: list[int], allowed: int) -> None:
    """Against a count by hand: a try follows exactly when fewer than the allowed ends in a row came early."""
    life, row = ServerLife(max_failures=allowed, backoff=EVEN), 0
    for each in served:
        row = 1 if each >= HEALTHY_NS else row + 1
        assert (life.ended(served_ns=each, random=0.0) is not None) == (row <= allowed)
