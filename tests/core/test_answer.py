"""Answers that must be data: found behind whatever is said before them, judged, and told why they are none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.answer import complaint_note, instruction, is_complaint, read_answer
from ottod.core.conduct import Conduct
from ottod.protocol.model import AssistantMessage, Text, ToolCall, ToolResult, ToolResults, UserMessage
from ottod.protocol.specs import AgentSpec, Health, LoopRule

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1}',
        ' \n{"n":1}\n ',
        'Here it is:\n```json\n{"n": 1}\n```\n',
        'First:\n```json\n{"n": 9}\n```\nno, rather\n```\n{"n": 1}\n```',
        'I counted [them].\n\n{"n": 1}',
        'With a fence inside:\n```json\n{"n":\n1}\n```',
        'So\n  {\n  "n": 1\n}',
    ],
)
def test_an_answer_is_what_the_text_ends_with(text: str) -> None:
    """Bare, fenced, or after some words."""
    answer = read_answer(text, SCHEMA)
    assert (answer.json, answer.complaint) == ('{"n":1}', "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it does not end with a JSON value"),
        ("one", "it does not end with a JSON value"),
        ('{"n": 1} as you wished', "it does not end with a JSON value"),
        ('{"n": 1', "it does not end with a JSON value"),
        ('{"n": "1"}', 'n must be integer, not "1"'),
        ("[1]", "the answer must be object, not a list of 1"),
        ("[" * 5000, "it does not end with a JSON value"),
        ("\ud800", "it does not end with a JSON value"),
    ],
)
def test_what_is_no_answer_is_told_why(text: str, complaint: str) -> None:
    """The model gets one sentence, and a later reader recognises it."""
    assert read_answer(text, SCHEMA).complaint == complaint
    assert is_complaint(UserMessage(text=complaint_note(complaint)))


@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text()))
def test_whatever_comes_before(before: str, value: dict[str, Any]) -> None:
    """Any text, a line, and a value: the value is found, unless the text makes a longer one of it."""
    json = msgspec.json.encode(value).decode()
    answer = read_answer(f"{before}\n{json}", {"type": "object"})
    if "{" not in before and "[" not in before:
        assert answer.json == json


def test_the_instruction_is_stable() -> None:
    """The system prompt is part of what a provider caches: the same schema gives the same bytes."""
    turned = {"required": ["n"], "properties": {"n": {"type": "integer"}}, "type": "object"}
    assert instruction(SCHEMA) == instruction(turned) and '"required":["n"]' in instruction(SCHEMA)


# ---------------------------------------------------------------- conduct


def call(n: int, tool: str = "t") -> tuple[tuple[ToolCall], tuple[ToolResult]]:
    return (ToolCall(call=f"c{n}", tool=tool),), (ToolResult(call=f"c{n}", tool=tool, text="same"),)


def test_an_answer_may_be_given_anew_so_many_times() -> None:
    """Told what is wrong each time; then the turn fails with `bad_output`. A later incarnation counts on."""
    conduct = Conduct(AgentSpec(name="a", output_schema=SCHEMA, output_retries=2))
    conduct.begin_turn()
    first = conduct.answered("no", ())
    assert first.failure is None and "does not end with a JSON value" in first.notes[0]
    resumed = Conduct(AgentSpec(name="a", output_schema=SCHEMA, output_retries=2))
    resumed.begin_turn((AssistantMessage(blocks=(Text(text="no"),)), UserMessage(text=first.notes[0])))
    for one in (conduct, resumed):
        assert one.answered("still no", ()).notes
        failure = one.answered("{}", ()).failure
        assert failure is not None and failure.code == "bad_output" and 'lacks "n"' in failure.message
        one.begin_turn()
        assert one.answered('{"n": 1}', ()).failure is None


def test_without_a_schema_any_answer_will_do() -> None:
    """Text is text."""
    assert Conduct(AgentSpec(name="a")).answered("no", ()) == Conduct(AgentSpec(name="a")).answered("", ())


def test_responses() -> None:
    """Warn is a note; stop fails the turn; restart begins it anew, once, and says what stays done."""
    spec = AgentSpec(name="a", health=Health(loop=LoopRule(after=2, do="warn")))
    conduct = Conduct(spec)
    assert conduct.stepped(*call(1), ()).notes == ()
    (note,) = conduct.stepped(*call(2), ()).notes
    assert "same result 2 times" in note

    stopping = Conduct(msgspec.structs.replace(spec, health=Health(loop=LoopRule(after=2, do="stop"))))
    stopping.stepped(*call(1), ())
    failure = stopping.stepped(*call(2), ()).failure
    assert failure is not None and failure.code == "unhealthy" and "health.loop" in failure.mend

    anew = Conduct(
        msgspec.structs.replace(spec, health=Health(loop=LoopRule(after=2, do="restart"))),
        harmless=frozenset({"fs_read"}),
    )
    turn = (AssistantMessage(blocks=call(1, "shell")[0]), ToolResults(results=call(1, "shell")[1]))
    anew.stepped(*call(1), turn)
    verdict = anew.stepped(*call(2), turn)
    assert "- shell {}" in verdict.anew and verdict.failure is None and verdict.findings
    anew.begin_turn(is_anew=True)
    anew.stepped(*call(1), turn)
    failure = anew.stepped(*call(2), turn).failure
    assert failure is not None and failure.code == "unhealthy" and "anew" in failure.message
