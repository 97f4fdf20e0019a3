"""A session whose process is killed goes on in the next: nothing paid for is paid again, nothing said is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ottod.core.resume import UNKNOWN, heir, restore
from ottod.core.turn import is_valid_conversation
from ottod.ids import session_key
from ottod.protocol import journal as j
from ottod.protocol.cause import BEYOND_RESTART
from ottod.protocol.events import (
    CheckpointWritten,
    ContentDelta,
    ItemStarted,
    LogWarning,
    MessageReceived,
    SessionStarted,
    SessionStateChanged,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    TurnCompleted,
    TurnStarted,
    UsageUpdated,
)
from ottod.protocol.model import AssistantMessage, ModelResponse, Text, ToolCall, ToolResult
from ottod.protocol.usage import Usage
from ottod.protocol.worker import DeliverInput, StopTurn
from ottod.storage.journal import FILE_HEADER, RECORD_HEADER, Journal
from tests.fakes.fake_root import FakeRoot

SLEEP = {"tools": [{"name": "shell", "arguments": {"command": "echo ran >> ran; sleep 300"}}]}
USAGE = {"usage": {"input_tokens": 10, "output_tokens": 5}}


def write(root: FakeRoot, *entries: j.JournalEntry) -> None:
    """A journal as an earlier incarnation would have left it."""
    journal = Journal.open(root.session_dir / "journal", session_key=session_key(root.session), create=True)
    for entry in entries:
        journal.append(entry)
    journal.close()
    root.incarnation = 1


def has_run(root: FakeRoot) -> bool:
    """Its line is there: the file is made a moment before."""
    file = root.workdir / "ran"
    return file.exists() and file.read_text() != ""


def count(root: FakeRoot, kind: type) -> int:
    return sum(isinstance(entry, kind) for entry in root.journal())


def test_a_model_call_that_was_lost_is_made_again(root: FakeRoot) -> None:
    """Killed in the middle of an answer: the turn is not begun again, the answer is, and watchers are told so."""
    root.script({"text": "0123456789" * 40, "chunk": 4, "delay_ms": 20, **USAGE}, {"text": "never"})
    root.bear()
    root.until_event(ContentDelta)
    root.kill()
    root.script({"text": "the whole answer", **USAGE})
    root.bear()
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "the whole answer"
    assert [e.turn for e in root.of(TurnStarted)] == [1] and len(root.of(TurnCompleted)) == 1
    (again,) = root.of(ItemStarted)
    at = root.events.index(again)
    assert again.item == "1.1" and again.kind == "assistant_message"
    said = [e.text for e in root.events[at:] if isinstance(e, ContentDelta)]
    assert "".join(said) == "the whole answer"
    assert [e.incarnation for e in root.of(SessionStarted)] == [1, 2]
    assert [(e.previous, e.state) for e in root.of(SessionStateChanged)][1] == ("starting", "running")
    assert count(root, j.ModelCalled) == 2 and count(root, j.ModelResponded) == 1
    assert root.of(UsageUpdated)[-1].total.calls == 1


def test_a_model_call_that_was_paid_for_is_not_made_again(root: FakeRoot) -> None:
    """Killed while a tool runs: the response is in the journal, and what the script would say now does not count."""
    root.script({"text": "look", "tools": [{"name": "shell", "arguments": {"command": "sleep 300"}}], **USAGE})
    root.bear("shell")
    root.until_event(ToolStarted)
    root.kill()
    root.script({"text": "WRONG"}, {"text": "I heard: ${last_tool_result}", **USAGE})
    root.bear("shell")
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == f"I heard: {UNKNOWN}"
    assert count(root, j.ModelResponded) == 2
    total = root.of(UsageUpdated)[-1].total
    assert (total.calls, total.input_tokens, total.usd_micros) == (2, 20, 30)


def test_an_effect_of_which_nobody_knows_is_not_repeated(root: FakeRoot) -> None:
    """A shell command that had begun is not run twice: the model is told, and so are the watchers."""
    root.script(SLEEP, {"text": "ok"})
    root.bear("shell")
    root.until("it ran", lambda: has_run(root))
    root.kill()
    root.bear("shell")
    assert root.finish().cause.kind == "completed"
    assert (root.workdir / "ran").read_text() == "ran\n"
    (failed,) = root.of(ToolFailed)
    assert failed.failure.code == "unknown" and len(root.of(ToolStarted)) == 1
    (resolved,) = [e for e in root.journal() if isinstance(e, j.ToolResolved)]
    assert resolved.result.is_error and resolved.result.text == UNKNOWN


def test_each_call_of_an_answer_is_resolved_by_its_own_rule(root: FakeRoot) -> None:
    """One has its result, one is harmless and begins again, one is unknown, one had not begun."""
    (root.workdir / "f").write_text("content\n")
    calls = tuple(
        ToolCall(call=name, tool=tool, arguments=arguments)
        for name, tool, arguments in (
            ("done", "shell", '{"command": "echo done >> ran"}'),
            ("harmless", "fs_read", '{"path": "f"}'),
            ("lost", "shell", '{"command": "echo lost >> ran"}'),
            ("new", "shell", '{"command": "echo new >> ran"}'),
        )
    )
    intents = [
        j.ToolIntended(
            turn=1, step=1, call=c.call, tool=c.tool, arguments=c.arguments, idempotent=i, idempotency_key="k"
        )
        for c, i in zip(calls[:3], (False, True, False), strict=True)
    ]
    write(
        root,
        j.SessionOpened(session=root.session, incarnation=1, agent="tester", model="m", cwd="/", task="go"),
        j.UserSaid(text="go", turn=1),
        j.ModelCalled(turn=1, step=1, model="m"),
        j.ModelResponded(
            turn=1, step=1, response=ModelResponse(blocks=calls, stop="tool_calls", usage=Usage(calls=1))
        ),
        *intents,
        j.ToolResolved(turn=1, step=1, call="done", result=ToolResult(call="done", tool="shell", text="it is done")),
    )
    root.script({"text": "WRONG"}, {"text": "${last_tool_result}"})
    root.bear("shell", "fs_read")
    word = root.finish()
    assert word.cause.kind == "completed"
    told = word.result
    assert told.index("it is done") < told.index("content") < told.index("unknown")
    assert (root.workdir / "ran").read_text() == "new\n"
    assert sorted(e.call for e in root.of(ToolStarted)) == ["harmless", "new"]
    assert [e.call for e in root.of(ToolFailed)] == ["lost"]
    assert sorted(e.call for e in root.of(ToolCompleted)) == ["harmless", "new"]
    assert sorted(e.call for e in root.journal() if isinstance(e, j.ToolIntended)) == sorted(c.call for c in calls)


def test_messages_that_wait_outlive_their_process(root: FakeRoot) -> None:
    """Accepted during a turn, not begun, killed: they are taken up in their order, once each."""
    root.script(SLEEP, {"text": "first"}, {"text": "second: ${input}"}, {"text": "third: ${input}"})
    root.bear("shell", mode="conversation")
    root.until_event(ToolStarted)
    assert root.command(DeliverInput(text="two")) is None
    assert root.command(DeliverInput(text="three", sender="s-other")) is None
    root.kill()
    root.bear("shell", mode="conversation")
    root.until("three turns", lambda: len(root.of(TurnCompleted)) == 3)
    said = [e.text for e in root.journal() if isinstance(e, j.UserSaid)]
    assert said == ["the task", "two", "three"]
    assert [e.message for e in root.of(MessageReceived)] == ["m1", "m2"]
    assert root.command(DeliverInput(text="four")) is None
    assert root.of(MessageReceived)[-1].message == "m3"


def test_an_idle_conversation_remembers(root: FakeRoot) -> None:
    """Killed between two turns: nothing is repeated, the state says idle, and the next answer knows the first."""
    root.script({"text": "one"}, {"text": "two"})
    root.bear(mode="conversation")
    root.until_event(SessionStateChanged, state="idle")
    root.kill()
    root.bear(mode="conversation")
    root.until_event(SessionStateChanged, state="idle")
    assert len(root.of(TurnStarted)) == 1
    root.command(DeliverInput(text="again"))
    root.until("the second turn", lambda: len(root.of(TurnCompleted)) == 2)
    assert [e.text for e in root.of(ContentDelta)] == ["one", "two"]
    root.command(StopTurn())
    assert root.finish().cause.kind == "cancelled"


def test_a_last_word_that_nobody_heard_is_said_again(root: FakeRoot) -> None:
    """The process died between its end and the hearing of it: the same cause and result, and no work."""
    root.script({"text": "the answer"})
    root.bear()
    assert root.finish().cause.kind == "completed"
    before = root.journal()
    root.bear(after="crashed")
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "the answer"
    assert root.journal() == before


def test_a_session_that_had_ended_and_is_started_again_begins_its_task_anew(root: FakeRoot) -> None:
    """A permanent session after `completed`: another turn with the same task, in the same conversation."""
    root.script({"text": "one"}, {"text": "two"})
    root.bear()
    assert root.finish().result == "one"
    root.bear(after="completed")
    assert root.finish().result == "two"
    assert [e.turn for e in root.of(TurnStarted)] == [1, 2]
    assert count(root, j.SessionClosed) == 2
    root.bear(after="crashed")
    assert root.finish().result == "two"


def test_a_turn_that_was_over_stays_over(root: FakeRoot) -> None:
    """Killed between the turn's end and the session's: the result is the turn's, and no model is asked."""
    write(
        root,
        j.SessionOpened(session=root.session, incarnation=1, agent="tester", model="m", cwd="/", task="go"),
        j.UserSaid(text="go", turn=1),
        j.ModelCalled(turn=1, step=1, model="m"),
        j.ModelResponded(
            turn=1,
            step=1,
            response=ModelResponse(blocks=(Text(text="it is done"),), stop="end", usage=Usage(calls=1)),
        ),
        j.TurnEnded(turn=1, outcome="completed"),
    )
    root.script({"text": "WRONG"})
    root.bear()
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "it is done"
    assert not root.of(TurnStarted)


