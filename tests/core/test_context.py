"""Token accounting and compaction: what was counted is believed, and what is left is always a valid conversation."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.context import (
    BYTES_PER_TOKEN,
    KEPT_RESULT_BYTES,
    ContextMeter,
    Measure,
    cut_at,
    elided,
    first_replaced,
    input_tokens,
    is_cut_place,
    size_bytes,
    summarised,
    usable_tokens,
)
from ottod.core.turn import is_valid_conversation
from ottod.protocol.model import (
    AssistantMessage,
    Message,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage


def user(text: str) -> UserMessage:
    return UserMessage(text=text)


def said(text: str) -> AssistantMessage:
    return AssistantMessage(blocks=(Text(text=text),))


def exchange(names: list[str], text: str) -> list[Message]:
    """Calls, and their results."""
    return [
        AssistantMessage(blocks=tuple(ToolCall(call=n, tool="t", arguments="{}") for n in names)),
        ToolResults(results=tuple(ToolResult(call=n, tool="t", text=text) for n in names)),
    ]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Valid conversations: turns of input, exchanges and an answer, the last of them perhaps open."""
    texts = st.text(max_size=40) | st.integers(0, 3000).map(lambda n: "x" * n)
    messages: list[Message] = []
    for turn in range(draw(st.integers(1, 4))):
        messages.append(user(draw(texts)))
        for step in range(draw(st.integers(0, 4))):
            names = [f"c{turn}-{step}-{i}" for i in range(draw(st.integers(1, 3)))]
            messages += exchange(names, draw(texts))
        if draw(st.booleans()):
            messages.append(said(draw(texts)))
    return tuple(messages)


# ---------------------------------------------------------------- accounting


def test_what_was_counted_is_exact() -> None:
    """Two calls give the weight of what came between them; what no call has had is weighed by the ratio so far."""
    talk = (user("a" * 84), said("b" * 184), user("c" * 284), said("d" * 84))
    meter = ContextMeter(fixed_bytes=100)
    assert meter.tokens(talk[:1]) == (100 + 100) // BYTES_PER_TOKEN
    meter.learn(Measure(count=1, tokens=100))
    assert meter.prefixes(talk[:1]) == [50, 100]
    assert meter.tokens(talk[:3]) == 100 + 250
    meter.learn(Measure(count=3, tokens=220))
    assert meter.prefixes(talk) == [50, 100, 148, 220, 252]


def test_a_provider_that_counts_nothing_teaches_nothing() -> None:
    """Some servers report zeros."""
    meter = ContextMeter(fixed_bytes=0, measures=[Measure(count=1, tokens=0)])
    assert meter.measures == []


def test_less_than_before_begins_anew() -> None:
    """A provider may leave out old thoughts: the newest count is the one that holds."""
    meter = ContextMeter(fixed_bytes=0, measures=[Measure(count=1, tokens=90), Measure(count=3, tokens=60)])
    assert meter.measures == [Measure(count=3, tokens=60)]
    meter.learn(Measure(count=3, tokens=70))
    assert meter.measures == [Measure(count=3, tokens=70)]
    meter.begin_at(Measure(count=2, tokens=50))
    assert meter.measures == [Measure(count=2, tokens=50)]
    meter.cut_back(2)
    assert meter.measures == []


def naive(messages: tuple[Message, ...], fixed_bytes: int, measures: list[Measure]) -> list[Fraction]:
    """Each message's own weight, span by span, then summed up: slow, exact, and obviously what is meant."""
    known: list[Measure] = []
    for measure in measures:
        if measure.tokens <= 0:
            continue
        known = [m for m in known if m.count < measure.count]
        if known and known[-1].tokens > measure.tokens:
            known = []
        known.append(measure)
    sizes = [fixed_bytes, *map(size_bytes, messages)]
    weights: list[Fraction] = []
    tokens = 0
    for measure in known:
        span = sizes[len(weights) : measure.count + 1]
        weights += [Fraction((measure.tokens - tokens) * size, sum(span)) for size in span]
        tokens = measure.tokens
    seen = sum(sizes[: len(weights)])
    ratio = Fraction(tokens, seen) if known else Fraction(1, BYTES_PER_TOKEN)
    weights += [size * ratio for size in sizes[len(weights) :]]
    return [sum(weights[: i + 1], Fraction()) for i in range(len(sizes))]


@given(
    conversations(),
    st.integers(0, 5000),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10_000)), max_size=6),
)
def test_the_meter_agrees_with_the_naive_one(
    messages: tuple[Message, ...], fixed_bytes: int, reports: list[tuple[int, int]]
) -> None:
    """Whatever the calls report, in whatever order: prefixes are those of the oracle, to one token, and only grow."""
    measures = [Measure(count=min(count, len(messages)), tokens=tokens) for count, tokens in reports]
    meter = ContextMeter(fixed_bytes=fixed_bytes, measures=measures)
    prefixes = meter.prefixes(messages)
    wanted = naive(messages, fixed_bytes, measures)
    assert len(prefixes) == len(wanted) == len(messages) + 1
    assert all(abs(got - exact) <= 1 for got, exact in zip(prefixes, wanted, strict=True))
    assert prefixes == sorted(prefixes)
    for measure in meter.measures:
        assert prefixes[measure.count] == measure.tokens
    assert meter.tokens(messages) == prefixes[-1]


