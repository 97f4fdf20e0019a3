"""One writer per file, by an advisory lock on the open file."""

from __future__ import annotations

import fcntl
import time

WAIT_S = 0.5
"""How long a lock is waited for. A program that the earlier writer was starting when it died holds a copy of the
descriptor until its exec is complete, which takes well under a millisecond on an idle machine."""
_POLL_S = 0.005


def lock_file(fd: int) -> None:
    """Takes the file's lock for as long as the descriptor is open. Raises BlockingIOError if another has it."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise
        time.sleep(_POLL_S)
