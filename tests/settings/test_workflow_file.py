"""One workflow file → one spec, or every mistake with its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError
from ottod.protocol.artifact_kinds import REVIEW_REPORT
from ottod.protocol.specs import Budgets
from ottod.protocol.workflows import (
    MAX_STEPS,
    Approval,
    Condition,
    Output,
    Retry,
    Route,
    Step,
    WorkflowInput,
    WorkflowSpec,
)
from ottod.settings.agents import finder
from ottod.settings.sections import DaemonSettings
from ottod.settings.workflow_file import (
    check_workflow_spec,
    parse_workflow,
    workflow_digest,
    workflow_errors,
)
from ottod.settings.workflow_people import People

FULL = b"""\
description: Builds it
tags: one two
inputs: [spec, {name: trace, required: false, file: trace.txt}]
permissions: strict
budgets: {usd: 3, seconds: 10m}
steps:
  - agent: coder
    inputs: [spec]
    outputs: [ticket]
    acceptance: It has a title
    retry: 2
  - id: work
    mode: loop
    max_iterations: 3
    until: [{artifact: review, field: verdict, equals: approved}, {artifact: review, field: blockers, is_empty: true}]
    steps:
      - id: build
        route: {tags: code, tools: shell}
        inputs: [{name: ticket, kind: ticket}, review]
        outputs: [code-diff]
        approval: Look first
      - {id: judge, agent: reviewer, inputs: [code-diff], outputs: [{name: review, kind: review_report}]}
"""


@pytest.fixture
def people(tmp_path: Path) -> People:
    """The built-in agents."""
    here = finder(cwd=tmp_path, config_home=tmp_path / "config", home=tmp_path, settings=DaemonSettings())
    return People(here)


def errors_of(text: str, people: People | None = None) -> list[ConfigError]:
    return parse_workflow(text.encode(), file="/p/a.yml", people=people, settings=DaemonSettings())[1]


def test_a_full_file_gives_the_spec(people: People) -> None:
    """Short forms, kinds by names, schemas by kinds; digest and places are the loader's."""
    spec, errors = parse_workflow(FULL, file="/p/a.yml", people=people)
    assert errors == []
    assert spec is not None
    assert spec.name == "a" and spec.tags == ("one", "two") and spec.permissions.preset == "strict"
    assert spec.inputs == (
        WorkflowInput(name="spec"),
        WorkflowInput(name="trace", required=False, file="trace.txt"),
    )
    first, work = spec.steps
    assert first == Step(
        id="coder",
        agent="coder",
        inputs=("spec",),
        outputs=(Output(name="ticket", kind="ticket"),),
        acceptance=("It has a title",),
        retry=Retry(attempts=2),
        source="/p/a.yml:7",
    )
    build, judge = work.steps
    assert build.route == Route(tags=("code",), tools=("shell",)) and build.approval == Approval(reason="Look first")
    assert build.inputs == ("ticket", "review") and build.expects == {"ticket": "ticket"}
    assert build.outputs == (Output(name="code-diff", kind="code_diff"),)
    assert judge.outputs == (Output(name="review", kind="review_report", schema=REVIEW_REPORT),)
    assert work.until is not None and [c.field for c in work.until.all] == ["verdict", "blockers"]
    assert [step.source for step in (work, build, judge)] == ["/p/a.yml:12", "/p/a.yml:17", "/p/a.yml:22"]
    assert spec.digest == workflow_digest(spec) and len(spec.digest) == 64


def test_the_digest_is_of_what_is_said() -> None:
    """Layout and place do not change it; a changed task does."""
    one, _ = parse_workflow(b"steps: [{agent: coder, task: x}]\n", file="/p/a.yml")
    two, _ = parse_workflow(b"# hi\nsteps:\n  - task: x\n    id: coder\n    agent: coder\n", file="/q/a.yml")
    other, _ = parse_workflow(b"steps: [{agent: coder, task: y}]\n", file="/p/a.yml")
    assert one and two and other
    assert one.digest == two.digest != other.digest


LOOP = "mode: loop\nmax_iterations: 2\nuntil: {artifact: r, field: verdict, equals: approved}\n"
REVIEW = "{id: x, agent: coder, outputs: [{name: r, kind: review_report}]}"

