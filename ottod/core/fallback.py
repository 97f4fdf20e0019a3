"""What stands in for a model that does not answer, in the order that the agent's file gives.

The agent's model comes first, whatever the list says. `model` in the list means the fallback models, one after
another; `cache`, `rule` and `human` mean themselves.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ottod.errors import Failure
from ottod.protocol.specs import Resort

USED_UP = frozenset({"refused"})
"""Codes that no repetition mends and another provider may: an account without credit."""


STAND_INS = frozenset({"cache", "rule"})
"""Who answers when no model does, as `SessionInfo.model` names them."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to try. `target` is the model's index, for `model`."""

    kind: Literal["model", "cache", "rule", "human"]
    target: int = 0


def chain(resorts: tuple[Resort, ...], *, models: int) -> tuple[Step, ...]:
    """All that is tried for one call, in order. `models` counts the agent's own and its fallbacks."""
    steps = [Step(kind="model")]
    for resort in resorts:
        if resort == "model":
            steps += [Step(kind="model", target=index) for index in range(1, models)]
        else:
            steps.append(Step(kind=resort))
    return tuple(steps)


def may_reroute(resorts: tuple[Resort, ...]) -> bool:
    """Whether a call may go on to the next model at once: nothing else is to be tried before."""
    return resorts[:1] == ("model",)


def falls_back(failure: Failure) -> bool:
    """Whether something may stand in after this: what is wrong is the provider, not the request or the key."""
    return failure.retryable or failure.code in USED_UP
