"""A provider in a storm: the same server, which refuses, breaks down, stalls and cuts streams at random, by a seed.

Two layers of weather. Every request may meet a fault of its own; and now and then the whole provider is down for as
many requests in a row as it takes to open a breaker. What is drawn depends on the seed and on how many requests have
come, not on who sent them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from ottod.settings.script import Reply, Scene, Script, ScriptedError
from tests.fakes.wire_app import WireApp
from tests.fakes.wire_http import Api

OUTAGE_EVERY = 50
"""Requests to one API between the beginnings of two outages."""
OUTAGE_REQUESTS = 12
STALL_S = 30.0
"""Longer than any client in the storm waits."""
FAULTS = (("429", 0.12), ("429 with Retry-After", 0.06), ("500", 0.10), ("stall", 0.04), ("cut", 0.08))
"""And how likely a request meets each; all others are answered."""


class StormApp(WireApp):
    """The wire server's application with weather. `drawn` counts what became of the requests."""

    def __init__(self, script: Script, directory: Path, key: str, *, seed: int) -> None:
        super().__init__(script, directory, key)
        self._chance = random.Random(seed)
        self._came: Counter[str] = Counter()
        self.drawn: Counter[str] = Counter()

    def _choose(self, api: Api, now: Scene) -> Reply:
        reply = super()._choose(api, now)
        self._came[api.path] += 1
        is_down = self._came[api.path] % OUTAGE_EVERY >= OUTAGE_EVERY - OUTAGE_REQUESTS
        fault = "outage" if is_down else self._draw()
        self.drawn[fault] += 1
        match fault:
            case "429":
                return _failing(reply, 429)
            case "429 with Retry-After":
                return _failing(reply, 429, retry_after_s=round(self._chance.uniform(0.2, 1.0), 1))
            case "500":
                return _failing(reply, 500)
            case "outage":
                return _failing(reply, self._chance.choice((500, 503, 529)))
            case "stall":
                return replace(reply, stall=STALL_S, after_chunks=0)
            case "cut":
                return replace(reply, cut=self._chance.randrange(3))
            case _:
                return reply

    def _draw(self) -> str:
        drawn = self._chance.random()
        for fault, share in FAULTS:
            if drawn < share:
                return fault
            drawn -= share
        return "answered"


def _failing(reply: Reply, status: int, *, retry_after_s: float | None = None) -> Reply:
    return replace(reply, error=ScriptedError(status=status, retry_after_s=retry_after_s), after_chunks=0)


def storm_app(seed: int) -> Callable[..., WireApp]:
    """Makes the application for a server."""
    return lambda script, directory, key: StormApp(script, directory, key, seed=seed)
