"""For all tests: nothing is judged by how long it took, and a failing example can be run again."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("otto", deadline=None, print_blob=True)
settings.register_profile("same", settings.get_profile("otto"), derandomize=True)
"""The same examples in every run: of a change that is to pass, not of the search for what nobody has thought of."""
settings.load_profile(os.environ.get("TESTS_EXAMPLES", "otto"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background like this, and programs that are under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
