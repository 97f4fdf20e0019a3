"""A running session is told what to do: by a real worker, over a real socket, and across its death."""

from __future__ import annotations

import pytest

from ottod.core.resume import heir, restore
from ottod.core.turn import is_valid_conversation
from ottod.protocol import journal as j
from ottod.protocol.events import (
    CheckpointWritten,
    ContentDelta,
    ConversationRolledBack,
    ItemCompleted,
    ItemStarted,
    SessionStarted,
    SessionStateChanged,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    TurnCancelled,
    TurnCompleted,
)
from ottod.protocol.model import ToolResults, UserMessage
from ottod.protocol.worker import DeliverInput, ForgetTurns, InterruptTurn, NoteCheckpoint, SetPause, StopTurn
from ottod.worker.failpoints import SWITCH, VARIABLE
from tests.fakes.fake_root import FakeRoot


def shell(command: str) -> dict[str, object]:
    return {"name": "shell", "arguments": {"command": command}}


def waits(marker: str) -> dict[str, object]:
    """A call that says that it runs, and ends when there is a file of that name."""
    return shell(f"touch {marker}.runs; while [ ! -e {marker} ]; do sleep 0.02; done; echo {marker} done")


def runs(root: FakeRoot, marker: str) -> None:
    root.until(f"{marker} runs", lambda: (root.workdir / f"{marker}.runs").exists())


def release(root: FakeRoot, marker: str) -> None:
    (root.workdir / marker).touch()


def state(root: FakeRoot) -> str:
    return root.of(SessionStateChanged)[-1].state


def back(root: FakeRoot) -> None:
    """The next incarnation has said how it is."""

    def is_there() -> bool:
        changes = [type(e) for e in root.events].count(SessionStarted) == root.incarnation
        return changes and root.of(SessionStateChanged)[-1].previous == "starting"

    root.until("it is back", is_there)


def said_to_model(root: FakeRoot) -> list[str]:
    messages = restore(root.journal()).messages
    assert is_valid_conversation(messages)
    return [m.text for m in messages if isinstance(m, UserMessage)]


def test_a_steer_is_heard_in_the_turn_that_runs(root: FakeRoot) -> None:
    """Said while a tool runs, it is the newest input at the next model call; the turn is the same."""
    root.script({"tools": [waits("a")]}, {"text": "${input} after ${last_tool_result}"})
    root.bear("shell")
    runs(root, "a")
    assert root.command(DeliverInput(text="hurry", steer=True)) is None
    release(root, "a")
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "hurry after a done"
    assert len(root.of(TurnCompleted)) == 1 and said_to_model(root) == ["the task", "hurry"]
    assert [e.item for e in root.of(ItemCompleted) if e.kind == "user_message"] == ["1.0", "1.m1"]
    (steered,) = [e for e in root.journal() if isinstance(e, j.UserSteered)]
    assert (steered.turn, steered.step, steered.number) == (1, 2, 1)


def test_a_steer_keeps_a_session_from_ending(root: FakeRoot) -> None:
    """Said while the last answer streams, it is answered before the session ends."""
    root.script({"text": "0123456789" * 20, "chunk": 4, "delay_ms": 50}, {"text": "heard: ${input}"})
    root.bear()
    root.until_event(ContentDelta)
    assert root.command(DeliverInput(text="wait", steer=True)) is None
    word = root.finish()
    assert word.result == "heard: wait" and len(root.of(TurnCompleted)) == 1


def test_a_steer_outlives_its_process(root: FakeRoot) -> None:
    """Accepted, and the worker killed before the next boundary: the next incarnation hears it there."""
    root.script({"tools": [waits("a")]}, {"text": "heard: ${input}"})
    root.bear("shell")
    runs(root, "a")
    assert root.command(DeliverInput(text="hurry", steer=True)) is None
    assert root.command(DeliverInput(text="later")) is None
    root.kill()
    root.bear("shell")
    word = root.finish()
    assert word.cause.kind == "completed" and said_to_model(root) == ["the task", "hurry", "later"]
    assert len(root.of(TurnCompleted)) == 2


def test_a_steer_without_a_turn_is_a_message(root: FakeRoot) -> None:
    """It begins the next turn."""
    root.script({"text": "one"}, {"text": "heard: ${input}"})
    root.bear(mode="conversation")
    root.until_event(TurnCompleted)
    root.until("it is idle", lambda: state(root) == "idle")
    assert root.command(DeliverInput(text="well?", steer=True)) is None
    root.until_event(TurnCompleted, turn=2)
    assert root.command(StopTurn()) is None
    root.finish()
    assert said_to_model(root) == ["the task", "well?"]


