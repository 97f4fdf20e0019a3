"""Patterns: what they match, what they might, and which of two says more; against naive models."""

from __future__ import annotations

import fnmatch
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.pattern import (
    covers,
    matches,
    may_match,
    must_match,
    normalise_path,
    path_covers,
    path_matches,
    path_may_begin,
    path_may_match_below,
)

GLOB = st.text(alphabet="ab*?", max_size=6)
TEXT = st.text(alphabet="abc", max_size=6)
PATH_PART = st.sampled_from(["a", "b", "*", "**", "a*", "?"])
PATH_PATTERN = st.lists(PATH_PART, min_size=1, max_size=4).map("/".join) | st.lists(
    PATH_PART, min_size=1, max_size=3
).map(lambda parts: "/" + "/".join(parts))
PATH = st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=4).map("/".join)


@given(glob=GLOB, text=TEXT)
def test_globs_match_as_fnmatch_has_it(glob: str, text: str) -> None:
    """The naive model is the standard library's."""
    assert matches(glob, text) == bool(re.fullmatch(fnmatch.translate(glob), text))


@pytest.mark.parametrize(
    ("glob", "text", "is_match"),
    [
        ("[ab]x", "bx", True),
        ("[!ab]x", "bx", False),
        ("[!ab]x", "cx", True),
        ("[a-c]", "b", True),
        ("[a-c]", "d", False),
        ("[]]", "]", True),
        ("[x", "[x", True),
        ("a*", "a\nb", True),
    ],
)
def test_sets_and_newlines(glob: str, text: str, is_match: bool) -> None:
    """Sets as in a shell; a star takes newlines too, or a second line would hide from it."""
    assert matches(glob, text) is is_match


@given(glob=GLOB, beginning=TEXT)
def test_what_may_and_what_must_match(glob: str, beginning: str) -> None:
    """Compared with every continuation of up to three characters."""
    rests = ["".join(rest) for n in range(4) for rest in itertools.product("abc", repeat=n)]
    found = [matches(glob, beginning + rest) for rest in rests]
    if any(found):
        assert may_match(glob, beginning)
    if must_match(glob, beginning):
        assert all(found)


@given(wide=GLOB, narrow=GLOB)
def test_covering_is_never_claimed_in_vain(wide: str, narrow: str) -> None:
    """If one pattern covers another, it matches every text that the other matches; each covers itself."""
    if covers(wide, narrow):
        for length in range(5):
            for chars in itertools.product("abc", repeat=length):
                text = "".join(chars)
                assert matches(wide, text) or not matches(narrow, text)
    assert covers(wide, wide) and covers("*", wide)


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        (".env", ".env", True),
        (".env", "deep/down/.env", True),
        ("./.env", "deep/.env", False),
        ("secrets", "secrets/a/b", True),
        ("secrets/", "secrets/a", True),
        ("secrets/**", "secrets", True),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/deep/a.py", False),
        ("src/**/a.py", "src/a.py", True),
        ("src/**/a.py", "src/x/y/a.py", True),
        ("src", "lib/src", True),
        ("src/x", "lib/src/x", False),
        ("/etc/**", "/etc/passwd", True),
        ("/etc", "etc/passwd", False),
        ("*.pem", "/etc/ssl/x.pem", True),
        ("src/x", "/src/x", False),
        ("*", ".", True),
        ("**", "/etc/passwd", True),
        (".", "a/b", True),
        (".", "/etc", False),
        ("a//b", "a/b", True),
        ("?", ".", False),
        ("?", "/etc", False),
    ],
)
def test_paths_match_as_in_an_ignore_file(pattern: str, path: str, is_match: bool) -> None:
    """By component; without a slash at any depth; what is below belongs to it."""
    assert path_matches(pattern, path) is is_match


@given(pattern=PATH_PATTERN, path=PATH, below=PATH)
def test_what_matches_a_directory_matches_all_below(pattern: str, path: str, below: str) -> None:
    """And what may match below a path is not missed."""
    if path_matches(pattern, path):
        assert path_matches(pattern, f"{path}/{below}")
    if path_matches(pattern, f"{path}/{below}"):
        assert path_may_match_below(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "beginning", "may"),
    [
        ("secrets", "sec", True),
        ("secrets", "secrets/", True),
        ("secrets", "hello ", False),
        ("secrets/key", "secrets/", True),
        ("secrets/key", "secrets/x", False),
        (".env", "src/.e", True),
        (".env", "src/x", False),
        ("/etc/**", "/e", True),
        ("/etc/**", "/usr/", False),
    ],
)
def test_a_path_that_breaks_off_may_be_what_is_meant(pattern: str, beginning: str, may: bool) -> None:
    """`cat sec*` may read what lies in secrets; `echo hello $USER` does not."""
    assert path_may_begin(pattern, beginning) is may


@given(wide=PATH_PATTERN, narrow=PATH_PATTERN, path=PATH)
def test_paths_are_never_covered_in_vain(wide: str, narrow: str, path: str) -> None:
    """As for texts."""
    for each in (path, "/" + path):
        if path_covers(wide, narrow) and path_matches(narrow, each):
            assert path_matches(wide, each)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a/../b//c/./d/", "b/c/d"),
        ("..", "/srv"),
        ("../project/a", "a"),
        ("/srv/project", "."),
        ("/srv/project/x", "x"),
        ("/srv/projects/x", "/srv/projects/x"),
        ("//etc/passwd", "/etc/passwd"),
        ("./a/", "a"),
        ("../../../../x", "/x"),
    ],
)
def test_paths_are_compared_by_where_they_lead(path: str, normal: str) -> None:
    """Relative inside the working directory, absolute outside."""
    assert normalise_path(path, "/srv/project") == normal
