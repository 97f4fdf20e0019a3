"""Ids of traces and spans follow from names, and the header carries them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottod.core.trace_ids import parse_traceparent, span_id, trace_id, traceparent


@given(st.text(max_size=20), st.text(max_size=20))
def test_ids_tell_names_apart(one: str, other: str) -> None:
    """The same name gives the same id, another name another; neither is 0, and they fit their fields."""
    assert (trace_id(one) == trace_id(other)) == (one == other)
    assert (span_id(one, 1) == span_id(other, 1)) == (one == other)
    assert span_id("a", 1, 2) != span_id("a", 12)
    assert 0 < trace_id(one) < 2**128 and 0 < span_id(one) < 2**64


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
def test_a_header_gives_back_what_made_it(trace: int, span: int) -> None:
    """There and back."""
    assert parse_traceparent(traceparent(trace, span)) == (trace, span)


@given(st.text(max_size=60))
def test_anything_else_is_no_header(text: str) -> None:
    """Nor is one whose ids are 0."""
    assert parse_traceparent(text) is None
    assert parse_traceparent(traceparent(0, 1)) is None
    assert parse_traceparent(traceparent(1, 0)) is None
