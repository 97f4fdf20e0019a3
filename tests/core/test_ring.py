"""Ring arithmetic against naive oracles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottod.core.ring import Hole, Plan, Segment, Span, Track, choose_victim, contiguous_end, plan_read

RECORD_BYTES = 10


def segment(key: int, number: int, first: int, records: list[tuple[int, int]], previous: int = 0) -> Segment:
    """A segment of records of (offset, count), ten bytes each; its base is a thousand times its number."""
    made = Segment(
        number=number,
        base=number * 1000,
        start=number * 1000,
        session_key=key,
        generation=number,
        first_offset=first,
        first_seq=first,
        prev_last_offset=previous,
    )
    for offset, count in records:
        made.add(made.end, RECORD_BYTES, offset, count)
    return made


def track(key: int, *segments: Segment) -> Track:
    made = Track(key)
    made.segments = list(segments)
    return made


def plan(
    tracks: list[Track], cursor: int = 1, head: int = 100, max_bytes: int = 1000, holes: tuple[Hole, ...] = ()
) -> Plan:
    return plan_read(tracks, holes, cursor=cursor, head=head, max_bytes=max_bytes)


def test_one_track_is_one_span() -> None:
    """Records that lie back to back come as one run."""
    assert plan([track(1, segment(1, 0, 1, [(1, 2), (3, 1), (9, 1)]))]) == ([Span(0, 30)], 100, True)


def test_tracks_interleave_by_offset() -> None:
    """A run ends where another session's next record begins."""
    one, two = track(1, segment(1, 0, 1, [(1, 1), (2, 1), (5, 1)])), track(2, segment(2, 1, 3, [(3, 2)]))
    assert plan([one, two]).parts == [Span(0, 20), Span(1000, 1010), Span(20, 30)]
    assert plan([two, one]).parts == [Span(0, 20), Span(1000, 1010), Span(20, 30)]


def test_the_byte_limit_ends_a_run_between_records() -> None:
    """And the next cursor is the first record that was not taken."""
    one = track(1, segment(1, 0, 1, [(1, 1), (2, 3), (5, 1)]))
    assert plan([one], max_bytes=29) == ([Span(0, 20)], 5, False)
    assert plan([one], max_bytes=1) == ([Span(0, 10)], 2, False)
    assert plan([one], cursor=3, max_bytes=0) == ([Span(10, 20)], 5, False)


def test_a_hole_before_a_track_is_cut_to_what_the_read_covers() -> None:
    """Read in two parts, the hole comes in two parts, and together they are the whole."""
    gone = track(1, segment(1, 0, 8, [(8, 1)], previous=6))
    other = track(2, segment(2, 1, 2, [(2, 1), (4, 1)]))
    first = plan([gone, other], max_bytes=10)
    assert first == ([Hole(1, 3, "evicted", 1, 8), Span(1000, 1010)], 4, False)
    rest = plan([gone, other], cursor=4)
    assert rest.parts == [Hole(4, 6, "evicted", 1, 8), Span(1010, 1020), Span(0, 10)]


def test_holes_in_the_middle_and_at_the_end() -> None:
    """Damage between two segments, and a sealed end."""
    first, last = segment(1, 0, 1, [(1, 1)]), segment(1, 1, 9, [(9, 1)], previous=5)
    last.lost_to = 20
    damaged = track(1, first, last)
    assert damaged.reach == 20
    expected = [Span(0, 10), Hole(2, 5, "lost", 1, 9), Span(1000, 1010), Hole(10, 20, "lost", 1, 0)]
    assert plan([damaged]).parts == expected
    assert plan([damaged], cursor=4).parts == [Hole(4, 5, "lost", 1, 9), *expected[2:]]
    assert plan([damaged], cursor=15).parts == [Hole(15, 20, "lost", 1, 0)]
    assert plan([damaged], cursor=21).parts == []


def test_a_cursor_inside_a_record_gets_it_whole_and_after_its_end_the_next() -> None:
    """A record is not taken apart; offsets that belong to others do not count as its own."""
    one = track(1, segment(1, 0, 1, [(1, 3), (9, 1)]))
    assert plan([one], cursor=3).parts == [Span(0, 20)]
    assert plan([one], cursor=4).parts == [Span(10, 20)]
    assert plan([one], cursor=10) == ([], 100, True)