WRONG: list[tuple[str, str, str]] = [
    # the grammar
    ("stesp: []\n", "1:1: unknown key 'stesp' — did you mean 'steps'?", "write 'steps'"),
    ("steps: []\n", "1:1: the workflow has no steps", "add `steps:` with at least one"),
    ("steps: [{id: x}]\n", "1:9: step 'x' names nobody who does it", "add `agent:` or `route:`; a block has `mode:`"),
    (
        "steps: [{agent: coder, route: x}]\n",
        "1:24: step 'coder' has an agent and a route",
        "keep one of the two",
    ),
    (
        "steps:\n  - {agent: coder, source: x}\n",
        "2:20: key 'source' is filled in by Otto",
        "remove it",
    ),
    (
        "steps:\n  - agent: coder\n    outputs: [{name: art-1}]\n",
        "3:22: steps[0].outputs[0].name must be a string, got 'art-1'",
        "write a string",
    ),
    (
        "steps:\n  - agent: coder\n  - agent: coder\n",
        "3:12: the id 'coder' is taken twice in this workflow",
        "add an `id:` of its own to one of the two",
    ),
    # who does it
    (
        "steps:\n  - agent: codr\n",
        "2:12: unknown agent 'codr' — did you mean 'coder'?",
        "",
    ),
    ("summarizer: nobody\nsteps: [{agent: coder}]\n", "1:13: unknown agent 'nobody'", ""),
    (
        "steps: [{agent: coder, retry: {attempts: 2, fallback_agent: codr}}]\n",
        "1:61: unknown agent 'codr' — did you mean 'coder'?",
        "",
    ),
    (
        "steps: [{agent: coder, retry: {fallback_agent: coder}}]\n",
        "1:48: step 'coder' never gets to its fallback agent",
        "write `attempts: 2` or more: the last attempt is the fallback agent's",
    ),
    (
        "steps: [{agent: coder, compensate: {agent: codr, task: x}}]\n",
        "1:44: unknown agent 'codr' — did you mean 'coder'?",
        "",
    ),
    (
        "steps: [{id: x, route: {tags: [reveiw]}}]\n",
        "1:32: no agent has the tag 'reveiw'",
        "did you mean 'review'?",
    ),
    (
        "steps: [{id: x, route: {tags: [review], tools: [fs_write]}}]\n",
        "1:24: no agent has all the tags and tools that this route wants",
        "ask for less",
    ),
    ("steps: [{agent: coder, model: fsat}]\n", "1:31: unknown model 'fsat'", "did you mean 'fast'?"),
    # blocks and steps
    (
        "steps: [{id: x, steps: [{agent: coder}], agent: reviewer}]\n",
        "1:17: step 'x' has steps and no mode",
        "add `mode:` with sequential, parallel, loop or graph",
    ),
    (
        "steps: [{id: x, mode: parallel, steps: [{agent: coder}], task: t}]\n",
        "1:58: parallel 'x' is a block, and task is for steps",
        "move task to the steps within it",
    ),
    (
        "steps: [{agent: coder, quorum: 1}]\n",
        "1:24: step 'coder' is no block, and quorum is for blocks",
        "remove quorum, or give it a mode and steps",
    ),
    (
        f"{LOOP}quorum: 1\nsteps: [{REVIEW}]\n",
        "4:1: the workflow has a quorum, and on_failure is fail_fast",
        "write `on_failure: quorum`, or remove it",
    ),
    (
        "max_iterations: 2\nsteps: [{agent: coder}]\n",
        "1:1: max_iterations has no meaning in the workflow, whose mode is sequential",
        "remove it, or write `mode: loop`",
    ),
    (
        "mode: parallel\non_failure: quorum\nquorum: 2\nsteps: [{agent: coder}]\n",
        "3:9: a quorum of 2 cannot be reached with 1 step",
        "write 1 or less",
    ),
    (
        f"mode: loop\nuntil: {{artifact: r}}\nsteps: [{REVIEW}]\n",
        "1:1: the workflow is a loop without a bound",
        "add `max_iterations:`",
    ),
    (
        f"mode: loop\nmax_iterations: 2\nsteps: [{REVIEW}]\n",
        "1:1: the workflow is a loop without an end",
        "add `until:`, as in `until: {artifact: review, field: verdict, equals: approved}`",
    ),
    # order
    (
        (
            "mode: graph\nsteps: [{id: a, agent: coder, needs: c}, {id: b, agent: coder, needs: a}, "
            "{id: c, agent: coder, needs: b}]\n"
        ),
        "2:31: a cycle: a needs c needs b needs a",
        "remove one of these needs or inputs",
    ),
    (
        (
            "mode: graph\nsteps:\n  - {id: a, agent: coder, inputs: y, outputs: x}\n"
            "  - {id: b, agent: coder, inputs: x, outputs: y}\n"
        ),
        "3:27: a cycle: a needs b (for 'y') needs a (for 'x')",
        "remove one of these needs or inputs",
    ),
    (
        "mode: graph\nsteps:\n  - {id: ab, agent: coder}\n  - {id: b, agent: coder, needs: [abc]}\n",
        "4:35: step 'b' needs 'abc', which is not in this graph",
        "did you mean 'ab'?",
    ),
    ("mode: graph\nsteps: [{id: a, agent: coder, needs: a}]\n", "2:38: step 'a' needs itself", "remove it"),
    (
        "steps: [{id: a, agent: coder}, {id: b, agent: coder, needs: a}]\n",
        "1:54: step 'b' has needs, and is not in a graph",
        "put the nodes into a block with `mode: graph`, or remove it: here they run as they stand",
    ),
    # what flows
    (
        "inputs: [spec]\nsteps: [{agent: coder, inputs: [spce]}]\n",
        "2:33: unknown input 'spce' of step 'coder'",
        "did you mean 'spec'?",
    ),
    (
        "steps: [{id: a, agent: coder, inputs: x}, {id: b, agent: coder, outputs: x}]\n",
        "1:39: step 'a' takes 'x', which is not left before it",
        "put who leaves it before this step; branches that run at the same time see nothing of each other",
    ),
    (
        "mode: parallel\nsteps: [{id: a, agent: coder, outputs: x}, {id: b, agent: coder, inputs: x}]\n",
        "2:74: step 'b' takes 'x', which is not left before it",
        "put who leaves it before this step; branches that run at the same time see nothing of each other",
    ),
    (
        "mode: parallel\nsteps: [{id: a, agent: coder, outputs: x}, {id: b, agent: coder, outputs: x}]\n",
        "2:44: 'x' is left by 'a' and by 'b', which run at the same time",
        "give each an output of its own, or run one after the other",
    ),
    (
        "mode: graph\nsteps: [{id: a, agent: coder, outputs: x}, {id: b, agent: coder, outputs: x}]\n",
        "2:44: 'x' is left by 'a' and by 'b', which run at the same time",
        "give each an output of its own, or run one after the other",
    ),
    (
        "steps: [{agent: coder, outputs: [x, x]}]\n",
        "1:37: step 'coder' lists 'x' twice",
        "remove one of the two",
    ),
    (
        "inputs: [ticket]\nsteps: [{agent: coder, outputs: [{name: ticket, kind: prd}]}]\n",
        "2:55: 'ticket' is a prd here, and a ticket in the workflow's inputs",
        "write `kind: ticket`, or give it another name",
    ),
    (
        "inputs: [spec]\nsteps: [{agent: coder, inputs: [{name: spec, kind: ticket}]}]\n",
        "2:52: step 'coder' expects 'spec' to be a ticket, and it is a file",
        "write 'file', or change who leaves it",
    ),
    (
        "steps: [{agent: coder, expects: {x: ticket}}]\n",
        "1:37: step 'coder' expects 'x', and does not take it",
        "add it to inputs",
    ),
    (
        "inputs: [{name: a, file: ../x}]\nsteps: [{agent: coder}]\n",
        "1:26: input 'a' is read from '../x', outside the working directory",
        "write it relative to the working directory, without `..`",
    ),
    (
        "inputs: [{name: a, schema: {type: strng}}]\nsteps: [{agent: coder}]\n",
        (
            "1:35: the schema of 'a': type must be one of object, array, string, number, integer, boolean, null, "
            'or a list of them, got "strng"'
        ),
        "",
    ),
    # conditions
    (
        f"{LOOP.replace('artifact: r,', 'artifact: r, step: x,')}steps: [{REVIEW}]\n",
        "3:8: a condition of the workflow has artifact and step",
        "give it one of all, any, none, artifact, step",
    ),
    (
        "steps: [{agent: coder, when: {}}]\n",
        "1:30: a condition of step 'coder' says nothing",
        "give it one of all, any, none, artifact, step",
    ),
    (
        f"{LOOP.replace('verdict', 'verdit')}steps: [{REVIEW}]\n",
        "3:29: 'r' has no field 'verdit'",
        "did you mean 'verdict'?",
    ),
    (
        f"{LOOP.replace('approved', 'aproved')}steps: [{REVIEW}]\n",
        "3:46: 'verdict' of 'r' is never \"aproved\"",
        "did you mean 'approved'?",
    ),
    (
        f"{LOOP.replace('equals: approved', 'at_least: 1')}steps: [{REVIEW}]\n",
        "3:38: at_least is said of 'verdict' of 'r', which is string",
        "it is for integer, number",
    ),
    (
        f"{LOOP.replace(', equals: approved', '')}steps: [{REVIEW}]\n",
        "3:29: nothing is said of 'verdict' of 'r'",
        "add one of equals, one_of, at_least, at_most, is_empty",
    ),
    (
        f"{LOOP.replace('field: verdict, ', '')}steps: [{REVIEW}]\n",
        "3:22: equals needs a field of 'r'",
        "add `field:`",
    ),
    (
        f"{LOOP}steps: [{{id: x, agent: coder, outputs: [r]}}]\n",
        "3:29: 'r' is a file without a schema: 'verdict' may not be there",
        "give it a schema, or a kind that has one (review_report, test_report), or `kind: json`",
    ),
    (
        "steps: [{agent: coder, when: {artifact: x}}]\n",
        "1:41: no artifact is called 'x' where this condition is looked at",
        "name an artifact that is left before",
    ),
    (
        "steps: [{id: a, agent: coder, when: {step: b}}, {id: b, agent: coder}]\n",
        "1:44: no step 'b' has run where this condition is looked at",
        "name a step that has run before",
    ),
    # money, texts
    (
        "budgets: {usd: 1}\nsteps: [{agent: coder, budgets: {usd: 2}}]\n",
        "2:39: budgets.usd of step 'coder' is $2.00, and the workflow has $1.00",
        "write $1.00 or less, or raise the other",
    ),
    (
        "budgets: {seconds: 60}\nsteps: [{id: p, mode: parallel, steps: [{agent: coder, budgets: {seconds: 2m}}]}]\n",
        "2:75: budgets.seconds of step 'coder' is 2m, and the workflow has 1m",
        "write 1m or less, or raise the other",
    ),
    (
        'steps: [{agent: coder, task: "do {{tsak}}"}]\n',
        "1:30: unknown placeholder {{tsak}} in step 'coder'",
        "did you mean {{task}}?",
    ),
    (
        'steps: [{agent: coder, task: "no {{iteration}}"}]\n',
        "1:30: {{iteration}} in step 'coder', which is in no loop",
        "remove it",
    ),
    (
        "steps: [{agent: coder, outputs: [{name: d, capture: diff, since: loop}]}]\n",
        "1:66: `since: loop` in step 'coder', which is in no loop",
        "remove it",
    ),
    (
        "steps: [{agent: coder, outputs: [{name: d, since: loop}]}]\n",
        "1:51: `since` is for diffs, and 'd' is none",
        "add `capture: diff`, or remove it",
    ),
]


