"""The daemon's absence, as whoever follows something is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Outage(NamedTuple):
    """The daemon has gone, or is there again."""

    is_over: bool
    seconds: float
    """How long the daemon is waited for; once that is over, how long it took."""

    def __str__(self) -> str:
        if self.is_over:
            return f"the daemon is back after {self.seconds:.1f} s"
        return f"the daemon has gone; waiting up to {self.seconds:g} s for it"


OnOutage = Callable[[Outage], None]


def unheard(outage: Outage) -> None:
    """For those who do not want to know."""
