"""Data → structs, with every mistake found and placed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from ottod.errors import ConfigError
from ottod.settings.decode import check, decode, decode_all
from ottod.settings.rules import Contradiction
from ottod.settings.units import format_duration, format_size, parse_duration, parse_size
from ottod.settings.yaml_source import Source, parse


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    level: Literal["low", "high"] = "low"
    timeout_s: Annotated[float, Meta(gt=0)] = 1.0
    size_bytes: Annotated[int, Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.level == "high" and self.timeout_s > 60:
            raise Contradiction("high must be quick", field="timeout_s", mend="write 60 or less")


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    count: Annotated[int, Meta(ge=0, le=9)] = 0
    flag: bool = False
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    named: dict[Annotated[str, Meta(pattern="^[a-z]+$")], Inner] = {}
    numbers: dict[str, int] = {}
    anything: dict[str, Any] = {}


WRONG = [
    ("nam: x\n", ["f:1:1: unknown key 'nam' — did you mean 'name'?", "f:1:1: missing key 'name'"]),
    ("name: x\nzzz: 1\n", ["f:2:1: unknown key 'zzz'"]),
    ("name: 5\n", ["f:1:7: name must be a string, got 5"]),
    ("name: x\ncount: -1\n", ["f:2:8: count must be an integer (≥ 0 and ≤ 9), got -1"]),
    ("name: x\ncount: 1.5\n", ["f:2:8: count must be an integer (≥ 0 and ≤ 9), got 1.5"]),
    ("name: x\ncount: '3'\n", ["f:2:8: count must be an integer (≥ 0 and ≤ 9), got '3'"]),
    ("name: x\ncount: true\n", ["f:2:8: count must be an integer (≥ 0 and ≤ 9), got true"]),
    ("name: x\nflag: yes\n", ["f:2:7: flag must be true or false, got 'yes'"]),
    ("name: x\nwords:\n", ["f:2:7: words must be a list of strings, got nothing"]),
    ("name: x\nwords: one\n", ["f:2:8: words must be a list of strings, got 'one'"]),
    ("name: x\nwords: [a, 1]\n", ["f:2:12: words[1] must be a string, got 1"]),
    ("name: x\ninner: 3\n", ["f:2:8: inner must be a mapping, got 3"]),
    ("name: x\ninner: {levle: low}\n", ["f:2:9: unknown key 'levle' in 'inner' — did you mean 'level'?"]),
    ("name: x\ninner:\n  level: hgh\n", ["f:3:10: inner.level must be one of low, high, got 'hgh'"]),
    (
        "name: x\nmany:\n  - {}\n  - {timeout_s: 0}\n",
        ["f:4:17: many[1].timeout_s must be a duration such as 30s or 5m (> 0), got 0"],
    ),
    (
        "name: x\ninner: {size_bytes: 5 parsecs}\n",
        ["f:2:21: inner.size_bytes must be a size such as 512 MiB (≥ 1), got '5 parsecs'"],
    ),
    ("name: x\nnamed: {A: {}}\n", ["f:2:9: the name of 'A' must be a string, got 'A'"]),
    ("name: x\nnumbers: {a: b}\n", ["f:2:14: numbers.a must be an integer, got 'b'"]),
    ("name: x\nnamed:\n  a: {level: high, timeout_s: 2m}\n", ["f:3:31: high must be quick"]),
    (
        "name: x\ncount: 10\nfalg: true\ninner: {level: mid}\n",
        [
            "f:2:8: count must be an integer (≥ 0 and ≤ 9), got 10",
            "f:3:1: unknown key 'falg' — did you mean 'flag'?",
            "f:4:16: inner.level must be one of low, high, got 'mid'",
        ],
    ),
]


@pytest.mark.parametrize(("text", "messages"), WRONG, ids=[m[0][2:40] for _, m in WRONG])
def test_every_mistake_is_found_and_placed(text: str, messages: list[str]) -> None:
    """Each wrong file gives exactly these lines in file order, each with a mend; `decode` raises the first."""
    source = parse(text.encode(), file="f")
    errors = check(Outer, source)
    assert [str(e) for e in errors] == messages
    assert all(e.mend for e in errors)
    with pytest.raises(ConfigError) as caught:
        decode(Outer, source)
    assert str(caught.value) == messages[0]


def test_a_right_file_gives_the_struct() -> None:
    """Nested structs, tuples, dicts, units and free data arrive as they were written."""
    text = b"""