@pytest.mark.parametrize(
    "order",
    [
        StopTurn(reason="the daemon is gone", cause="daemon_stop"),
        StopTurn(reason="its group restarts", for_restart=True),
    ],
)
def test_a_session_that_does_not_end_leaves_its_turn_open(root: FakeRoot, order: StopTurn) -> None:
    """Root goes for good, or the group restarts: no turn is cancelled, and another incarnation goes on from there."""
    root.script(SLEEP, {"text": "went on"})
    root.bear("shell")
    root.until("it ran", lambda: has_run(root))
    assert root.command(order) is None
    word = root.finish()
    assert (word.cause.kind, word.cause.message) == (order.cause, order.reason)
    assert (
        isinstance(root.journal()[-1], j.Checkpoint)
        and not count(root, j.TurnEnded)
        and not count(root, j.SessionClosed)
    )
    (checkpoint,) = root.of(CheckpointWritten)
    assert checkpoint.turn == 1
    root.bear("shell", after=order.cause)
    assert root.finish().result == "went on"
    assert (root.workdir / "ran").read_text() == "ran\n"


def test_a_torn_tail_is_repaired_and_said(root: FakeRoot) -> None:
    """Half a record at the end: the session goes on from the last whole one, with a warning."""
    root.script({"text": "one"}, {"text": "two"})
    root.bear(mode="conversation")
    root.until_event(SessionStateChanged, state="idle")
    root.kill()
    with (root.session_dir / "journal").open("ab") as journal:
        journal.write(b"\x01\x02\x03half a record")
    root.bear(mode="conversation")
    warning = root.until_event(LogWarning)
    assert warning.code == "journal_repaired"
    root.command(DeliverInput(text="more"))
    root.until("the second turn", lambda: len(root.of(TurnCompleted)) == 2)


