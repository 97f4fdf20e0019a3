"""Otto's client: the control library and, in `ottoctl.application`, the command line built on it.

    from ottoctl import Otto

    async with Otto.connect() as otto:
        session = await otto.start("coder", "fix the failing test", cwd="/home/me/calc")
        async for event in session.events():
            print(event)

Importing the package is cheap: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ottoctl.client import Otto
    from ottoctl.feed import Batch, SessionEvent
    from ottoctl.results import RunResult
    from ottoctl.session import Session
    from ottoctl.sync import SyncOtto, SyncSession
    from ottod.protocol.decisions import DecisionFilter

_HOMES = {
    "Batch": "ottoctl.feed",
    "DecisionFilter": "ottod.protocol.decisions",
    "Otto": "ottoctl.client",
    "RunResult": "ottoctl.results",
    "Session": "ottoctl.session",
    "SessionEvent": "ottoctl.feed",
    "SyncOtto": "ottoctl.sync",
    "SyncSession": "ottoctl.sync",
}

__all__ = ["Batch", "DecisionFilter", "Otto", "RunResult", "Session", "SessionEvent", "SyncOtto", "SyncSession"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
