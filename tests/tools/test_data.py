from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ottod.errors import ToolError
from ottod.tools.data import DATA
from ottod.tools.data_path import format_path, get, parse_path, put
from ottod.tools.documents import MAX_DEPTH, dump, load
from tests.fakes.session_place import SessionPlace

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def call(place: SessionPlace, **arguments: object) -> str:
    return place.call(DATA, json.dumps(arguments)).text


def test_parts_are_found_by_path(place: SessionPlace) -> None:
    """Keys, indices from both ends and quoted keys lead to a part; a wrong step names what is there."""
    (place.project / "f.json").write_text('{"a": {"b": [1, {"x.y": "deep"}]}, "port": 80}')
    assert call(place, action="get", file="f.json", path="a.b[0]") == "1"
    assert call(place, action="get", file="f.json", path='a.b[-1]["x.y"]') == '"deep"'
    with pytest.raises(ToolError, match="did you mean 'port'"):
        call(place, action="get", file="f.json", path="prot")
    with pytest.raises(ToolError, match=r"a\.b has 2 elements, no \[7\]"):
        call(place, action="get", file="f.json", path="a.b[7]")
    with pytest.raises(ToolError, match="bad path"):
        call(place, action="get", file="f.json", path="a..b")


def test_a_value_is_set_and_all_else_stays(place: SessionPlace) -> None:
    """YAML keeps its comments, order and quotes; JSON keeps its indentation."""
    yaml_text = '# head\nname: "x"   # why\nports:\n  - 80 # http\n  - 443\nnested: {a: 1}\n'
    (place.project / "f.yml").write_text(yaml_text)
    call(place, action="set", file="f.yml", path="ports[1]", value=8443)
    call(place, action="set", file="f.yml", path="name", value="a: b # c")
    assert (place.project / "f.yml").read_text() == yaml_text.replace("443", "8443").replace('"x"', "'a: b # c'")
    with pytest.raises(ToolError, match="lose its comments"):
        call(place, action="set", file="f.yml", path="new", value=1)
    (place.project / "f.json").write_text('{\n    "a": [1, 2]\n}\n')
    call(place, action="set", file="f.json", path="b.c", value=None)
    assert (place.project / "f.json").read_text() == (
        '{\n    "a": [\n        1,\n        2\n    ],\n    "b": {\n        "c": null\n    }\n}\n'
    )


def test_documents_are_converted_both_ways(place: SessionPlace) -> None:
    """Values survive; dates become text; what JSON cannot hold is refused."""
    (place.project / "f.yaml").write_text("day: 2024-02-29\nlist: [1, two]\n1: one\n")
    assert json.loads(call(place, action="convert", file="f.yaml")) == {
        "day": "2024-02-29",
        "list": [1, "two"],
        "1": "one",
    }
    assert call(place, action="convert", file="f.yaml", to="f.json") == "created f.json from f.yaml"
    assert "list:" in call(place, action="convert", file="f.json")
    (place.project / "nan.yaml").write_text("a: .nan\n")
    with pytest.raises(ToolError, match="cannot be written as JSON"):
        call(place, action="convert", file="nan.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.json", '{"a": 1 "b": 2}', "line 1, column 9"),
        ("f.json", '{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("f.json", '{"a": NaN}', "NaN is not JSON"),
        ("f.yaml", "a: 1\nb: [\n", "line 3, column 1"),
        ("f.yaml", "a: 1\na: 2\n", "line 2, column 1: duplicate key 'a'"),
        ("f.yaml", "!!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
        ("f.yaml", "a: 1\n---\nb: 2\n", "not valid YAML"),
        ("f.yaml", "? [a]\n: 1\n", "not valid YAML"),
    ],
)
def test_broken_documents_are_located(place: SessionPlace, name: str, text: str, message: str) -> None:
    """What is wrong comes with line and column, and no YAML tag runs anything."""
    (place.project / name).write_text(text)
    with pytest.raises(ToolError) as caught:
        call(place, action="validate", file=name)
    assert message in str(caught.value)
    assert not (place.project / "pwned").exists()


def test_one_key_of_very_many_is_found_to_be_there_twice() -> None:
    """Each is looked at once: for every one of them to be looked for among all others there is no time."""
    keys = ", ".join(f'"k{n}": 0' for n in range(200_000))
    with pytest.raises(ToolError, match="duplicate key 'k199999'"):
        load(f'{{{keys}, "k199999": 1}}', "json")


def test_hostile_documents_are_bounded() -> None:
    """Aliases that stand for billions, a value that contains itself, and endless nesting are refused quickly."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    for text in ("\n".join(lines), "a: &a [*a]", "[" * 5000, "a: " + "{b: " * 500 + "1" + "}" * 500):
        with pytest.raises(ToolError):
            load(text, "yaml")
    for text in ("[" * 100_000, "[" * 1500 + "]" * 1500):
        with pytest.raises(ToolError):
            load(text, "json")
    assert load("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "json") is not None


@given(value=VALUES)
@example(value={"\x85": "\u2028", "a": ["\ufeff", "\u2029x"]})
def test_every_value_survives_both_formats(value: object) -> None:
    """What is dumped is loaded as it was, in either format."""
    assert load(dump(value, "json"), "json") == value
    assert load(dump(value, "yaml"), "yaml") == value


@given(value=VALUES, keys=st.lists(st.text(max_size=5), min_size=1, max_size=4), new=VALUES)
def test_what_is_put_is_got(value: object, keys: list[str], new: object) -> None:
    """Setting a path and getting it gives the value, in a copy; paths survive being written down."""
    steps = tuple(keys)
    if not any('"' in key and "'" in key for key in keys):
        assert parse_path(format_path(steps)) == steps
    before = json.dumps(value)
    try:
        changed = put(value, steps, new)
    except ToolError:
        return
    assert get(changed, steps) == new
    assert json.dumps(value) == before
