"""For all tests: nothing is judged by how long it took, and a failing example can be run again."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("otto", deadline=None, print_blob=True)
settings.load_profile("otto")