def test_cutting_a_segment() -> None:
    """What begins after an offset goes, and the seqs with it."""
    one = segment(1, 0, 1, [(1, 2), (5, 3), (9, 1)])
    one.cut_after(8)
    assert (one.end, one.last_offset, one.last_seq) == (20, 7, 5)
    one.cut_after(100)
    assert one.end == 20
    one.cut_after(0)
    assert (one.end, one.last_offset, one.last_seq, len(one.offsets)) == (0, 0, 0, 0)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 10))
def test_contiguous_end_counts_like_a_child(present: list[bool], start: int) -> None:
    """The first missing offset after the start ends it."""
    end = start
    while end < len(present) and present[end]:
        end += 1
    records = [(i + 1, 1) for i, there in enumerate(present) if there]
    assert contiguous_end(reversed(records), start) == max(end, start)


@given(
    st.dictionaries(st.integers(1, 9), st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 10), st.randoms()
)
def test_the_victim_holds_most_and_then_is_oldest(held: dict[int, int], asking: int, random: object) -> None:
    """Nobody who holds less than another is chosen, and whoever asks counts what it asks for."""
    numbers = list(range(sum(held.values())))
    random.shuffle(numbers)  # type: ignore[attr-defined]
    tracks = []
    for key, count in held.items():
        mine = sorted(numbers.pop() for _ in range(count))
        tracks.append(track(key, *(segment(key, n, n + 1, [(n + 1, 1)]) for n in mine)))
    victim = choose_victim(tracks, asking=asking)
    weight = {t.session_key: len(t.segments) + (t.session_key == asking) for t in tracks}
    richest = [t for t in tracks if weight[t.session_key] == max(weight.values())]
    assert victim is min(richest, key=lambda t: t.segments[0].generation)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Track], dict[int, tuple[int, int]], int]:
    """Some tracks with evicted prefixes; offset → (session key, count) of what is there; and the head."""
    offset, where = 1, {}
    segments: dict[int, list[Segment]] = {}
    newest: dict[int, int] = {}
    for number in range(draw(st.integers(1, 25))):
        key, count = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        if draw(st.integers(0, 3)) == 0 and key not in segments:
            newest[key] = offset + count - 1
            offset += count
            continue
        mine = segments.setdefault(key, [])
        if not mine or draw(st.booleans()):
            mine.append(segment(key, number, offset, [], previous=newest.get(key, 0)))
        mine[-1].add(mine[-1].end, RECORD_BYTES, offset, count)
        where[offset] = (key, count)
        newest[key] = offset + count - 1
        offset += count
    return [track(key, *mine) for key, mine in segments.items()], where, offset


@given(worlds(), st.integers(1, 200), st.data())
def test_reading_on_gives_every_record_once_in_order(
    world: tuple[list[Track], dict[int, tuple[int, int]], int], max_bytes: int, data: st.DataObject
) -> None:
    """Whatever the chunk size: all records that end at or after the cursor, in order, and the holes are disjoint."""
    tracks, where, head = world
    start = data.draw(st.integers(1, head))
    at = {
        p: (t.session_key, o) for t in tracks for s in t.segments for p, o in zip(s.positions, s.offsets, strict=True)
    }
    got: list[int] = []
    holes: list[Hole] = []
    cursor, caught_up = start, False
    while not caught_up:
        chunk = plan(tracks, cursor=cursor, head=head, max_bytes=max_bytes)
        taken = 0
        for part in chunk.parts:
            if isinstance(part, Hole):
                assert cursor <= part.first <= part.last < chunk.next_cursor
                holes.append(part)
            else:
                got += [at[p][1] for p in range(part.start, part.stop, RECORD_BYTES)]
                taken += part.stop - part.start
        assert taken <= max(max_bytes, RECORD_BYTES)
        assert chunk.next_cursor > cursor or chunk.caught_up
        cursor, caught_up = chunk.next_cursor, chunk.caught_up
    assert cursor == head
    assert got == [offset for offset in sorted(where) if offset + where[offset][1] > start]
    for t in tracks:
        mine = sorted((h.first, h.last) for h in holes if h.session_key == t.session_key)
        covered = {o for first, last in mine for o in range(first, last + 1)}
        assert covered == set(range(start, t.segments[0].prev_last_offset + 1))
        assert sum(last - first + 1 for first, last in mine) == len(covered)
