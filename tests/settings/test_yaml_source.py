"""YAML text → data with positions."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError
from ottod.settings.scalars import plain_scalar
from ottod.settings.text_file import MAX_FILE_BYTES
from ottod.settings.yaml_source import MAX_DEPTH, MAX_NODES, parse, read

WRONG = [
    (b"", "f.yml: the file is empty"),
    (b"# only a comment\n", "f.yml: the file is empty"),
    (b"---\n", "f.yml: the file is empty"),
    (b"- a\n- b\n", "f.yml:1:1: the file must be a mapping of keys to values, got a list"),
    (b"\njust words\n", "f.yml:2:1: the file must be a mapping of keys to values, got 'just words'"),
    (b"a: 1\nb: 2\na: 3\n", "f.yml:3:1: duplicate key 'a', first on line 1"),
    (b"a:\n  x: 1\n  'x': 2\n", "f.yml:3:3: duplicate key 'x', first on line 2"),
    (b"a:\n\tb: 1\n", "f.yml:2:1: a tab where YAML wants spaces"),
    (b"a: 1\n---\nb: 2\n", "f.yml:2:1: a second document starts here"),
    (b"a: b: c\n", "f.yml:1:5: not YAML: a colon where no key can stand"),
    (b"a: \xff\n", "f.yml:1:4: not UTF-8: byte 0xff"),
    (b"a: 1\nb: \xc3\n", "f.yml:2:4: not UTF-8: byte 0xc3"),
    (b"a: x\x00y\n", "f.yml:1:5: control character U+0000"),
    (b'a: "x\\0y"\n', "f.yml:1:4: a string holds a NUL or half a character"),
    (b"a: *nowhere\n", "f.yml:1:4: alias *nowhere has no anchor"),
    (b"a: &x\n  b: *x\n", "f.yml:2:6: alias *x contains itself"),
    (b"a: !!python/name:os.system x\n", "f.yml:1:4: tag 'tag:yaml.org,2002:python/name:os.system' is not supported"),
    (b"? [a, b]\n: c\n", "f.yml:1:3: a key must be a plain string"),
    (b"'': c\n", "f.yml:1:1: a key must be a plain string"),
    (b"x: &b {k: 1}\na:\n  <<: *b\n", "f.yml:3:3: merge keys (<<) are not supported"),
    (b"a: 99999999999999999999\n", "f.yml:1:4: number out of range: 99999999999999999999"),
    (b"a: 1e999\n", "f.yml:1:4: number out of range: 1e999"),
]


@pytest.mark.parametrize(("data", "message"), WRONG, ids=[m[7:45] for _, m in WRONG])
def test_a_wrong_file_is_named_by_line_and_column(data: bytes, message: str) -> None:
    """Each kind of broken YAML gives exactly this one line, and a mend."""
    with pytest.raises(ConfigError) as caught:
        parse(data, file="f.yml")
    assert str(caught.value) == message
    assert caught.value.mend


@pytest.mark.parametrize(
    ("data", "line"), [(b"a: [1, 2\nb: 3\n", 2), (b"a: 'x\n", 2), (b"  a: 1\n b: 2\n", 2), (b"a: @x\n", 1)]
)
def test_other_syntax_errors_name_the_line(data: bytes, line: int) -> None:
    """Unclosed brackets and quotes, crooked indentation and reserved characters are placed on their line."""
    with pytest.raises(ConfigError, match=r"^f\.yml:\d+:\d+: not YAML: ") as caught:
        parse(data, file="f.yml")
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("80_000", 80_000),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b101", 5),
        ("0755", "0755"),
        ("0x", "0x"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1_000.5", 1000.5),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("10:30", "10:30"),
        ("2026-01-01", "2026-01-01"),
        ("1.2.3", "1.2.3"),
        ("_1", "_1"),
        (".", "."),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    """Unquoted scalars follow YAML 1.2's core rules: `off` is a string, a date is a string, `0755` is no octal."""
    read_value = plain_scalar(text)
    assert read_value == value
    assert type(read_value) is type(value)


def test_every_value_and_key_can_be_located() -> None:
    """Positions count from 1 and reach into lists and mappings; an unknown path gives its nearest ancestor."""
    source = parse(b"a: 1\nb:\n  - x\n  - c: [p, q]\n", file="f.yml")
    assert source.data == {"a": 1, "b": ["x", {"c": ["p", "q"]}]}
    assert source.locate(("b", 1, "c", 1)) == (4, 12)
    assert source.locate(("b", 1, "c"), key=True) == (4, 5)
    assert source.locate(("b", 0)) == (3, 5)
    assert source.locate(("b", 9, "z")) == source.locate(("b",)) == (3, 3)


def test_aliases_are_expanded() -> None:
    """An alias gives its anchor's value."""
    assert parse(b"a: &x [1, 2]\nb: *x\n", file="f").data == {"a": [1, 2], "b": [1, 2]}


def test_a_byte_order_mark_is_no_error() -> None:
    """A file saved with a byte order mark reads as without."""
    assert parse(b"\xef\xbb\xbfa: 1\n", file="f").data == {"a": 1}


def test_billion_laughs_cost_nothing() -> None:
    """Aliases of aliases are refused at the node bound, at once and not after expansion."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"more than {MAX_NODES} values"):
        parse("\n".join(lines).encode(), file="f")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("opening", [b"[", b"{a: ", b"- ", b"a:\n "])
def test_depth_is_bounded(opening: bytes) -> None:
    """A file that only opens brackets is refused at the depth bound, whatever its size."""
    with pytest.raises(ConfigError) as caught:
        parse(b"top: " + opening * 20_000, file="f")
    assert f"more than {MAX_DEPTH} deep" in str(caught.value) or "not YAML" in str(caught.value)


def test_size_is_bounded(tmp_path: Path) -> None:
    """A file one byte above the bound is refused unread; one at the bound is read."""
    file = tmp_path / "big.yml"
    file.write_bytes(b"a: 1\n" + b"#" * (MAX_FILE_BYTES - 5))
    assert read(file).data == {"a": 1}
    file.write_bytes(b"a: 1\n" + b"#" * (MAX_FILE_BYTES - 4))
    with pytest.raises(ConfigError, match=r"larger than 1048576 bytes"):
        read(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and a fifo are errors that name the file; the fifo does not block."""
    fifo = tmp_path / "fifo.yml"
    os.mkfifo(fifo)
    for path, reason in ((tmp_path / "no.yml", "no such file"), (tmp_path, "regular"), (fifo, "regular")):
        with pytest.raises(ConfigError, match=reason) as caught:
            read(path)
        assert caught.value.file == str(path)


@given(st.binary(max_size=200))
def test_any_bytes_give_data_or_a_config_error(data: bytes) -> None:
    """No bytes make the reader raise anything else."""
    try:
        parsed = parse(data, file="f")
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(parsed.data, dict)


@given(st.text(alphabet="ab:-[]{}#&*!|>'\"%@`?,<~ \n\t0_.x\\u", max_size=60))
def test_any_yaml_like_text_gives_data_or_a_config_error(text: str) -> None:
    """Nor does text that is made of YAML's own marks."""
    try:
        parse(text.encode(), file="f")
    except ConfigError as error:
        assert "\n" not in str(error)
