from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ottod.isolation.capture import BoundedOutput, cut_middle


def feed(chunks: list[bytes], max_bytes: int) -> BoundedOutput:
    output = BoundedOutput(max_bytes)
    for chunk in chunks:
        output.feed(chunk)
    return output


@given(text=st.text(), max_bytes=st.integers(1, 200), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_pieces_do_not_matter_and_the_bound_holds(text: str, max_bytes: int, cuts: list[int]) -> None:
    """However output is cut into pieces the result is the same; it is whole if it fits, else both its ends."""
    data = text.encode("utf-8", "replace")
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = feed([data[a:b] for a, b in itertools.pairwise(bounds)], max_bytes)
    whole = feed([data], max_bytes)
    assert pieces.text() == whole.text()
    assert pieces.total_bytes == len(data)
    assert pieces.is_truncated == (len(data) > max_bytes)
    if len(data) <= max_bytes:
        assert pieces.text() == data.decode()
    else:
        head, mark, tail = pieces.text().partition("\n[… ")
        tail = tail.partition("…]\n")[2]
        assert mark and data.decode().startswith(head) and data.decode().endswith(tail)
        assert len(head.encode()) + len(tail.encode()) <= max_bytes


@given(data=st.binary(max_size=600), max_bytes=st.integers(1, 200))
def test_any_bytes_give_bounded_text(data: bytes, max_bytes: int) -> None:
    """Bytes that are no text grow when they are shown, and are kept within the bound all the same."""
    text = feed([data], max_bytes).text()
    assert len(text.encode()) <= max_bytes + 60


def test_a_million_tiny_pieces_take_no_room() -> None:
    """One byte at a time costs no more memory than all at once."""
    output = BoundedOutput(1000)
    for _ in range(100_000):
        output.feed(b"x")
    assert output.total_bytes == 100_000
    assert len(output._tail) <= 100
    assert output.text() == "x" * 500 + "\n[… 99000 bytes not shown …]\n" + "x" * 500


def test_cut_middle_names_what_is_missing() -> None:
    """The mark counts the bytes that are not shown."""
    assert cut_middle("a" * 30, 10) == "aaaaa\n[… 20 bytes not shown …]\naaaaa"
    assert cut_middle("short", 10) == "short"
