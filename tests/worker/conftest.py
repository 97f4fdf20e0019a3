"""The fixture that the worker's tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.errors import Failure
from ottod.protocol.worker_requests import SpawnChild, WorkerRequestBody
from tests.fakes.fake_root import FakeRoot


@pytest.fixture
def root(tmp_path: Path) -> Iterator[FakeRoot]:
    """A root without children to give."""
    fake = FakeRoot(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def root_with_children(tmp_path: Path) -> Iterator[FakeRoot]:
    """A root that starts a child for every key it has not seen."""
    keys: dict[str, str] = {}

    def answer(body: WorkerRequestBody) -> str | Failure:
        if isinstance(body, SpawnChild):
            return keys.setdefault(body.key, f"s-child{len(keys) + 1}")
        return body.child

    fake = FakeRoot(tmp_path, answer=answer)
    yield fake
    fake.close()
