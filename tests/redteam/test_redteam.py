"""Every attack is blocked, and by the layer that the table names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.isolation import bubblewrap
from tests.redteam.arena import Arena
from tests.redteam.cases import CASES, Case

NO_SANDBOX = bubblewrap.trial()
PAGE = Path(__file__).parents[2] / "docs/reference/red-team.md"


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    found = Arena(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_attack_is_blocked_by_its_layer(arena: Arena, case: Case) -> None:
    """By the layer that is named, and by no accident elsewhere."""
    if case.needs == "sandbox" and NO_SANDBOX:
        pytest.skip(f"the layer {case.layer!r} is not there: {NO_SANDBOX}")
    assert case.act(arena) == case.layer


def test_there_are_many_and_each_has_a_name() -> None:
    """At least sixty, all different, and all of them on the page that says which layer blocks what."""
    names = [case.name for case in CASES]
    assert len(names) >= 60 and len(set(names)) == len(names)
    page = PAGE.read_text()
    assert all(f"| `{case.name}` |" in page and case.layer in page for case in CASES)
    assert page.count("\n| `") == len(CASES)
