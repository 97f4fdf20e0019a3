"""The error of a struct whose fields contradict each other, and what several files rule about alike."""

from __future__ import annotations

MAX_RESTARTS_PER_S = 10
"""An allowance above it is none: a session that crashes as soon as it is up would hardly ever use it up."""


def unbounded_restarts(max_restarts: int, period_s: float) -> tuple[str, str] | None:
    """What is wrong with an allowance of restarts that never stops anybody, and what would mend it."""
    if max_restarts <= MAX_RESTARTS_PER_S * period_s:
        return None
    message = f"{max_restarts} restarts in {period_s:g} s is no limit: nothing crashes more often than that"
    return message, "write what is too often, such as `max_restarts: 3` and `period_s: 60s`; 0 allows no restart"


class Contradiction(ValueError):
    """Raised by `__post_init__`. `field` is the one to point at, `mend` what would help.

    A ValueError, because msgspec passes only those and TypeErrors on as validation errors.
    """

    def __init__(self, message: str, *, field: str, mend: str) -> None:
        super().__init__(message)
        self.field = field
        self.mend = mend