@pytest.mark.parametrize(("text", "message", "mend"), WRONG, ids=[message for _, message, _ in WRONG])
def test_a_wrong_workflow_is_named_exactly(people: People, text: str, message: str, mend: str) -> None:
    """Each mistake is one error with file, line and column, and a mend."""
    (error,) = errors_of(text, people)
    assert str(error) == f"/p/a.yml:{message}"
    assert error.mend == mend if mend else error.mend


def test_all_mistakes_are_told_at_once(people: People) -> None:
    """Those of form, of sense and of names, in the order of the file."""
    text = (
        "budgets: {usd: 1}\nsteps:\n  - {agent: codr, budgets: {usd: 2}}\n  - {agent: coder, inputs: x}\n"
        "  - {id: l, mode: loop, steps: [{id: y, agent: coder, task: '{{x}}'}]}\n"
    )
    assert [e.line for e in errors_of(text, people)] == [3, 3, 4, 5, 5, 5]
    formless = "stesp: 1\nsteps: [{agent: codr, retry: many}]\n"
    assert [e.line for e in errors_of(formless, people)] == [1, 2, 2]


RIGHT = [
    # What a later step of a loop leaves is there from the second iteration on.
    LOOP
    + "steps: [{id: b, agent: coder, inputs: r}, {id: x, agent: coder, outputs: [{name: r, kind: review_report}]}]\n",
    # Who leaves an input is needed without saying so, and so may leave another version after another.
    "mode: graph\nsteps: [{id: c, agent: coder, inputs: x}, {id: b, agent: coder, outputs: x}]\n",
    "mode: graph\nsteps: [{id: a, agent: coder, outputs: x}, {id: b, agent: coder, needs: [a], outputs: x}]\n",
    # A block's outputs are there after it; a branch's are not in the next.
    "steps: [{id: p, mode: parallel, steps: [{id: a, agent: coder, outputs: x}]}, {agent: coder, inputs: x}]\n",
    # No schema, but JSON.
    LOOP + "steps: [{id: x, agent: coder, outputs: [{name: r, kind: json}]}]\n",
    # A list's item, a schema that leaves others open, one that refers to a part of itself.
    LOOP.replace("field: verdict, equals: approved", "field: blockers.0.where, equals: a") + f"steps: [{REVIEW}]\n",
    LOOP + "steps: [{id: x, agent: coder, outputs: [{name: r, schema: {type: object}}]}]\n",
    LOOP
    + "steps: [{id: x, agent: coder, outputs: [{name: r, schema: {$ref: '#/$defs/v', $defs: {v: {properties: "
    + "{verdict: {enum: [approved]}}}}}}]}]\n",
    # Modes have their fields, also where the workflow is the block.
    "mode: parallel\nconcurrency: 2\non_failure: quorum\nquorum: 1\nsteps: [{agent: coder}]\n",
    "on_failure: first_success\nsteps: [{agent: coder}, {agent: reviewer}]\n",
    "steps: [{id: a, agent: coder}, {id: b, agent: coder, when: {step: a, status: failed}, approval: true}]\n",
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_is_not_refused(people: People, text: str) -> None:
    """Near misses of the rules above."""
    assert errors_of(text, people) == []


def test_an_agent_whose_file_is_wrong_is_told_where_it_is_named(tmp_path: Path) -> None:
    """The workflow's line, and the agent's."""
    (tmp_path / ".otto" / "agents").mkdir(parents=True)
    (tmp_path / ".otto" / "agents" / "bad.yml").write_text("modle: x\n")
    people = People(finder(cwd=tmp_path, config_home=tmp_path / "c", home=tmp_path / "h"))
    (error,) = errors_of("steps: [{agent: bad}]\n", people)
    assert (error.line, error.column) == (1, 17)
    assert f"agent 'bad' cannot be used: {tmp_path}/.otto/agents/bad.yml:1:1: unknown key 'modle'" in str(error)


def test_too_many_steps_are_refused_before_anything_else() -> None:
    """And nothing else is said of them."""
    steps = "".join(f"  - {{id: s{i}, agent: nobody, needs: q}}\n" for i in range(MAX_STEPS + 1))
    (error,) = errors_of(f"steps:\n{steps}")
    assert error.message.endswith(f"more than {MAX_STEPS} steps and blocks") and error.mend


def test_deep_nesting_is_refused() -> None:
    """Deeper than anybody can read."""
    text = "{agent: coder}"
    for i in range(17):
        text = f"{{id: p{i}, mode: parallel, steps: [{text}]}}"
    assert any("nested more than" in str(e) for e in errors_of(f"steps: [{text}]\n"))


# ---------------------------------------------------------------- from Python


def test_a_workflow_from_python_is_the_same() -> None:
    """Its digest is that of the file that says the same, conventions included."""
    from_file, _ = parse_workflow(b"name: a\nsteps: [{agent: coder, outputs: [ticket]}]\n", file="/p/a.yml")
    step = Step(id="coder", agent="coder", outputs=(Output(name="ticket"),))
    spec = check_workflow_spec(WorkflowSpec(name="a", steps=(step,)))
    assert from_file is not None and spec.digest == from_file.digest
    assert spec.steps[0].outputs[0].kind == "ticket"
    assert check_workflow_spec(spec).digest == spec.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": ()}, "the workflow has no steps"),
        ({"steps": (Step(id="x", agent="codr"),)}, "steps[0].agent: unknown agent 'codr' — did you mean 'coder'?"),
        (
            {"steps": (Step(id="x", agent="coder", inputs=("y",)),)},
            "steps[0].inputs[0]: unknown input 'y' of step 'x'",
        ),
        (
            {"steps": (Step(id="X", agent="coder"),)},
            "steps[0].id must be a string (lower-case letters, digits, - and _), got 'X'",
        ),
        ({"steps": 5}, "steps must be a list of mappings, got 5"),
        (
            {"budgets": Budgets(usd=1), "steps": (Step(id="x", agent="coder", budgets=Budgets(usd=2)),)},
            "steps[0].budgets.usd: budgets.usd of step 'x' is $2.00, and the workflow has $1.00",
        ),
        (
            {"steps": (Step(id="x", agent="coder", when=Condition()),)},
            "steps[0].when: a condition of step 'x' says nothing",
        ),
        (
            {"description": object()},
            "the spec holds something that is not data: Encoding objects of type object is unsupported",
        ),
    ],
)
def test_a_wrong_workflow_from_python_is_named_by_path(people: People, fields: dict[str, Any], message: str) -> None:
    """There is no line, so the path says where."""
    spec = WorkflowSpec(**({"name": "a", "steps": (Step(id="s", agent="coder"),)} | fields))
    (error,) = workflow_errors(spec, people=people, settings=DaemonSettings())
    assert str(error) == message
    assert error.mend
    with pytest.raises(ConfigError):
        check_workflow_spec(spec, people=people)