@pytest.mark.parametrize("damage", ["header", "other"])
def test_a_journal_that_cannot_be_read_ends_the_session(root: FakeRoot, damage: str) -> None:
    """Nothing begins afresh in silence: an agent that has forgotten its past would repeat it."""
    root.script({"text": "one"})
    path = root.session_dir / "journal"
    if damage == "header":
        path.write_bytes(b"OTTOJRNL" + b"\xff" * 100)
    else:
        Journal.open(path, session_key=session_key(root.session) ^ 1, create=True).close()
    root.incarnation = 1
    before = path.read_bytes()
    root.bear()
    word = root.finish()
    assert word.cause.kind == "failed" and word.cause.code == "storage" and str(path) in word.cause.message
    assert path.read_bytes() == before and not root.of(TurnStarted)


def flip(path: Path, record: int) -> None:
    """One bit in the middle of a record."""
    data, at = bytearray(path.read_bytes()), FILE_HEADER.size
    for _ in range(record):
        at += RECORD_HEADER.size + RECORD_HEADER.unpack_from(data, at)[1]
    data[at + RECORD_HEADER.size + 3] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "unlinked": (Path.unlink, "journal_lost"),
    "emptied": (lambda path: os.truncate(path, 0), "journal_lost"),
    "cut in its header": (lambda path: os.truncate(path, 20), "journal_lost"),
    "cut behind its header": (lambda path: os.truncate(path, 32), "journal_lost"),
    "a bit of its first record": (lambda path: flip(path, 0), "journal_damaged"),
    "a bit in its middle": (lambda path: flip(path, 3), "journal_damaged"),
}