def test_an_interrupt_keeps_results_and_the_session(root: FakeRoot) -> None:
    """The call in flight is cancelled, the one that is done keeps its result; a one-shot session waits, then ends."""
    root.script(
        {"tools": [shell("echo first"), waits("never")]},
        {"text": "instead: ${input}"},
    )
    root.bear("shell")
    root.until_event(ToolCompleted)
    runs(root, "never")
    assert root.command(InterruptTurn(reason="no")) is None
    (cancelled,) = root.of(TurnCancelled)
    assert cancelled.interrupted and cancelled.reason == "no"
    assert [e.failure.code for e in root.of(ToolFailed)] == ["cancelled"]
    root.until("it waits", lambda: state(root) == "idle")
    refused = root.command(InterruptTurn())
    assert refused is not None and refused.code == "no_turn"
    root.kill()
    root.bear("shell")
    back(root)
    assert state(root) == "idle"
    assert root.command(DeliverInput(text="this")) is None
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "instead: this"
    results = [e.result for e in root.journal() if isinstance(e, j.ToolResolved)]
    assert results[0].text == "first" and results[1].is_error
    assert said_to_model(root) == ["the task", "this"]


def test_an_interrupted_answer_is_abandoned(root: FakeRoot) -> None:
    """A model call in flight is cancelled; nothing of it is in the conversation."""
    root.script({"text": "0123456789" * 100, "chunk": 2, "delay_ms": 50})
    root.bear(mode="conversation")
    root.until_event(ContentDelta)
    assert root.command(InterruptTurn()) is None
    root.until("it waits", lambda: state(root) == "idle")
    root.script({"text": "new: ${input}"})
    assert root.command(StopTurn()) is None
    root.finish()
    assert said_to_model(root) == ["the task"]


def test_a_pause_holds_back_what_has_not_begun(root: FakeRoot) -> None:
    """What runs ends, nothing begins, across the worker's death; then it goes on where it was."""
    root.script({"tools": [waits("a"), shell("echo b >> ran")]}, {"text": "done"})
    limits = {"max_parallel_tools": 1}
    from ottod.protocol.specs import Limits

    root.bear("shell", limits=Limits(**limits))  # type: ignore[arg-type]
    runs(root, "a")
    assert root.command(SetPause(paused=True, reason="lunch")) is None
    assert root.command(SetPause(paused=True)) is None
    assert (state(root), root.of(SessionStateChanged)[-1].reason) == ("paused", "lunch")
    release(root, "a")
    root.until_event(ToolCompleted)
    assert root.command(NoteCheckpoint(name="while paused")) is None
    assert len(root.of(ToolStarted)) == 1 and not (root.workdir / "ran").exists()
    root.kill()
    root.bear("shell", limits=Limits(**limits))  # type: ignore[arg-type]
    back(root)
    assert state(root) == "paused"
    assert root.command(DeliverInput(text="and then", steer=True)) is None
    assert len(root.of(ToolStarted)) == 1
    assert root.command(SetPause(paused=False)) is None
    word = root.finish()
    assert word.cause.kind == "completed" and (root.workdir / "ran").read_text() == "b\n"
    assert said_to_model(root) == ["the task", "and then"]
    assert sum(isinstance(e, j.ModelCalled) for e in root.journal()) == 2


def test_a_paused_session_begins_no_turn(root: FakeRoot) -> None:
    """Messages wait until it is unpaused; it is idle again when there are none."""
    root.script({"text": "one"}, {"text": "two: ${input}"})
    root.bear(mode="conversation")
    root.until("it is idle", lambda: root.of(SessionStateChanged) and state(root) == "idle")
    assert root.command(SetPause(paused=True)) is None
    assert root.command(SetPause(paused=False)) is None
    assert state(root) == "idle"
    assert root.command(SetPause(paused=True)) is None
    assert root.command(DeliverInput(text="hello")) is None
    assert root.command(NoteCheckpoint()) is None
    assert len(root.of(TurnCompleted)) == 1 and state(root) == "paused"
    assert root.command(SetPause(paused=False)) is None
    root.until("the second turn", lambda: len(root.of(TurnCompleted)) == 2)
    assert root.command(StopTurn()) is None
    root.finish()
    assert [(e.name, e.turn) for e in root.journal() if isinstance(e, j.Checkpoint)] == [("turn-1", 1)]
    assert [e.checkpoint for e in root.of(CheckpointWritten)] == ["turn-1"]


