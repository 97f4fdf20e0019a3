"""The daemon that is measured: one of the benchmark's own, whose workers hold what those of real sessions do."""

from __future__ import annotations

from collections.abc import Mapping

from ottoctl.private import PrivateDaemon


class MeasuredDaemon(PrivateDaemon):
    """A private daemon with both vendors' libraries loaded, as with their keys: scripts alone would flatter it."""

    def __init__(self, settings: Mapping[str, Mapping[str, object]] | None = None) -> None:
        given = settings or {}
        super().__init__({**given, "pool": {"preload": "all", **given.get("pool", {})}})
