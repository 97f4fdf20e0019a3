from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ottod.core.log_ring import LogRing


@given(st.lists(st.binary(max_size=20), max_size=80), st.integers(0, 40), st.integers(0, 400), st.integers(0, 60))
def test_it_reads_as_the_whole_output_would(pieces: list[bytes], size: int, cursor: int, most: int) -> None:
    """Whatever was fed in whatever pieces, a read gives what the last bytes of the whole hold at the cursor."""
    ring, whole = LogRing(size), b"".join(pieces)
    for piece in pieces:
        ring.feed(piece)
    first = max(0, len(whole) - size)
    begin = min(max(cursor, first), len(whole))
    data, behind, missed = ring.read(cursor, most)
    assert data == whole[begin : begin + most]
    assert (behind, missed) == (begin + len(data), max(0, begin - cursor))
    assert (ring.first, ring.end) == (first, len(whole))


class Follower(RuleBasedStateMachine):
    """A reader that goes on from the cursor it was given loses nothing but what it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = LogRing(30)
        self.whole = b""
        self.cursor = 0

    @rule(data=st.binary(max_size=50))
    def feed(self, data: bytes) -> None:
        self.ring.feed(data)
        self.whole += data

    @rule(most=st.integers(1, 40))
    def follow(self, most: int) -> None:
        data, behind, missed = self.ring.read(self.cursor, most)
        assert self.whole[self.cursor + missed : behind] == data
        self.cursor = behind

    @invariant()
    def bounded(self) -> None:
        assert self.ring.end - self.ring.first <= 30


TestFollower = Follower.TestCase
