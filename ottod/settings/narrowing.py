"""Budgets that hold together."""

from __future__ import annotations

from typing import TypeVar

from ottod.protocol.specs import Budgets

N = TypeVar("N", int, float)


def narrower(one: Budgets, other: Budgets) -> Budgets:
    """What both allow."""
    return Budgets(
        seconds=least(one.seconds, other.seconds),
        tokens=least(one.tokens, other.tokens),
        usd=least(one.usd, other.usd),
    )


def least(one: N | None, other: N | None) -> N | None:
    """The smaller limit; None is none."""
    return other if one is None else one if other is None else min(one, other)
