"""What settings know by name only."""

from __future__ import annotations

from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.tools.registry import BUILTIN_TOOLS


def test_the_names_are_the_registrys() -> None:
    """Layer 0 cannot import tools; its list of names is kept equal by this test."""
    assert sorted(BUILTIN_TOOL_NAMES) == sorted(tool.name for tool in BUILTIN_TOOLS)
