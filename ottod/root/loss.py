"""What is known when a worker is gone."""

from __future__ import annotations

import msgspec

from ottod.isolation.processes import ProcessId
from ottod.protocol.cause import Cause


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that is gone, with all of its processes but `remaining`. `result` is its last word, perhaps cut;
    `is_json`: it is what the agent's schema asks for."""

    cause: Cause
    result: str = ""
    truncated: bool = False
    is_json: bool = False
    whole: str = ""
    remaining: tuple[ProcessId, ...] = ()
