"""A long-lived session's journal is rotated while it works, and nothing is lost wherever its worker is killed."""

from __future__ import annotations

import pytest

from ottod.core.resume import restore
from ottod.core.turn import is_valid_conversation
from ottod.protocol import journal as j
from ottod.protocol.events import SessionStateChanged, TurnCompleted
from ottod.protocol.model import UserMessage
from ottod.protocol.worker import DeliverInput, StopTurn
from ottod.storage.journal_history import read_history
from ottod.worker.failpoints import SWITCH, VARIABLE
from tests.fakes.fake_root import FakeRoot

FILE_BYTES = 6000


def talk(root: FakeRoot, number: int) -> None:
    """One more turn."""
    assert root.command(DeliverInput(text=f"input {number}")) is None
    root.until(f"turn {number}", lambda: len(root.of(TurnCompleted)) == number)


def is_idle(root: FakeRoot) -> bool:
    changes = root.of(SessionStateChanged)
    return bool(changes) and changes[-1].state == "idle"


@pytest.mark.parametrize("point", ["", "made", "written", "linked", "renamed", "durable", "compressed"])
def test_rotated_and_killed_anywhere(root: FakeRoot, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """The session goes on from the newest file, with the same conversation; the history has every entry once."""
    monkeypatch.setenv(SWITCH, "1")
    root.script({"text": "word " * 300}, loop=True)
    env = {VARIABLE: f"1:rotation-{point}:0"} if point else {}
    root.bear(mode="conversation", task="input 1", env=env, journal_file_bytes=FILE_BYTES)
    root.until("turn 1", lambda: len(root.of(TurnCompleted)) == 1)
    turn = 2
    assert root.process is not None
    while root.process.poll() is None and turn < 12:
        try:
            talk(root, turn)
        except AssertionError:
            assert root.process.poll() is not None
            break
        turn += 1
    if point:
        assert root.process.wait(60) == -9, "it was to be killed"
        root.kill()
        before = len(root.of(SessionStateChanged))
        root.bear(mode="conversation", journal_file_bytes=FILE_BYTES)
        # It may have rested when it was killed: that says nothing of the one that is to be spoken to now.
        root.until("it is back", lambda: is_idle(root) and len(root.of(SessionStateChanged)) > before)
    root.until("it rests", lambda: is_idle(root))
    known = [e for e in read_history(root.session_dir).entries if isinstance(e, j.InputAccepted)]
    root.command(StopTurn())
    root.finish()
    history = read_history(root.session_dir)
    said = [m.text for m in restore(history.entries).messages if isinstance(m, UserMessage)]
    assert said == [f"input {n}" for n in range(1, len(known) + 2)]
    assert not history.incomplete and is_valid_conversation(restore(history.entries).messages)
    assert restore(root.journal()) == restore(history.entries)
    accepted = [e.number for e in history.entries if isinstance(e, j.InputAccepted)]
    assert accepted == list(range(1, len(accepted) + 1))
    if not point:
        names = sorted(p.name for p in root.session_dir.iterdir() if p.name.startswith("journal"))
        assert len(names) > 1 and all(name.endswith(".zst") for name in names[1:])
