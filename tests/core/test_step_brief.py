"""What a step's agent is told, and which of its outputs its answer is."""

from __future__ import annotations

from msgspec.structs import replace

from ottod.core.step_brief import (
    MAX_BRIEF_CHARS,
    Handed,
    answer_output,
    answer_schema,
    brief,
    failure_told,
    undo_brief,
)
from ottod.protocol.workflows import Output, Step
from ottod.settings.placeholders import fill_in, placeholders_in
from tests.core.workflows import step

SCHEMA = {"type": "object", "required": ["verdict"]}
TICKET = Handed(name="ticket", kind="ticket", version=2, size_bytes=5, text="Do it\n")


def told(of: Step, *, tools: tuple[str, ...] = (), handed: tuple[Handed, ...] = (), failure: str = "") -> str:
    return brief(of, task="the whole", iteration=3, handed=handed, tools=tools, last_failure=failure)


def test_placeholders_are_filled_in_once() -> None:
    """What the task says is not looked into: nobody can smuggle a placeholder in."""
    assert fill_in("{{task}}, again ({{iteration}})", task="a {{iteration}} b", iteration=2) == (
        "a {{iteration}} b, again (2)"
    )
    assert fill_in("", task="all", iteration=0) == "all"
    assert fill_in("Fix {{ task }} {{ iteration}} {{other}}", task="it", iteration=2) == "Fix it 2 {{other}}"
    assert placeholders_in("{{ task }} {{task}} {{x}}") == ("task", "x")


def test_who_undoes_is_told_what_was_tried_before() -> None:
    text = undo_brief("undo round {{ iteration }} of {{task}}", path="a[2]/b", task="it", iteration=2)
    assert text.startswith("undo round 2 of it\n\n") and "step a[2]/b" in text and "tried before" not in text
    assert "failed: it broke" in undo_brief("undo", path="a", task="it", iteration=0, last_failure="it broke")


def test_a_task_that_is_named_with_blanks_is_not_said_again() -> None:
    assert told(step("a", task="Fix {{ task }}")) == "Fix the whole"


def test_a_step_without_a_task_has_that_of_the_workflow() -> None:
    assert told(step("a")) == "the whole"
    assert told(step("a", task="my part")) == "my part\n\nIt is a part of this:\n\nthe whole"


def test_inputs_are_whole_or_stand_for_more() -> None:
    text = told(step("a"), handed=(TICKET,))
    assert '<artifact name="ticket" kind="ticket" version="2">\nDo it\n</artifact>' in text
    long = Handed(name="design", kind="design", version=1, size_bytes=90_000, text="short", is_summary=True)
    assert "[This stands for 90000 bytes.]\n\nshort" in told(step("a"), handed=(long,))
    assert 'artifact_read with artifact "design"' in told(step("a"), handed=(long,), tools=("artifact_read",))
    known = replace(long, artifact="art-1", is_partial=True)
    assert "[This stands for 90000 bytes, and tells of their beginning alone; artifact_read with artifact" in told(
        step("a"), handed=(known,), tools=("artifact_read",)
    )
    assert 'artifact "art-1" gives you the whole.]' in told(step("a"), handed=(known,), tools=("artifact_read",))


def test_acceptance_and_the_failure_before_are_told() -> None:
    text = told(step("a", acceptance=("tests pass", "no new files")), failure="it did not compile")
    assert "- tests pass\n- no new files" in text and "it did not compile" in text
    assert failure_told("too dear", "") == "too dear"
    assert failure_told("too dear", "half of it").endswith("handed back:\n\nhalf of it")


def test_an_agent_is_told_how_to_leave_what() -> None:
    """By the tool if it has one, by its answer if it has none, and not at all what is taken from the tree."""
    output = Output(name="review", kind="review_report", schema=SCHEMA)
    with_tool = told(step("a", outputs=(output,)), tools=("artifact_write",))
    assert 'artifact_write, name "review", kind "review_report", or let your final answer be it' in with_tool
    assert '"required": ["verdict"]' in with_tool
    assert "your final answer is kept as it" in told(step("a", outputs=(output,)))
    assert "need not do anything" in told(step("a", outputs=(Output(name="diff", capture="diff"),)))


def test_the_answer_is_an_output_where_only_one_wants_it() -> None:
    one, other = Output(name="one"), Output(name="other")
    said = Output(name="said", capture="answer")
    assert answer_output(step("a", outputs=(one,))) == one
    assert answer_output(step("a", outputs=(one, said))) == said
    assert answer_output(step("a", outputs=(one, other))) is None
    assert answer_output(step("a", outputs=(Output(name="x", capture="artifact"),))) is None


def test_an_answer_that_is_an_output_has_its_schema() -> None:
    free = step("a", outputs=(Output(name="r", schema=SCHEMA),))
    assert answer_schema(free, ()) == SCHEMA
    assert answer_schema(free, ("artifact_write",)) == {}
    said = step("a", outputs=(Output(name="r", schema=SCHEMA, capture="answer"),))
    assert answer_schema(said, ("artifact_write",)) == SCHEMA


def test_a_brief_is_bounded() -> None:
    huge = Handed(name="x", kind="file", version=1, size_bytes=1, text="x" * MAX_BRIEF_CHARS)
    assert len(told(step("a"), handed=(huge, huge))) == MAX_BRIEF_CHARS