def test_endless_depth_from_python_is_an_error() -> None:
    """However deep, nothing is raised but ConfigError."""
    for depth in (20, 100, sys.getrecursionlimit() * 3):
        step = Step(id="s", agent="coder")
        condition = Condition(artifact="x")
        for i in range(depth):
            step = Step(id=f"p{i}", mode="parallel", steps=(step,))
            condition = Condition(all=(condition,))
        assert workflow_errors(WorkflowSpec(name="a", steps=(step,)))
        assert workflow_errors(WorkflowSpec(name="a", steps=(Step(id="s", agent="coder", when=condition),)))


# ---------------------------------------------------------------- whatever comes


@given(st.binary(max_size=300))
def test_any_bytes_give_a_spec_or_config_errors(data: bytes) -> None:
    """No content raises anything, and there is a spec exactly when there is no error."""
    spec, errors = parse_workflow(data, file="/p/a.yml")
    assert (spec is None) == bool(errors)


WORDS = st.sampled_from(["a", "b", "x", "coder", "review_report", "verdict", "{{task}}", "", "5", "A B"])
LEAVES = st.one_of(WORDS, st.none(), st.booleans(), st.integers(-2, 5), st.floats(-1, 9, allow_nan=False))
KEYS = st.sampled_from(
    sorted({*Step.__struct_fields__, *WorkflowSpec.__struct_fields__, *Condition.__struct_fields__, "schema", "all"})
)
DATA: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
NODES: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries({"id": WORDS, "agent": WORDS}, optional={"inputs": DATA, "outputs": DATA, "when": DATA}),
    lambda inner: st.fixed_dictionaries(
        {"id": WORDS, "mode": st.sampled_from(["graph", "loop", "parallel", "sequential", "x"])},
        optional={"steps": st.lists(inner | DATA, max_size=4), "until": DATA, "needs": DATA, "budgets": DATA},
    ),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, DATA, max_size=6), st.lists(NODES, max_size=4))
def test_any_fields_give_a_spec_or_placed_errors(data: dict[str, Any], nodes: list[Any]) -> None:
    """Each mistake of a file that is YAML has a line, a column and a mend."""
    text = msgspec.json.encode({**data, "steps": nodes})
    spec, errors = parse_workflow(text, file="/p/a.yml", settings=DaemonSettings())
    assert (spec is None) == bool(errors)
    assert all(e.line and e.column and e.mend for e in errors)
    if spec is not None:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=WorkflowSpec) == spec
