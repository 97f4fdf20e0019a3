"""The artifact tools, on a tree's artifacts in memory; the real ones are tried through a whole daemon."""

from __future__ import annotations

import json

import pytest

from ottod.core.claims import claims_of
from ottod.core.permission import Call, decide
from ottod.errors import ToolError
from ottod.protocol.policy import Authority
from ottod.protocol.specs import PermissionRule, Preset
from ottod.tools.arguments import decode_arguments
from ottod.tools.artifact_list import ARTIFACT_LIST
from ottod.tools.artifact_read import ARTIFACT_READ
from ottod.tools.artifact_write import ARTIFACT_WRITE
from tests.fakes.session_place import SessionPlace


def test_text_is_kept_and_read(place: SessionPlace) -> None:
    """What one call keeps another reads, with a line that says what it is."""
    kept = place.call(ARTIFACT_WRITE, '{"name": "design.md", "content": "# Plan\\nbuild it\\n", "kind": "design"}')
    assert kept.text == "kept design.md, version 1, 16 bytes, as art-0000000000"
    read = place.call(ARTIFACT_READ, '{"artifact": "design.md"}')
    assert read.text.splitlines() == [
        "[design.md, version 1, design, 16 bytes by tester (art-0000000000)]",
        "# Plan",
        "build it",
    ]


def test_a_file_is_kept_and_written(place: SessionPlace) -> None:
    """Any file of the working directory can be kept, and written to another one, byte for byte."""
    data = bytes(range(256))
    (place.project / "a.bin").write_bytes(data)
    place.call(ARTIFACT_WRITE, '{"name": "a.bin", "file": "a.bin"}')
    assert place.call(ARTIFACT_READ, '{"artifact": "a.bin", "to": "b/c.bin"}').text.startswith("created b/c.bin from")
    assert (place.project / "b/c.bin").read_bytes() == data
    with pytest.raises(ToolError, match="binary"):
        place.call(ARTIFACT_READ, '{"artifact": "a.bin"}')


@pytest.mark.parametrize("given", [{"content": "x"}, {"file": "x"}], ids=["content", "file"])
@pytest.mark.parametrize(
    ("preset", "rules", "expected"),
    [
        ("strict", (), "ask"),
        ("balanced", (), "allow"),
        ("balanced", (PermissionRule(effect="deny", permission="write"),), "deny"),
        ("autonomous", (PermissionRule(effect="ask", permission="write", path="src/**"),), "allow"),
    ],
)
def test_to_keep_is_to_write(
    given: dict[str, str], preset: Preset, rules: tuple[PermissionRule, ...], expected: str
) -> None:
    """For rules it is the same whether a text is kept or a file; and no path of the working directory is written."""
    arguments = decode_arguments(ARTIFACT_WRITE, json.dumps({"name": "a", **given}))
    assert ARTIFACT_WRITE.touches is not None
    claims = claims_of(ARTIFACT_WRITE.permissions, ARTIFACT_WRITE.touches(arguments), root="/srv/project")
    own = Authority(name="rules", agent="writer", preset=preset, rules=rules)
    assert decide(Call(tool="artifact_write", claims=claims), (own,)).effect == expected
    assert ("file" in given) == ("read x" in map(str, claims))


def test_a_repeated_call_keeps_nothing_twice(place: SessionPlace) -> None:
    """The same call after a crash, which has the same key, gives the same artifact."""
    arguments = '{"name": "a.md", "content": "x"}'
    assert place.call(ARTIFACT_WRITE, arguments).text == place.call(ARTIFACT_WRITE, arguments).text
    assert len(place.artifacts.kept) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"name": "a.md"}', "either content or file"),
        ('{"name": "a.md", "content": "x", "file": "y"}', "either content or file"),
        ('{"name": "../a.md", "content": "x"}', "no artifact's name"),
        ('{"name": "art-1", "content": "x"}', "no artifact's name"),
        ('{"name": "a\\u0000", "content": "x"}', "no artifact's name"),
        ('{"name": "a.md", "content": "x", "kind": "A kind"}', "no artifact's kind"),
        ('{"name": "a.md", "file": "../outside/secret.txt"}', "outside"),
    ],
)
def test_what_cannot_be_kept_is_refused(place: SessionPlace, arguments: str, message: str) -> None:
    """A name that is a path or an id, nothing to keep, and files of others are refused in words."""
    with pytest.raises(ToolError, match=message):
        place.call(ARTIFACT_WRITE, arguments)


def test_a_long_artifact_is_shown_in_parts(place: SessionPlace) -> None:
    """The parts that offsets give are the whole, and each call stays within its bound."""
    text = "".join(f"line {n} {'x' * (n % 90)}\n" for n in range(500))
    (place.project / "long.txt").write_text(text)
    place.call(ARTIFACT_WRITE, '{"name": "long.txt", "file": "long.txt"}')
    offset, found = 1, []
    while True:
        output = place.call(ARTIFACT_READ, f'{{"artifact": "long.txt", "offset": {offset}}}', max_output_bytes=4096)
        assert len(output.text.encode()) <= 4096
        lines = [line for line in output.text.splitlines() if not line.startswith("[")]
        found += lines
        if not output.truncated:
            break
        offset += len(lines)
    assert "".join(f"{line}\n" for line in found) == text


def test_the_list_names_what_there_is(place: SessionPlace) -> None:
    """The newest of each name, or all of one name or kind, and what each was made from."""
    assert place.call(ARTIFACT_LIST, "{}").text == "there are no such artifacts"
    for name, kind, sources in (("a.md", "prd", "[]"), ("b.md", "design", '["a.md"]')):
        place.artifacts._by_key.clear()
        text = f'{{"name": "{name}", "content": "x", "kind": "{kind}", "sources": {sources}}}'
        place.call(ARTIFACT_WRITE, text)
    assert place.call(ARTIFACT_LIST, "{}").text.splitlines() == [
        "b.md, version 1, design, 1 byte by tester (art-0000000001), made from a.md",
        "a.md, version 1, prd, 1 byte by tester (art-0000000000)",
    ]
    assert "b.md" not in place.call(ARTIFACT_LIST, '{"kind": "prd"}').text
