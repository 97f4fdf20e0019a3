"""Session ids and keys are two spellings of one number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.ids import KEY_MAX, BadSessionId, key_from_bytes, normalise_prefix, session_id, session_key


@given(st.integers(0, KEY_MAX))
def test_round_trip(key: int) -> None:
    """Id and key translate into each other."""
    assert session_key(session_id(key)) == key


@given(st.text(max_size=14))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    """Nothing but BadSessionId is raised, and what is accepted is canonical."""
    for parse in (session_key, normalise_prefix):
        try:
            parse(text)
        except BadSessionId:
            pass


def test_prefixes_as_people_type_them() -> None:
    """With or without `s-`, in any case."""
    assert normalise_prefix(" 7F3 ") == normalise_prefix("s-7f3") == "s-7f3"
    with pytest.raises(BadSessionId):
        normalise_prefix("s-")


@given(st.binary(min_size=7, max_size=16))
def test_random_bytes_give_a_valid_key(data: bytes) -> None:
    """Seven random bytes are enough."""
    assert 0 <= key_from_bytes(data) <= KEY_MAX


def test_out_of_range_is_refused() -> None:
    """A key has 50 bits."""
    with pytest.raises(ValueError, match="out of range"):
        session_id(KEY_MAX + 1)
