"""The form of the messages between Otto's own processes."""

from __future__ import annotations

import msgspec


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form that all worker messages share."""
