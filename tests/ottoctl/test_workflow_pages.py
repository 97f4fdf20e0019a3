"""Workflows on the command line: what is listed, shown, drawn, planned, checked and written. No daemon runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ottoctl.rendering.workflow_graph import arrows, dot, keys_of, mermaid
from ottoctl.rendering.workflow_tree import condition_text, workflow_tree
from ottod.protocol.workflows import Condition, Output, Route, Step, WorkflowSpec
from ottod.settings.workflow_file import parse_workflow
from ottod.settings.workflows import BUILTIN_DIR
from tests.ottoctl.test_cli import ottoctl

BUILTIN = sorted(BUILTIN_DIR.glob("*.yml"))
SPEC = WorkflowSpec(
    name="w",
    steps=(
        Step(id="plan", agent="architect", outputs=(Output(name="design"),)),
        Step(
            id="work",
            mode="loop",
            max_iterations=3,
            until=Condition(artifact="report", field="verdict", equals="a<b"),
            steps=(
                Step(id="build", route=Route(tags=("code",)), inputs=("design",), outputs=(Output(name="diff"),)),
                Step(id="check", agent='q"', outputs=(Output(name="report"),)),
            ),
        ),
    ),
)


def test_a_tree_has_a_line_for_each_node() -> None:
    """With who, what in, what out, and until when."""
    assert workflow_tree(SPEC, color=False, chosen={"build": "coder"}) == (
        "w  sequential\n"
        "├─ plan  architect: → design\n"
        '└─ work  loop, at most 3 times, until report.verdict is "a<b"\n'
        "   ├─ build  coder [#code]: design → diff\n"
        '   └─ check  q": → report\n'
    )


def test_mermaid_and_dot() -> None:
    """Boxes, frames, arrows; a loop leads back; whatever a name holds stays within its quotation marks."""
    assert mermaid(SPEC) == (
        "flowchart TD\n"
        '  n0["plan<br>architect: → design"]\n'
        '  subgraph n1["work<br>loop, at most 3 times, until report.verdict is #quot;a#lt;b#quot;"]\n'
        '    n2["build<br>? [#35;code]: design → diff"]\n'
        '    n3["check<br>q#quot;: → report"]\n'
        "  end\n"
        "  n0 --> n1\n"
        "  n2 --> n3\n"
        '  n3 -. "until report.verdict is #quot;a#lt;b#quot;" .-> n2\n'
    )
    assert dot(SPEC).splitlines()[-4:] == [
        "  n0 -> n2 [lhead=cluster_n1];",
        "  n2 -> n3;",
        '  n3 -> n2 [style=dashed, constraint=false, label="until report.verdict is \\"a<b\\""];',
        "}",
    ]


@pytest.mark.parametrize("file", BUILTIN, ids=lambda file: file.stem)
def test_every_shipped_workflow_can_be_drawn(file: Path) -> None:
    """Every node is in both drawings once, every arrow joins two of them, and what is opened is closed."""
    spec, _ = parse_workflow(file.read_bytes(), file=str(file))
    assert spec is not None
    keys = keys_of(spec)
    for arrow in arrows(spec, keys):
        assert {arrow.start, arrow.end} <= set(keys.values())
    drawn = mermaid(spec)
    assert drawn.count("subgraph") == len(re.findall(r"^ *end$", drawn, re.M))
    for key in keys.values():
        assert len(re.findall(rf"^ *(?:subgraph )?{key}\[", drawn, re.M)) == 1
    graph = dot(spec)
    assert graph.count("{") - graph.count("}") == 0


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (Condition(step="a", status="failed"), "a failed"),
        (Condition(artifact="a"), "a is there"),
        (Condition(artifact="a", field="n", at_least=1, at_most=2.5), "a.n is at least 1 and is at most 2.5"),
        (Condition(artifact="a", field="n", is_empty=False), "a.n is not empty"),
        (Condition(artifact="a", field="n", one_of=("x", 1)), 'a.n is one of "x", 1'),
        (Condition(none=(Condition(artifact="a"),)), "not a is there"),
        (
            Condition(all=(Condition(artifact="a"), Condition(any=(Condition(step="b"), Condition(step="c"))))),
            "a is there and (b completed or c completed)",
        ),
    ],
)
def test_conditions_in_words(condition: Condition, text: str) -> None:
    """As somebody would say them."""
    assert condition_text(condition) == text


def test_workflows_on_the_command_line(tmp_path: Path) -> None:
    """New ones are valid, also copies; mistakes are all told, with status 2; plans and drawings come out."""
    project = tmp_path / "project"
    project.mkdir()
    where = ("--cwd", str(project))
    for words in (("release",), ("fix", "--from", "bug-fix-loop")):
        made = ottoctl(tmp_path, "workflow", "new", *words, *where)
        assert made.returncode == 0, made.stderr
        assert ottoctl(tmp_path, "workflow", "validate", words[0], *where).returncode == 0
    assert ottoctl(tmp_path, "workflow", "new", "release", *where).returncode != 0
    assert "not a workflow's name" in ottoctl(tmp_path, "workflow", "new", "A b", *where).stderr
    listed = json.loads(ottoctl(tmp_path, "workflow", "list", "-o", "json", *where).stdout)
    assert {"release", "fix", "refactor-swarm"} <= {entry["name"] for entry in listed}
    wrong = project / ".otto" / "workflows" / "wrong.yml"
    wrong.write_text("steps:\n  - {agent: codr}\n  - {agent: coder, inputs: x}\n")
    said = ottoctl(tmp_path, "workflow", "validate", str(wrong), *where)
    assert said.returncode == 2 and said.stderr.count("wrong.yml:") == 2 and said.stderr.count("mend:") == 2
    assert ottoctl(tmp_path, "workflow", "show", "wrong", *where).returncode == 2
    wrong.write_text("permissions:\n  rules: [{effect: deny, agent: codr}]\nsteps:\n  - {id: a, agent: coder}\n")
    warned = ottoctl(tmp_path, "workflow", "validate", "wrong", *where)
    assert warned.returncode == 0 and warned.stdout == "wrong: ok\n"
    assert "wrong.yml:2:33: permissions.rules[0].agent: unknown agent 'codr' — did you" in warned.stderr
    wrong.write_text("steps:\n  - {agent: codr}\n")
    assert "did you mean 'release'?" in ottoctl(tmp_path, "workflow", "show", "relaese", *where).stderr
    drawn = ottoctl(tmp_path, "workflow", "graph", "fix", "-o", "mermaid", *where)
    assert drawn.stdout.startswith("flowchart TD\n")


def test_a_dry_run_says_who_would_do_what(tmp_path: Path) -> None:
    """In order, blocks with what is within them, routes with who was chosen and why; nothing is started."""
    file = tmp_path / "w.yml"
    file.write_text(
        "mode: graph\nbudgets: {usd: 2}\nsteps:\n"
        "  - {id: b, route: {tags: verdict}, inputs: x, budgets: {usd: 1}, approval: Look first}\n"
        "  - {id: a, agent: coder, outputs: x}\n"
    )
    plan: list[dict[str, Any]] = json.loads(
        ottoctl(tmp_path, "workflow", "show", str(file), "--dry-run", "-o", "json").stdout
    )
    assert [(row["step"], row["agent"], row["model"]) for row in plan] == [
        ("a", "coder", "anthropic:claude-sonnet-5-5"),
        ("b", "code-reviewer", "anthropic:claude-sonnet-5-5"),
    ]
    assert plan[1]["budgets"].endswith("$1.00") and plan[1]["at_most"]["usd"] == 1.0
    assert plan[1]["routed"] == "nobody else has all that is wanted"
    assert plan[1]["approval"] == {"reason": "Look first"}
    run = ottoctl(tmp_path, "workflow", "run", str(file), "do it", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("w: graph; at most $2.00\n") and "code-reviewer" in run.stdout
    assert "asks for permission before b: Look first\n" in run.stdout
    record = json.loads(ottoctl(tmp_path, "workflow", "run", str(file), "x", "--dry-run", "-o", "json").stdout)
    assert record["approvals"] == ["b"] and record["at_most"]["usd"] == 2.0 and record["task"] == "x"
    assert record["summaries_at_most"] == 1 and len(record["steps"]) == 2
    assert {a["name"] for a in record["agents"]} == {"coder", "code-reviewer", "summarizer"}
    said = ottoctl(tmp_path, "workflow", "run", str(file), "x", "--dry-run", "--input", "y=1")
    assert said.returncode == 2 and "takes no input 'y'" in said.stderr
    assert not (tmp_path / "state").exists()


def test_a_dry_run_refuses_what_a_run_would(tmp_path: Path) -> None:
    """What it begins with, as its schema wants it, and a repository, are looked for where it would run."""
    (tmp_path / "w.yml").write_text(
        "inputs: [{name: plan, file: plan.json, schema: {type: object, required: [goal]}}]\n"
        "steps: [{agent: coder, inputs: plan, outputs: [{name: change, capture: diff}]}]\n"
    )
    arguments = ("workflow", "run", str(tmp_path / "w.yml"), "go", "--dry-run", "--cwd", str(tmp_path))
    said = ottoctl(tmp_path, *arguments)
    assert said.returncode == 2 and "needs the input plan, and plan.json cannot be read" in said.stderr
    (tmp_path / "plan.json").write_text("{}")
    said = ottoctl(tmp_path, *arguments)
    assert said.returncode == 2 and "(plan.json) of w is not what its schema says" in said.stderr
    said = ottoctl(tmp_path, *arguments, "--input", 'plan={"goal": 1}')
    assert said.returncode not in (0, 2) and "is no git repository" in said.stderr
    (tmp_path / "plan.json").write_text('{"goal": 1}')
    (tmp_path / ".git").mkdir()
    assert ottoctl(tmp_path, *arguments).returncode == 0


def test_routing_on_the_command_line(tmp_path: Path) -> None:
    """The choice and its reasons; a task that fits nobody has status 2."""
    found = ottoctl(tmp_path, "route", "Run pytest and tell me which tests fail")
    assert found.stdout.startswith("test-runner: it fits the words best\n")
    data = json.loads(ottoctl(tmp_path, "route", "x", "--agent", "lead", "-o", "json").stdout)
    assert (data["agent"], data["reason"]) == ("lead", "the caller names it")
    nobody = ottoctl(tmp_path, "route", "zzzz qqqq")
    assert nobody.returncode == 2 and "no word of the task fits any agent" in nobody.stderr
    close = ottoctl(tmp_path, "route", "pytets")
    assert "the nearest: " in close.stderr and "(knows 'pytest')" in close.stderr
    lacking = ottoctl(tmp_path, "route", "x", "--tag", "nosuch", "--tool", "shell")
    assert lacking.returncode == 2 and "lacks the tag 'nosuch'" in lacking.stderr
