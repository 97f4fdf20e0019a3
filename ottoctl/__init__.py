"""Otto's client: the control library and, in `ottoctl.main`, the command line built on it."""

from __future__ import annotations
