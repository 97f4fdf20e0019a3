"""For all tests: nothing is judged by how long it took, and a failing example can be run again."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("otto", deadline=None, print_blob=True)
settings.register_profile("same", settings.get_profile("otto"), derandomize=True)
"""The same examples in every run: of a change that is to pass, not of the search for what nobody has thought of."""
settings.load_profile("otto")