@pytest.mark.parametrize(("damage", "code"), DAMAGE.values(), ids=DAMAGE)
def test_a_journal_that_has_lost_what_was_done_is_not_begun_anew(
    root: FakeRoot, damage: Callable[[Path], None], code: str
) -> None:
    """A session that has begun never begins its task anew: what it has paid for and done would come twice."""
    call = {"name": "shell", "arguments": {"command": "echo x >> ran"}}
    root.script({"tools": [call]}, {"text": "one"}, {"tools": [call]}, {"text": "two"})
    root.bear("shell", mode="conversation")
    root.until_event(SessionStateChanged, state="idle")
    root.kill()
    path = root.session_dir / "journal"
    damage(path)
    before = path.read_bytes() if path.exists() else None
    root.bear("shell", mode="conversation", has_begun=True)
    word = root.finish()
    assert (word.cause.kind, word.cause.code) == ("failed", code) and str(path) in word.cause.message
    assert "ottoctl resume" in word.cause.message and code in BEYOND_RESTART
    assert [e.turn for e in root.of(TurnStarted)] == [1]
    assert (root.workdir / "ran").read_text() == "x\n"
    assert (path.read_bytes() if path.exists() else None) == before, "what is left of it is left as it is"


def test_a_process_that_died_before_it_began_leaves_nothing_to_resume(root: FakeRoot) -> None:
    """Without any journal the task is begun, and a warning says why."""
    root.script({"text": "one"})
    root.incarnation = 1
    root.bear(after="start_failed")
    assert root.finish().result == "one"
    (warning,) = root.of(LogWarning)
    assert warning.code == "journal_missing"


@pytest.mark.parametrize("moment", range(6))
def test_killed_again_and_again(root: FakeRoot, moment: int) -> None:
    """Killed after the nth event of each of several incarnations: the session still ends, with its one result."""
    steps = [{"text": f"step {n}", "tools": [{"name": "fs_read", "arguments": {"path": "f"}}]} for n in range(3)]
    (root.workdir / "f").write_text("x\n")
    root.script(*steps, {"text": "the end"}, chunk=3)
    for life in range(3):
        root.bear("fs_read")
        wanted = len(root.events) + 4 + moment * 5 + life
        root.until("some events", lambda wanted=wanted: len(root.events) >= wanted or root.last_word)
        if root.last_word:
            break
        root.kill()
    else:
        root.bear("fs_read")
    assert root.finish().result == "the end"
    entries = root.journal()
    responded = [(e.turn, e.step) for e in entries if isinstance(e, j.ModelResponded)]
    assert responded == [(1, 1), (1, 2), (1, 3), (1, 4)]
    resolved = [(e.step, e.call) for e in entries if isinstance(e, j.ToolResolved)]
    assert len(resolved) == len(set(resolved)) == 3
    messages = restore(entries).messages
    assert is_valid_conversation(messages) and sum(isinstance(m, AssistantMessage) for m in messages) == 4


def test_a_result_that_no_encoder_takes_does_not_hold_the_turn(root: FakeRoot) -> None:
    """Half of a character in a file that a tool reads: the turn goes on, with a mark in its place."""
    (root.workdir / "f.json").write_text('{"half": "\\ud83d"}')
    root.script(
        {"tools": [{"name": "data", "arguments": {"action": "get", "file": "f.json"}}]},
        {"text": "${last_tool_result}"},
    )
    root.bear("data")
    word = root.finish()
    assert word.cause.kind == "completed" and "\ufffd" in word.result


def test_a_session_without_a_task_begins_its_turn_anew(root: FakeRoot) -> None:
    """It took up the open turn of another one, failed, and root starts it again as its policy says."""
    open_turn = [
        j.SessionOpened(session="s-1", incarnation=1, agent="tester", model="m", cwd="/", task="go"),
        j.UserSaid(text="go", turn=1),
    ]
    write(root, heir(open_turn, origin="s-1", goes_on=True))
    root.incarnation = 0
    root.script({"error": {"status": 400, "message": "no"}})
    root.bear(task="")
    assert root.finish().cause.kind == "failed"
    root.script({"text": "now: ${input}"})
    root.bear(task="", after="failed")
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "now: go"
    assert [e.turn for e in root.of(TurnStarted)] == [1, 2]
