"""The markdown tool: sections by heading, and nothing changed outside of them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.claims import claims_of
from ottod.core.permission import Call, decide, hard_denies, notes_guard
from ottod.errors import ToolError
from ottod.protocol.policy import Authority
from ottod.protocol.specs import PermissionRule
from ottod.tools.arguments import decode_arguments
from ottod.tools.markdown import MARKDOWN
from ottod.tools.markdown_sections import sections
from tests.fakes.session_place import SessionPlace

GUIDE = """---
title: The guide
tags: [a]
---
# Guide

Words.

## Install

Do it.

```sh
# not a heading
```

### Linux

apt.

## Use

Setext
------

> # quoted

Last <b>line</b>.
"""


def call(place: SessionPlace, action: str, **more: Any) -> str:
    return place.call(MARKDOWN, json.dumps({"action": action, "file": "guide.md", **more})).text


@pytest.fixture
def guide(place: SessionPlace) -> SessionPlace:
    (place.project / "guide.md").write_text(GUIDE)
    return place


def test_the_outline(guide: SessionPlace) -> None:
    """Headings of both kinds, none from code, quotations or front matter."""
    assert call(guide, "outline").splitlines() == [
        "# Guide [24 lines]",
        "  ## Install [12 lines]",
        "    ### Linux [4 lines]",
        "  ## Use [2 lines]",
        "  ## Setext [6 lines]",
    ]


def test_a_section(guide: SessionPlace) -> None:
    """With its subsections, by its heading in any case, by a path, with its signs."""
    linux = "### Linux\n\napt."
    assert call(guide, "section", heading="linux") == call(guide, "section", heading="### Linux") == linux
    assert call(guide, "section", heading="Guide > Install > Linux") == linux
    assert call(guide, "section", heading="Install").endswith(linux)
    with pytest.raises(ToolError, match="there are: Guide; Install; Linux; Use; Setext"):
        call(guide, "section", heading="Windows")


def test_headings_that_occur_twice_need_a_path(place: SessionPlace) -> None:
    """The model is told which there are."""
    (place.project / "guide.md").write_text("# A\n\n## X\n\none\n\n# B\n\n## X\n\ntwo\n")
    with pytest.raises(ToolError, match="A > X; B > X"):
        call(place, "section", heading="X")
    assert call(place, "section", heading="B > X").endswith("two")


def test_a_section_is_replaced(guide: SessionPlace) -> None:
    """Only what is below its heading, subsections included; all else is as it was, byte for byte."""
    assert (
        call(guide, "replace", heading="Install", content="Now.\n")
        == "replaced 11 lines by 1 line below Install in guide.md"
    )
    before, rest = GUIDE.split("## Install\n")
    after = "## Use" + rest.split("## Use")[1]
    assert (guide.project / "guide.md").read_text() == f"{before}## Install\n\nNow.\n\n{after}"
    call(guide, "replace", heading="Setext", content="End.")
    assert (guide.project / "guide.md").read_text().endswith("Setext\n------\n\nEnd.\n")


def test_line_ends_are_kept(place: SessionPlace) -> None:
    """A file with CRLF stays one."""
    (place.project / "guide.md").write_bytes(b"# A\r\n\r\none\r\n\r\n# B\r\n\r\ntwo\r\n")
    call(place, "replace", heading="A", content="x\ny")
    assert (place.project / "guide.md").read_bytes() == b"# A\r\n\r\nx\r\ny\r\n\r\n# B\r\n\r\ntwo\r\n"


@pytest.mark.parametrize("content", ["```\nopen", "# Another\n", "## Sibling\n", "<!-- open"])
def test_content_that_would_change_the_rest_is_refused(guide: SessionPlace, content: str) -> None:
    """A code block left open would swallow what follows; a heading of the same level would move it."""
    with pytest.raises(ToolError, match="outside of this one"):
        call(guide, "replace", heading="Install", content=content)
    assert (guide.project / "guide.md").read_text() == GUIDE


def test_front_matter_and_html(guide: SessionPlace) -> None:
    """Front matter is given as it is; HTML is made without obeying HTML of the text."""
    assert call(guide, "front_matter") == "title: The guide\ntags: [a]"
    html = call(guide, "html")
    assert html.startswith("<h1>Guide</h1>") and "&lt;b&gt;line" in html and "title:" not in html
    (guide.project / "guide.md").write_text("plain\n")
    assert call(guide, "front_matter") == "(there is no front matter)"
    assert call(guide, "outline") == "(there are no headings)"


@given(text=st.text(st.sampled_from("#-=>` ab\n\t*1."), max_size=200))
def test_sections_nest_and_lie_in_the_text(text: str) -> None:
    """Whatever the text, each section lies within the one above it, and they come in order."""
    known = sections(text)
    count = len(text.split("\n"))
    for before, after in itertools.pairwise(known):
        assert before.start < after.start
        assert after.end <= before.end or after.start >= before.end
    assert all(0 <= s.start < s.body <= s.end <= count and s.path[-1] == s.title for s in known)


@pytest.mark.parametrize(
    ("action", "file", "expected"),
    [
        ("outline", "docs/guide.md", "allow"),
        ("html", "OTTO.md", "allow"),
        ("replace", "docs/guide.md", "ask"),
        ("replace", "guide.md", "allow"),
        ("replace", "OTTO.md", "ask"),
        ("replace", "sub/otto.md", "ask"),
        ("section", "keys/a.pem", "deny"),
        ("replace", ".otto/agents/a.md", "deny"),
    ],
)
def test_rules_look_at_the_file_that_is_meant(action: str, file: str, expected: str) -> None:
    """A rule about other files says nothing; to read is not to write; of OTTO.md only its writing is asked about."""
    arguments = decode_arguments(MARKDOWN, json.dumps({"action": action, "file": file}))
    assert MARKDOWN.touches is not None
    claims = claims_of(MARKDOWN.permissions, MARKDOWN.touches(arguments), root="/srv/project")
    rules = (
        PermissionRule(effect="deny", path="**/*.pem"),
        PermissionRule(effect="ask", permission="write", path="docs/**"),
    )
    own = Authority(name="rules", agent="writer", preset="balanced", rules=rules)
    call = Call(tool="markdown", claims=claims)
    assert decide(call, (*hard_denies(()), own, notes_guard())).effect == expected