name: x
count: 3
inner: {level: high, timeout_s: 1m, size_bytes: 2 KiB}
many: [{}, {timeout_s: 1.5}]
words: [a, b]
named: {one: {level: low}}
numbers: {a: 1}
anything: {deep: [1, {x: null}]}
"""
    assert decode(Outer, parse(text, file="f")) == Outer(
        name="x",
        count=3,
        inner=Inner(level="high", timeout_s=60.0, size_bytes=2048),
        many=(Inner(), Inner(timeout_s=1.5)),
        words=("a", "b"),
        named={"one": Inner(level="low")},
        numbers={"a": 1},
        anything={"deep": [1, {"x": None}]},
    )


def test_hidden_fields_cannot_be_set() -> None:
    """A field that the loader fills in cannot be set by a file."""
    (error,) = check(Outer, parse(b"name: x\nflag: true\n", file="f"), hidden=("flag",))
    assert str(error) == "f:2:1: key 'flag' is filled in by Otto"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512 MiB", 512 << 20), ("2G", 2 << 30), ("1.5 k", 1536), ("10kb", 10_000), ("1_024", 1024), ("7B", 7)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    """Sizes as people write them; a bare letter is a power of 1024."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("2 d", 172_800), ("1.5min", 90)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations as people write them, also composed."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "x", "-1s", "5", "1 s s", "5 parsecs", "1h x", "٣s", "9" * 30 + "T"])
def test_what_is_no_size_and_no_duration(text: str) -> None:
    """Anything else raises ValueError; a number without a unit is no duration text."""
    with pytest.raises(ValueError, match=r"not a|too large"):
        parse_duration(text)
    if text != "5":
        with pytest.raises(ValueError, match=r"not a|too large"):
            parse_size(text)


@given(st.integers(1, 4096), st.integers(1, 99_999))
def test_what_is_printed_can_be_read(size_kib: int, seconds: int) -> None:
    """A printed size or duration reads back as the same."""
    assert parse_size(format_size(size_kib * 1024)) == size_kib * 1024
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_size(64 << 20), "64 MiB"),
        (format_size(1000), "1000"),
        (format_size(0), "0"),
        (format_duration(365 * 86_400), "365d"),
        (format_duration(90), "90s"),
        (format_duration(0.2), "0.2s"),
        (format_duration(0), "0"),
    ],
)
def test_sizes_and_durations_are_printed_short(text: str, expected: str) -> None:
    """In the largest unit that divides them."""
    assert text == expected


@given(st.text(max_size=30))
def test_units_never_raise_anything_else(text: str) -> None:
    """Any text is a size, a duration, or a ValueError."""
    for read in (parse_size, parse_duration):
        try:
            assert read(text) >= 0
        except ValueError:
            pass


FIELDS = sorted(Outer.__struct_fields__)
KEYS = st.sampled_from([*FIELDS, "level", "timeout_s", "zz"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 15) | st.floats(-2, 20) | st.text(max_size=4)
JSON_LIKE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_LIKE, max_size=6))
def test_the_walk_and_msgspec_agree(data: dict[str, Any]) -> None:
    """Whatever the walk accepts without units, msgspec accepts strictly with the same result, and the reverse.

    Unknown keys aside: those msgspec ignores and the walk refuses.
    """
    value, errors = decode_all(Outer, Source("f", data, None))
    try:
        expected = msgspec.convert(data, Outer)
    except msgspec.ValidationError:
        expected = None
    if expected is None:
        assert errors
        assert value is None
    elif not any("unknown key" in str(e) for e in errors):
        assert value == expected
