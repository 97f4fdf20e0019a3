from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.settings.tool_names import MAX_SOURCE_NAME_CHARS, chosen, qualified, source_of

ACCEPTED = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
SOURCES = st.from_regex(rf"[a-z][a-z0-9-]{{0,{MAX_SOURCE_NAME_CHARS - 1}}}", fullmatch=True)


@given(SOURCES, st.text(max_size=200))
def test_every_name_is_one_that_both_vendors_take(source: str, tool: str) -> None:
    """Whatever a server calls its tool, the model's name for it fits and says whose it is."""
    name = qualified(source, tool)
    assert ACCEPTED.match(name), name
    assert source_of(name) == source


@given(SOURCES, st.lists(st.text(max_size=80), unique=True, max_size=20))
def test_different_tools_have_different_names(source: str, tools: list[str]) -> None:
    """Replaced characters and cut ends make no two tools one."""
    assert len({qualified(source, tool) for tool in tools}) == len(tools)


@pytest.mark.parametrize(
    ("source", "tool", "name"),
    [
        ("github", "create_issue", "github__create_issue"),
        ("x", "a__b", "x__a__b"),
        ("x", "files/read", r"x__files_read_[0-9a-f]{8}"),
        ("x", "a" * 100, r"x__a{52}_[0-9a-f]{8}"),
    ],
)
def test_plain_names_stay(source: str, tool: str, name: str) -> None:
    """A name that fits is kept; one that does not is marked by a hash."""
    assert re.fullmatch(name, qualified(source, tool))


def test_patterns() -> None:
    """A name means itself, a pattern what it matches, and case counts."""
    assert chosen("github__create_issue", ["github__*"])
    assert chosen("github__create_issue", ["github__create_*", "x"])
    assert not chosen("github__create_issue", ["GitHub__*", "github__create", "create_issue"])
    assert [source_of(name) for name in ("shell", "__x", "a__", "a__b", "a__*")] == ["", "", "", "a", "a"]