def test_turns_are_forgotten(root: FakeRoot) -> None:
    """Between turns only; what was said is no part of the next request, also after a restart."""
    root.script(*({"text": f"{n}: ${{task}} / ${{input}}"} for n in range(1, 4)))
    root.bear(mode="conversation")
    for n in (1, 2):
        root.until(f"turn {n}", lambda n=n: len(root.of(TurnCompleted)) == n and state(root) == "idle")
        if n == 1:
            assert root.command(DeliverInput(text="second")) is None
    refused = root.command(ForgetTurns(turns=3))
    assert refused is not None and refused.code == "no_such_turn" and "2" in refused.message
    assert root.command(ForgetTurns(turns=1)) is None
    assert [(e.turns, e.turn) for e in root.of(ConversationRolledBack)] == [(1, 1)]
    root.kill()
    root.bear(mode="conversation")
    back(root)
    assert root.command(ForgetTurns(turns=1)) is None
    assert root.command(DeliverInput(text="anew")) is None
    root.until("the third turn", lambda: len(root.of(TurnCompleted)) == 3)
    assert root.of(ItemCompleted)[-1].text == "1: anew / anew"
    assert root.command(StopTurn()) is None
    root.finish()
    assert said_to_model(root) == ["anew"] and restore(root.journal()).turn == 3


def test_what_was_forgotten_is_not_the_result(root: FakeRoot) -> None:
    """A session's result is what its model said last in the conversation that it has."""
    root.script({"text": "first"}, {"text": "second"})
    root.bear(mode="conversation")
    root.until("it is idle", lambda: root.of(SessionStateChanged) and state(root) == "idle")
    assert root.command(DeliverInput(text="and")) is None
    root.until("turn 2", lambda: len(root.of(TurnCompleted)) == 2 and state(root) == "idle")
    assert root.command(ForgetTurns(turns=1)) is None
    assert root.command(StopTurn()) is None
    assert root.finish().result == "first"


def test_turns_are_not_forgotten_while_one_runs(root: FakeRoot) -> None:
    """The order is refused, and says what would help."""
    root.script({"tools": [waits("a")]}, {"text": "done"})
    root.bear("shell")
    runs(root, "a")
    refused = root.command(ForgetTurns(turns=1))
    assert refused is not None and refused.code == "turn_open" and "interrupt" in refused.mend
    release(root, "a")
    assert root.finish().cause.kind == "completed"


@pytest.mark.parametrize("order", [InterruptTurn(), SetPause(paused=True), NoteCheckpoint(), ForgetTurns(turns=1)])
def test_a_session_that_ends_obeys_nothing_more(root: FakeRoot, order: SetPause) -> None:
    """Said plainly, not promised and forgotten."""
    root.script({"tools": [shell("trap '' TERM; touch stuck; sleep 300")]}, {"text": "x"})
    root.bear("shell")
    root.until("it runs", lambda: (root.workdir / "stuck").exists())
    assert root.command(StopTurn(reason="enough")) is None
    refused = root.command(order)
    assert refused is None or refused.code == "session_ended"
    root.finish()


