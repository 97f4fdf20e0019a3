"""Agents that get nowhere, and answers that must be data: what a real worker does about them."""

from __future__ import annotations

from typing import Any

import pytest

from ottod.core.resume import restore
from ottod.core.turn import is_valid_conversation
from ottod.protocol import journal as j
from ottod.protocol.events import ItemCompleted, LogWarning, ToolStarted, TurnCompleted
from ottod.protocol.specs import Health, LoopRule, ToolErrorRule
from tests.fakes.fake_root import FakeRoot

READ: dict[str, Any] = {"tools": [{"name": "fs_read", "arguments": {"path": "f"}}]}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def loop(root: FakeRoot, *then: dict[str, Any], times: int = 3) -> None:
    (root.workdir / "f").write_text("the same\n")
    root.script(*[READ] * times, *then)


def warnings(root: FakeRoot) -> list[str]:
    return [event.code for event in root.of(LogWarning)]


def test_a_loop_is_told_to_the_model_and_to_the_watchers(root: FakeRoot) -> None:
    """The third time is one too many: a note joins the conversation before the next call, and the journal has it."""
    loop(
        root, {"alternatives": [{"when": {"user_contains": "same result 3 times"}, "text": "I heard"}, {"text": "?"}]}
    )
    root.bear("fs_read", health=Health(loop=LoopRule(after=3)))
    assert root.finish().result == "I heard"
    assert warnings(root) == ["unhealthy_loop"]
    (noted,) = [e for e in root.journal() if isinstance(e, j.UserSteered)]
    assert (noted.step, noted.sender, noted.number) == (4, "otto", -1)
    (told,) = [e for e in root.of(ItemCompleted) if e.text == noted.text]
    assert told.item == "1.4n" and is_valid_conversation(restore(root.journal()).messages)


def test_a_loop_can_end_the_turn(root: FakeRoot) -> None:
    """`stop`: the session fails with code `unhealthy`, and does not make another call."""
    loop(root, {"text": "never"})
    root.bear("fs_read", health=Health(loop=LoopRule(after=3, do="stop")))
    word = root.finish()
    assert (word.cause.kind, word.cause.code) == ("failed", "unhealthy") and "fs_read" in word.cause.message
    assert sum(isinstance(e, j.ModelCalled) for e in root.journal()) == 3


def test_a_loop_can_make_the_work_begin_anew(root: FakeRoot) -> None:
    """`restart`: a fresh conversation, told what went wrong; once more the same, and it is over."""
    (root.workdir / "f").write_text("the same\n")
    root.script(
        {"alternatives": [{"when": {"user_contains": "broken off"}, "text": "Anew: ${input}"}, READ]}, loop=True
    )
    root.bear("fs_read", health=Health(loop=LoopRule(after=2, do="restart")))
    word = root.finish()
    assert word.cause.kind == "completed" and word.result.startswith("Anew: [An earlier attempt at this was broken")
    assert warnings(root) == ["unhealthy_loop", "begun_anew"]
    (anew,) = [e for e in root.journal() if isinstance(e, j.TurnBegunAnew)]
    assert anew.step == 2 and "It changed nothing" in anew.text
    assert [e.step for e in root.journal() if isinstance(e, j.ModelCalled)] == [1, 2, 3]
    assert len(root.of(TurnCompleted)) == 1


def test_errors_in_a_row_survive_the_loss_of_the_process(root: FakeRoot) -> None:
    """Two before, one after: the streak is the turn's, not the process's."""
    missing = {"tools": [{"name": "fs_read", "arguments": {"path": "gone-${step}"}}]}
    root.script(missing, missing, {**missing, "crash": "SIGKILL", "marker": "once"}, {"text": "never"})
    root.bear("fs_read", health=Health(tool_errors=ToolErrorRule(after=3, do="stop")))
    root.until("the worker's end", lambda: root.process is not None and root.process.poll() is not None)
    root.kill()
    root.bear("fs_read", health=Health(tool_errors=ToolErrorRule(after=3, do="stop")))
    word = root.finish()
    assert word.cause.code == "unhealthy" and "3 tool calls in a row failed" in word.cause.message
    assert len(root.of(ToolStarted)) == 3


def test_an_answer_is_data_or_is_asked_for_again(root: FakeRoot) -> None:
    """The model is told the schema and what is wrong; the session's result is the JSON alone."""
    root.script(
        {"text": "It is one."},
        {"alternatives": [{"when": {"user_contains": "does not end with a JSON value"}, "text": 'So:\n{"n": 1.5}'}]},
        {"alternatives": [{"when": {"user_contains": "n must be integer"}, "text": 'Then:\n```json\n{"n": 1}\n```'}]},
    )
    root.bear(output_schema=SCHEMA)
    word = root.finish()
    assert (word.cause.kind, word.result, word.is_json) == ("completed", '{"n":1}', True)
    assert sum(isinstance(e, j.UserSteered) for e in root.journal()) == 2
    root.bear(output_schema=SCHEMA, after="crashed")
    again = root.finish()
    assert (again.result, again.is_json) == ('{"n":1}', True)


@pytest.mark.parametrize("retries", [0, 1])
def test_an_answer_that_never_is_fails_the_session(root: FakeRoot, retries: int) -> None:
    """As often as the agent allows, and no more: cause `failed`, code `bad_output`."""
    root.script({"text": "no"}, loop=True)
    root.bear(output_schema=SCHEMA, output_retries=retries)
    word = root.finish()
    assert (word.cause.kind, word.cause.code, word.is_json) == ("failed", "bad_output", False)
    assert sum(isinstance(e, j.ModelResponded) for e in root.journal()) == retries + 1


def test_a_lost_process_does_not_give_more_tries(root: FakeRoot) -> None:
    """What was refused before counts in the next incarnation."""
    root.script({"text": "no"}, {"text": "no", "crash": "SIGKILL", "marker": "once"}, {"text": '{"n": 1}'})
    root.bear(output_schema=SCHEMA, output_retries=1)
    root.until("the worker's end", lambda: root.process is not None and root.process.poll() is not None)
    root.kill()
    root.bear(output_schema=SCHEMA, output_retries=1)
    assert root.finish().cause.code == "bad_output"
