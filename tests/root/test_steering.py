"""What a session without a worker is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ottod.errors import OttoError
from ottod.protocol.results import SessionInfo
from ottod.root.steering import Steering
from ottod.storage.journal_files import NAME

ID = "s-0000000001"


@pytest.mark.parametrize("left", [None, b""], ids=["no journal", "an empty journal"])
@pytest.mark.parametrize(
    ("past", "code"),
    [({}, "no_such_turn"), ({"turn": 2}, "journal_lost"), ({"resumed_from": "s-0000000002"}, "journal_lost")],
    ids=["parked before its first entry", "had turns", "had another one's turns"],
)
def test_a_journal_that_was_never_begun_is_not_lost(
    tmp_path: Path, past: dict[str, Any], code: str, left: bytes | None
) -> None:
    """Whose workers died before they could open it has no turn to forget, and nothing to put back from a copy."""
    if left is not None:
        (tmp_path / ID).mkdir()
        (tmp_path / ID / NAME).write_bytes(left)
    context: Any = SimpleNamespace(sessions_dir=tmp_path, in_thread=asyncio.to_thread)
    session: Any = SimpleNamespace(
        id=ID, key=1, info=SessionInfo(session=ID, state="parked", agent="a", model="m", created_at_ns=1, **past)
    )
    nobody: Any = None
    with pytest.raises(OttoError) as caught:
        asyncio.run(Steering(context, nobody).roll_back(session, 1))
    assert caught.value.code == code
    assert ("has no turn" in caught.value.message) == (code == "no_such_turn")
