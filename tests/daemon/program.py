"""A command that has a daemon of its own, and takes it along when it is told to end.

What it has made it removes as it would after a failure: on its way out of `with` and `finally`. Then the process ends
at once: threads may wait for a daemon that is gone. The exit status is a shell's, 128 and the number of the signal.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ToldToEnd(BaseException):
    """Raised in the main thread, wherever it is, by the first of the signals; further ones change nothing."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


def run_program(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and exits with its status, or with 130 or 143 if it was told to end."""

    def told(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise ToldToEnd(number)

    for number in SIGNALS:
        signal.signal(number, told)
    try:
        status = main()
    except ToldToEnd as end:
        print(end, file=sys.stderr)
        _leave(end.status)
    except BaseException as error:
        if not isinstance(end := _root_of(error), ToldToEnd):
            raise
        # It could not put everything away.
        traceback.print_exc()
        _leave(end.status)
    sys.exit(status)


def _root_of(error: BaseException) -> BaseException:
    """What an error in the course of a clean-up came after."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