def test_an_interrupt_does_not_lose_an_answer_that_is_paid_for(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the answer is on its way to the disk: the journal has it, so the next request has it too."""
    monkeypatch.setenv(SWITCH, "1")
    root.script({"text": "look", "tools": [shell("touch ran")]}, {"text": "${task} ${input}"})
    root.bear("shell", mode="conversation", env={VARIABLE: "1:held:3"})
    root.until("it is told", lambda: [e for e in root.of(ItemCompleted) if e.kind == "assistant_message"])
    number = root.order(InterruptTurn(reason="no"))
    root.until_event(TurnCancelled)
    (root.session_dir / "go").touch()
    assert root.answer_to(number) is None
    root.until("it waits", lambda: state(root) == "idle")
    assert root.command(DeliverInput(text="and now")) is None
    root.until_event(TurnCompleted)
    assert root.of(ItemCompleted)[-1].text == "the task and now", "the script counts answers: one was in the request"
    assert root.command(StopTurn()) is None
    root.finish()
    assert not (root.workdir / "ran").exists() and said_to_model(root) == ["the task", "and now"]


def test_an_interrupt_reaches_a_session_that_sums_up(root: FakeRoot) -> None:
    """Its time slice is over, and the summary takes long: the turn ends, and the session stays as it is."""
    root.script(
        {"tools": [shell("echo one")]},
        {"text": "instead: ${input}"},
        summary={"text": "0123456789" * 100, "chunk": 1, "delay_ms": 50},
    )
    root.bear("shell", time_slice_s=0.001)
    root.until("it sums up", lambda: [e for e in root.of(ItemStarted) if e.kind == "compaction"])
    assert root.command(InterruptTurn(reason="no")) is None
    (cancelled,) = root.of(TurnCancelled)
    assert cancelled.interrupted
    root.until("it waits", lambda: state(root) == "idle")
    assert root.command(DeliverInput(text="this")) is None
    word = root.finish()
    assert word.cause.kind == "completed" and word.result == "instead: this"
    assert not [e for e in root.journal() if isinstance(e, j.SliceEnded)]


def test_a_stop_reaches_a_session_that_sums_up(root: FakeRoot) -> None:
    """As any other model call, the summary is given up."""
    root.script({"tools": [shell("echo one")]}, summary={"text": "0123456789" * 100, "chunk": 1, "delay_ms": 50})
    root.bear("shell", time_slice_s=0.001)
    root.until("it sums up", lambda: [e for e in root.of(ItemStarted) if e.kind == "compaction"])
    assert root.command(StopTurn(reason="enough")) is None
    word = root.finish()
    assert word.cause.kind == "cancelled" and not word.continues


def test_a_slice_that_is_over_before_it_begins_gets_an_answer(root: FakeRoot) -> None:
    """Else each process would only pay for another summary of the same."""
    root.script({"tools": [shell("echo one")]}, summary={"text": "so far"})
    for number in (1, 2, 3):
        root.bear("shell", time_slice_s=0.000_001)
        assert root.finish().continues
        assert sum(isinstance(e, j.ModelResponded) for e in root.journal()) == number


def test_an_interrupt_of_a_session_that_leaves_its_turn_open_says_so(root: FakeRoot) -> None:
    """Whoever asked for it is not told that the turn is over when another incarnation goes on with it."""
    root.script({"tools": [shell("trap '' TERM INT; touch stuck; while :; do sleep 0.1; done")]}, {"text": "x"})
    root.bear("shell")
    root.until("it runs", lambda: (root.workdir / "stuck").exists())
    number = root.order(InterruptTurn())
    assert root.command(StopTurn(cause="daemon_stop")) is None
    answer = root.answer_to(number)
    over = [e for e in root.journal() if isinstance(e, j.TurnEnded)]
    assert (answer is None) == bool(over)
    assert answer is None or (answer.code == "turn_open" and answer.retryable)
    root.finish()


def test_who_pauses_again_is_not_overtaken(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that comes while its end is on its way to the disk is a pause."""
    monkeypatch.setenv(SWITCH, "1")
    root.script({"text": "one"}, {"text": "two: ${input}"})
    root.bear(mode="conversation", env={VARIABLE: "1:held:6"})
    root.until("it is idle", lambda: root.of(SessionStateChanged) and state(root) == "idle")
    assert root.command(SetPause(paused=True)) is None
    assert isinstance(root.journal()[5], j.SessionPaused)
    goes_on = root.order(SetPause(paused=False))
    root.until("it is noted", lambda: len(root.journal()) == 7)
    pauses = root.order(SetPause(paused=True))
    root.until("it is noted", lambda: len(root.journal()) == 8)
    (root.session_dir / "go").touch()
    assert root.answer_to(goes_on) is None and root.answer_to(pauses) is None
    assert root.command(DeliverInput(text="hello")) is None
    assert state(root) == "paused" and len(root.of(TurnCompleted)) == 1
    assert restore(root.journal()).is_paused


def test_a_model_names_a_point_to_go_back_to(root: FakeRoot) -> None:
    """The tool `checkpoint`: noted before it is told; a fork there has the results of that step."""
    root.script(
        {"tools": [shell("echo work >> ran"), {"name": "checkpoint", "arguments": {"name": "half-way"}}]},
        {"text": "${last_tool_result}"},
    )
    root.bear("shell", "checkpoint")
    word = root.finish()
    assert "half-way is noted, in turn 1" in word.result
    assert [e.checkpoint for e in root.of(CheckpointWritten)] == ["half-way"]
    found = heir(root.journal(), origin=root.session, checkpoint="half-way")
    results = found.messages[-1]
    assert isinstance(results, ToolResults) and not any(r.is_error for r in results.results)


def test_a_point_is_named_once_more_after_a_loss(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the checkpoint and the call's result: the call is made again, and the newest one counts."""
    monkeypatch.setenv(SWITCH, "1")
    root.script({"tools": [{"name": "checkpoint", "arguments": {"name": "p"}}]}, {"text": "${last_tool_result}"})
    root.bear("checkpoint", env={VARIABLE: "1:synced:5"})
    root.until("it is dead", lambda: root.process is not None and root.process.poll() is not None)
    root.kill()
    root.bear("checkpoint")
    assert "p is noted" in root.finish().result
    assert sum(isinstance(e, j.Checkpoint) for e in root.journal()) == 2
