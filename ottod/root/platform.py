"""What isolation this host gives: tried once, by whoever asks first."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Platform:
    """The layers' reports, by name. `report` blocks on the first call, up to a second; for a thread."""

    def __init__(self, probe: Callable[[], dict[str, str]]) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._report: dict[str, str] = {}

    @property
    def known(self) -> dict[str, str]:
        """What has been tried so far; empty before the first trial is over."""
        return self._report

    def report(self) -> dict[str, str]:
        """Every layer: `yes…`, `partly…` or `no…`."""
        with self._lock:
            if not self._report:
                self._report = self._probe()
        return self._report
