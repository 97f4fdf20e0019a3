"""The decoder of server-sent events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.providers.sse import EventTooLargeError, ServerSentEvent, SseDecoder

STREAM = (
    b': a comment\n\nevent: one\ndata: {"a": 1}\n\n'
    b"data: first\r\ndata: second\r\nid: 7\r\n\r\nevent: two\rdata:no space\r\rdata: \xc3\xa9\n\n"
)
EVENTS = [
    ServerSentEvent("one", b'{"a": 1}'),
    ServerSentEvent("", b"first\nsecond"),
    ServerSentEvent("two", b"no space"),
    ServerSentEvent("", "é".encode()),
]


def decode(chunks: list[bytes]) -> list[ServerSentEvent]:
    decoder = SseDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.finish()


def test_fields_comments_and_all_three_line_ends() -> None:
    """The standard's own cases."""
    assert decode([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_the_cut_between_chunks_never_matters(cuts: list[int]) -> None:
    """Whole, byte at a time, or cut anywhere, also inside a character or a CRLF: the same events."""
    at = [0, *sorted(cuts), len(STREAM)]
    assert decode([STREAM[a:b] for a, b in pairwise(at)]) == EVENTS
    assert decode([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_read_and_chunking_is_invisible(chunks: list[bytes]) -> None:
    """No input raises, and one chunk gives what many give."""
    assert decode(chunks) == decode([b"".join(chunks)])


def test_an_event_without_its_empty_line_counts_when_its_lines_are_whole() -> None:
    """The last event of a server that just closes; half a line is dropped."""
    assert decode([b"data: a\n\ndata: b\n"]) == [ServerSentEvent("", b"a"), ServerSentEvent("", b"b")]
    assert decode([b'data: a\n\ndata: {"b']) == [ServerSentEvent("", b"a")]


@pytest.mark.parametrize("piece", [b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"])
def test_an_endless_event_is_refused(piece: bytes) -> None:
    """One line without end, or lines without an empty one: memory stays bounded."""
    decoder = SseDecoder(max_event_bytes=100_000)
    decoder.feed(b"data: ")
    with pytest.raises(EventTooLargeError):
        for _ in range(200):
            decoder.feed(piece)
