from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.session_place import SessionPlace


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SessionPlace]:
    """A session's place; nothing of the session is alive afterwards."""
    from ottod.isolation import processes

    found = SessionPlace(tmp_path)
    yield found
    found.close()
    assert processes.survivors(found.session) == []
