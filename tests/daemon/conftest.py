"""The fixture most daemon tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.harness import RealDaemon, running_daemon


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """A fresh daemon with a small ring."""
    with running_daemon() as started:
        yield started
