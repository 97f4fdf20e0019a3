"""The reference of workflow files: every key, the short forms, and the kinds of artifacts."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from ottod.protocol import sinks, workflows
from ottod.protocol.artifact_kinds import ARTIFACT_KINDS
from ottod.settings import workflow_checks, workflow_short
from pages.common import NOTICE, cell
from pages.configuration import default_text, kind_text

STRUCTS: tuple[tuple[type[msgspec.Struct], str], ...] = (
    (workflows.WorkflowSpec, "The workflow"),
    (workflows.WorkflowInput, "`inputs[]` of the workflow"),
    (workflows.Step, "`steps[]`: steps and blocks"),
    (workflows.Output, "`outputs[]` of a step"),
    (workflows.Route, "`route`"),
    (workflows.Retry, "`retry`"),
    (workflows.Approval, "`approval`"),
    (workflows.Compensation, "`compensate`"),
    (workflows.Condition, "`when` and `until`: conditions"),
    (sinks.Sink, "`sinks`"),
)

ELSEWHERE = {
    "budgets": "`seconds`, `tokens`, `usd`, as of an [agent](configuration.md#agent-files); not more than those of "
    "the block around it. What a branch does not use, the others may. A block within a loop has them anew in each "
    "iteration.",
    "permissions": "As of an [agent](configuration.md#agent-files). They bind every step, on top of its agent's own.",
    "isolation": "As of an [agent](configuration.md#agent-files), for the workflow's own process.",
    "backoff": "As `restart.backoff` of an [agent](configuration.md#agent-files).",
    "sinks": "Where what steps leave is [sent](../how-to/send-artifacts-on.md) besides Otto's index.",
}

MEANINGS = {
    "WorkflowSpec.name": "Must equal the file's name without its ending, which is the default.",
    "WorkflowSpec.description": "One line for lists.",
    "WorkflowSpec.tags": "Words to find it by.",
    "WorkflowSpec.mode": "How its steps run; see below.",
    "WorkflowSpec.inputs": "What it begins with.",
    "WorkflowSpec.steps": "Steps and blocks.",
    "WorkflowSpec.concurrency": "Steps of the whole workflow that run at once.",
    "WorkflowSpec.on_failure": "As of a block.",
    "WorkflowSpec.quorum": "As of a block.",
    "WorkflowSpec.max_iterations": "As of a block.",
    "WorkflowSpec.until": "As of a block.",
    "WorkflowSpec.on_exhausted": "As of a block.",
    "WorkflowSpec.timeout_s": "Of the whole.",
    "WorkflowSpec.summarize_above_bytes": "An input that is longer reaches a step as a summary and a reference.",
    "WorkflowSpec.summarizer": "The agent that writes those; empty: the beginning of the text stands for it.",
    "WorkflowSpec.git_branch": "Whether the changes of each step are committed, to a branch of the workflow's own: "
    "short for a sink `to: git_branch`.",
    "WorkflowSpec.learn": "When a run has ended well, `OTTO.md` is brought up to date, with somebody's permission.",
    "Sink.to": "`filesystem`: files of the working directory. `git_branch`: a commit for each step. `sqlite`: a "
    "database of the project. `webhook`: a POST to a URL. `program`: a file of your own.",
    "Sink.name": "What it is called in events and lists; `to`, unless it is given.",
    "Sink.artifacts": "Only these, by name.",
    "Sink.kinds": "Only artifacts of these kinds.",
    "Sink.required": "Whether the workflow fails with what could not be delivered.",
    "Sink.attempts": "How often each delivery is tried.",
    "Sink.timeout_s": "Of `webhook` and `program`: of one attempt.",
    "Sink.patience_s": "How long the workflow's end may wait for what is left.",
    "Sink.path": "Of `filesystem` a directory, of `sqlite` a file; relative to the working directory.",
    "Sink.files": "Of `filesystem`: artifacts with a file of their own.",
    "Sink.on_conflict": "Of `filesystem`: what becomes of a file that holds what Otto did not put there.",
    "Sink.url": "Of `webhook`. Its host must be in `sinks.hosts` or `sinks.local` of otto.yml.",
    "Sink.secret": "Of `webhook`: the secret that requests are signed with; `sinks.secrets` must name it.",
    "Sink.content_bytes": "Of `webhook` and `program`: how much of a content goes along.",
    "Sink.program": "`NAME` of `~/.config/otto/sinks/NAME.py`.",
    "Sink.options": "What your program is told besides.",
    "Sink.secrets": "Secrets that it is given; `sinks.secrets` must name them.",
    "WorkflowInput.name": "What steps call it.",
    "WorkflowInput.kind": "See below. An agreed kind's name is of that kind.",
    "WorkflowInput.schema": "A JSON schema of its content.",
    "WorkflowInput.required": "Whether the workflow is refused without it.",
    "WorkflowInput.file": "Where it is read from unless it is given, relative to the working directory.",
    "Output.name": "What other steps call it.",
    "Output.kind": "See below. An agreed kind's name is of that kind.",
    "Output.schema": "A JSON schema that its content must satisfy; an agreed kind's, unless it is given.",
    "Output.required": "Whether the step fails without it.",
    "Output.capture": "`artifact`: the agent keeps it itself. `answer`: its final answer. `diff`: what it changed in "
    "the git repository. `auto`: as the agent does it, else its answer where no other output wants that.",
    "Output.since": "What a diff is of: `step`, this step's changes; `loop`, all since the step's first round in the "
    "innermost loop around it.",
    "Step.id": "Its name in the workflow; the agent's, unless it is given.",
    "Step.title": "For people.",
    "Step.needs": "In a graph: ids of nodes that must have completed. Who leaves an input is needed as well.",
    "Step.when": "Unless this holds when its turn comes, the node is skipped.",
    "Step.optional": "Whether its failure counts as none.",
    "Step.timeout_s": "Of a step, for each attempt; of a block, for all within it, so a block around a step bounds "
    "all of its attempts together.",
    "Step.approval": "Somebody's permission, before it begins.",
    "Step.agent": "Who does it.",
    "Step.route": "Instead of an agent: what is wanted of whoever does it.",
    "Step.task": "What the agent is told. `{{task}}` is the workflow's task, `{{iteration}}` the loop's count.",
    "Step.inputs": "Artifacts that are put below the task. In a loop, those that a later step leaves are the "
    "previous iteration's.",
    "Step.expects": "Kinds that inputs must be of, by name.",
    "Step.outputs": "Artifacts that it must leave.",
    "Step.acceptance": "What must be true of the work; the agent is told.",
    "Step.model": "Another model than the agent's.",
    "Step.retry": "How often it is tried.",
    "Step.compensate": "What undoes it, if the workflow fails later.",
    "Step.mode": "Makes it a block, and says how the nodes within it run.",
    "Step.steps": "The nodes of a block.",
    "Step.concurrency": "Of a parallel block or a graph: how many run at once.",
    "Step.on_failure": "`fail_fast`: the first failure ends the block. `wait_all`: all run to their end first. "
    "`quorum` and `first_success`: enough that so many, or one, complete.",
    "Step.quorum": "How many must complete; more than half, unless it is given.",
    "Step.max_iterations": "Of a loop, which must have it.",
    "Step.until": "Ends a loop, which must have it: looked at after each iteration.",
    "Step.on_exhausted": "What a loop does whose condition does not hold after its last iteration.",
    "Route.tags": "It has all of these.",
    "Route.tools": "It may use all of these.",
    "Route.hint": "What ranks those who are left, unless the step's task does.",
    "Retry.attempts": "The first one included.",
    "Retry.fallback_agent": "Who makes the last attempt; none where somebody stopped the session of the one before.",
    "Approval.reason": "Shown to whoever is asked.",
    "Approval.expires_s": "Without an answer until then the step fails; absent means it waits.",
    "Compensation.agent": "Who undoes it.",
    "Compensation.task": "What it is told.",
    "Compensation.timeout_s": "Of one attempt.",
    "Compensation.attempts": "How often it is tried. Each attempt goes on with the conversation of the one before.",
    "Condition.all": "All of these hold.",
    "Condition.any": "One of these holds.",
    "Condition.none": "None of these holds.",
    "Condition.artifact": "This artifact was given, or left by a step that completed, and the `field` of its newest"
    " version is as said.",
    "Condition.field": "A dotted path in its JSON; its schema must have it.",
    "Condition.equals": "The field is this.",
    "Condition.one_of": "The field is one of these.",
    "Condition.at_least": "The field is a number, and not less.",
    "Condition.at_most": "The field is a number, and not more.",
    "Condition.is_empty": "Whether the field is an empty list, mapping or string.",
    "Condition.step": "This step or block has last ended with that `status`.",
    "Condition.status": "See `step`.",
}

MODES = """\
| mode | its nodes run | a node may take |
|---|---|---|
| `sequential` | one after the other | what the nodes before it leave |
| `parallel` | at once | nothing of its siblings |
| `loop` | one after the other, again and again | what any node of the loop leaves |
| `graph` | as soon as what they need has completed | what those leave that it needs, and those that they need |
"""


def workflow_fields_page() -> str:
    """Every key of workflow files."""
    unused = set(MEANINGS)
    parts = []
    for struct, title in STRUCTS:
        rows = []
        for field in msgspec.structs.fields(struct):
            path = f"{struct.__name__}.{field.name}"
            if field.name in ("source", "digest"):
                continue
            unused.discard(path)
            meaning = ELSEWHERE.get(field.name) or MEANINGS[path]
            rows.append(f"| `{field.name}` | {kind_text(field)} | {default_text(field)} | {cell(meaning)} |\n")
        parts.append(f"## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n{''.join(rows)}")
    if unused:
        raise SystemExit(f"docs/generate.py: MEANINGS explains what does not exist: {', '.join(sorted(unused))}")
    kinds = "".join(f"| `{form.kind}` | {form.form} | {form.about} |\n" for form in ARTIFACT_KINDS)
    schemas = "".join(
        f"`{form.kind}`:\n\n```json\n{_pretty(form.schema)}\n```\n\n" for form in ARTIFACT_KINDS if form.schema
    )
    _, _, short = (inspect.getdoc(workflow_short) or "").partition("\n\n")
    tables = "\n".join(parts)
    return f"""{NOTICE}
# Workflow files

`NAME.yml` in `.otto/workflows/` of a project, in `~/.config/otto/workflows/`, or built in; the first found wins. How
to write one: [write a workflow](../how-to/write-a-workflow.md). At most {workflows.MAX_STEPS} steps and blocks,
nested at most {workflow_checks.MAX_BLOCK_DEPTH} deep, and {workflows.MAX_ITERATIONS} iterations of a loop.

{tables}
## Modes

{MODES}
Of two nodes that may run at once only one may leave an artifact of a name. A name is of one kind and one schema in a
whole workflow.

## Short forms

```text
{short}
```

## Kinds of artifacts

Any word is a kind. These are agreed on; an artifact that bears the name of one (`code_diff`, `code-diff`) is of that
kind unless the file says otherwise.

| kind | form | what it is |
|---|---|---|
{kinds}
{schemas.rstrip()}
"""


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
