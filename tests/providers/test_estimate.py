"""What a provider counted is believed as far as it can be true."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottod.protocol.model import ModelRequest, Text, UserMessage
from ottod.protocol.usage import MAX_CALL_TOKENS, TOKEN_COUNTS, Usage
from ottod.providers.estimate import counted_usage

ASKED = ModelRequest(model="m", messages=(UserMessage(text="x" * 400),))
SAID = (Text(text="y" * 40),)


def test_what_was_counted_stands() -> None:
    """Also where all of the input came from the cache."""
    for usage in (
        Usage(input_tokens=7, output_tokens=3, calls=1),
        Usage(cache_read_tokens=100, output_tokens=3, reasoning_tokens=2, calls=1),
        Usage(cache_write_tokens=100, output_tokens=3, calls=1),
    ):
        assert counted_usage(usage, ASKED, SAID) == usage


def test_a_server_that_counts_nothing_is_not_free() -> None:
    """Each direction that was not counted is estimated; an answer without a word has none."""
    assert counted_usage(Usage(), ASKED, SAID) == Usage(input_tokens=100, output_tokens=10)
    assert counted_usage(Usage(input_tokens=7), ASKED, SAID) == Usage(input_tokens=7, output_tokens=10)
    assert counted_usage(Usage(output_tokens=7), ASKED, SAID) == Usage(input_tokens=100, output_tokens=7)
    assert counted_usage(Usage(input_tokens=7), ASKED, ()) == Usage(input_tokens=7)


@given(st.lists(st.integers(), min_size=5, max_size=5))
def test_no_count_gives_back_or_takes_beyond_measure(counts: list[int]) -> None:
    """Whatever the server says."""
    usage = counted_usage(Usage(**dict(zip(TOKEN_COUNTS, counts, strict=True))), ASKED, SAID)
    assert all(0 <= getattr(usage, name) <= MAX_CALL_TOKENS for name in TOKEN_COUNTS)
    assert usage.total_tokens > 0 and usage.output_tokens > 0
