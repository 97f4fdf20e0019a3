"""Otto's daemon: one supervised OS process for every agent session."""

from __future__ import annotations

__version__ = "0.1.0"