def test_all_input_counts() -> None:
    """What came out of the cache is in the window too."""
    assert input_tokens(Usage(input_tokens=1, cache_read_tokens=20, cache_write_tokens=300, output_tokens=9)) == 321


@pytest.mark.parametrize(
    ("window", "output", "usable"), [(200_000, 8192, 191_808), (1000, 8192, 500), (1000, 500, 500), (1001, 0, 1001)]
)
def test_the_answer_needs_room_too(window: int, output: int, usable: int) -> None:
    """A conversation may fill the window less the answer, and half of it in any case."""
    assert usable_tokens(window, output) == usable


def test_sizes_are_those_of_utf8() -> None:
    """A character may take four bytes; thoughts that go back count, and so do names of tools."""
    assert size_bytes(user("aé€😀")) == size_bytes(user("a" * 10))
    short = size_bytes(AssistantMessage(blocks=(Thinking(text="a"),)))
    assert size_bytes(AssistantMessage(blocks=(Thinking(text="a", opaque="x" * 50),))) == short + 50


# ---------------------------------------------------------------- cutting


def test_the_newest_stay_as_far_as_they_may() -> None:
    """As much stays as is allowed; calls stay with their results; the newest exchange stays in any case."""
    talk = (user("task"), *exchange(["a"], "1" * 400), *exchange(["b"], "2" * 400), *exchange(["c"], "3" * 400))
    prefixes = ContextMeter(fixed_bytes=0).prefixes(talk)
    last_two = prefixes[-1] - prefixes[3]
    assert cut_at(talk, prefixes, keep_tokens=last_two) == 3
    assert cut_at(talk, prefixes, keep_tokens=last_two - 1) == 5
    assert cut_at(talk, prefixes, keep_tokens=0) == 5
    assert cut_at(talk[:3], prefixes[:4], keep_tokens=0) is None


def test_a_summary_takes_the_place_of_what_it_tells() -> None:
    """The task stays in front, the newest stay behind, and the summary knows for how many answers it stands."""
    talk = (user("task"), *exchange(["a"], "1"), said("done"), user("more"), *exchange(["b"], "2"))
    short = summarised(talk, 5, "so far")
    assert short[0] == talk[0] and short[2:] == talk[5:]
    assert isinstance(short[1], UserMessage) and short[1].text.endswith("so far") and short[1].stands_for == 2
    again = summarised((*short, *exchange(["c"], "3")), 4, "all of it")
    assert isinstance(again[1], UserMessage) and again[1].stands_for == 3
    assert again[2:] == tuple(exchange(["c"], "3"))


def test_what_is_left_keeps_its_weight() -> None:
    """Messages that stay weigh what was counted for them; the summary weighs what its size says."""
    talk = (user("t" * 84), *exchange(["a"], "x" * 500), *exchange(["b"], "y" * 500))
    meter = ContextMeter(fixed_bytes=0, measures=[Measure(count=1, tokens=50), Measure(count=5, tokens=500)])
    short = summarised(talk, 3, "")
    prefixes = meter.prefixes(talk)
    kept = prefixes[5] - prefixes[3]
    summary = meter.tokens_of_shorter(talk, short) - 50 - kept
    whole = sum(map(size_bytes, talk))
    assert summary == -(-size_bytes(short[1]) * 500 // whole)
    assert meter.tokens_of_shorter(talk, talk) == 500


def test_old_output_makes_room_for_new() -> None:
    """Without a summary the old results lose their text and say how long it was; short ones and errors stay."""
    failed = ToolResults(results=(ToolResult(call="b", tool="t", text="no", is_error=True),))
    talk = (user("task"), *exchange(["a"], "x" * 5000), exchange(["b"], "")[0], failed, *exchange(["c"], "y" * 5000))
    short = elided(talk, 5)
    assert isinstance(short[2], ToolResults) and short[2].results[0].text.startswith("[5000 bytes")
    assert short[4:] == talk[4:] and elided(short, 5) == short


@given(conversations(), st.integers(0, 2000), st.booleans())
def test_what_is_left_is_valid(messages: tuple[Message, ...], keep_tokens: int, is_summary: bool) -> None:
    """Cut where `cut_at` says, a valid conversation stays valid, keeps its task and its newest messages, and is never
    parted between calls and results."""
    prefixes = ContextMeter(fixed_bytes=0).prefixes(messages)
    at = cut_at(messages, prefixes, keep_tokens=keep_tokens)
    if at is None:
        places = [i for i in range(first_replaced(messages) + 2, len(messages)) if is_cut_place(messages, i)]
        assert not places
        return
    assert is_cut_place(messages, at)
    is_valid = is_valid_conversation(messages)
    short = summarised(messages, at, "s") if is_summary else elided(messages, at)
    assert is_valid_conversation(short) == is_valid
    assert short[0] == messages[0] and short[len(short) - (len(messages) - at) :] == messages[at:]
    if is_summary:
        assert len(short) == len(messages) - at + 2
    else:
        assert len(short) == len(messages)
        assert all(
            size_bytes(s) <= max(size_bytes(m), KEPT_RESULT_BYTES) for s, m in zip(short, messages, strict=True)
        )
    kept = prefixes[-1] - prefixes[at]
    later = [i for i in range(at + 1, len(messages)) if is_cut_place(messages, i)]
    assert kept <= keep_tokens or not later
