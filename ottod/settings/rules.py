"""The error of a struct whose fields contradict each other."""

from __future__ import annotations


class Contradiction(ValueError):
    """Raised by `__post_init__`. `field` is the one to point at, `mend` what would help.

    A ValueError, because msgspec passes only those and TypeErrors on as validation errors.
    """

    def __init__(self, message: str, *, field: str, mend: str) -> None:
        super().__init__(message)
        self.field = field
        self.mend = mend
