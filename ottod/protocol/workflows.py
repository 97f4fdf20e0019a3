"""Workflow specs: which agents do what, in which order, with what from each other, and what if it goes wrong.

A workflow is a tree. Its leaves are *steps*, each carried out by an agent in a session of its own; its inner nodes
are *blocks*, which say how the nodes within them run; the workflow itself is the outermost block. Filled by
`settings` from YAML, or made in Python. What steps hand to each other are artifacts of the workflow's session tree.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from ottod.protocol.sinks import Sink, SinkFile
from ottod.protocol.specs import AgentSpec, Backoff, Budgets, Isolation, Name, Permissions, PositiveSeconds, Spec

ArtifactName = Annotated[str, Meta(pattern=r"^(?!art-)[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
ArtifactKind = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,49}$")]
Mode = Literal["sequential", "parallel", "loop", "graph"]
FailurePolicy = Literal["fail_fast", "wait_all", "quorum", "first_success"]
MAX_STEPS = 1000
"""Steps and blocks in one workflow."""
MAX_ITERATIONS = 100


class Condition(Spec, frozen=True, kw_only=True):
    """Something that is true or not of an artifact or a step: one of `all`, `any`, `none`, `artifact`, `step`.

    An artifact that the workflow was given, or has collected of a step that completed, exists, or the `field` (dotted
    path) of the JSON of its newest version is as said: all that is given must hold, and a field that is missing is
    not as said. A step has last ended with that status.
    """

    all: tuple[Condition, ...] = ()
    any: tuple[Condition, ...] = ()
    none: tuple[Condition, ...] = ()
    artifact: str = ""
    field: str = ""
    equals: bool | int | float | str | None = None
    one_of: tuple[bool | int | float | str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    is_empty: bool | None = None
    """Whether the field is an empty list, mapping or string."""
    step: str = ""
    status: Literal["completed", "failed", "skipped"] = "completed"


class WorkflowInput(Spec, frozen=True, kw_only=True):
    """An artifact that the workflow begins with: the client gives it, or it is a file of the working directory."""

    name: ArtifactName
    kind: ArtifactKind = "file"
    schema: dict[str, Any] = {}
    required: bool = True
    file: str = ""
    """Where it is read from unless it is given, relative to the working directory."""


class Output(Spec, frozen=True, kw_only=True):
    """An artifact that a step must leave. A `schema` (JSON Schema) is enforced on its content, which is then JSON.

    `capture`: `artifact`, the agent keeps it itself; `answer`, its final answer is kept; `diff`, what it changed in
    the git repository of the working directory is kept; `auto`, as the agent does it, else its answer where the step
    has no other output that wants it. `since`: a diff is of what changed since the step began, or since it first did
    in the innermost loop around it.
    """

    name: ArtifactName
    kind: ArtifactKind = "file"
    schema: dict[str, Any] = {}
    required: bool = True
    capture: Literal["auto", "artifact", "answer", "diff"] = "auto"
    since: Literal["step", "loop"] = "step"


class Route(Spec, frozen=True, kw_only=True):
    """Hints instead of an agent's name: who is found has all these tags and tools; descriptions rank them."""

    tags: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    hint: str = ""
    """What ranks them, unless the step's task does."""


class Retry(Spec, frozen=True, kw_only=True):
    """How often a step that failed is tried. The last attempt is the fallback agent's, if there is one."""

    attempts: Annotated[int, Meta(ge=1, le=20)] = 1
    backoff: Backoff = Backoff()
    fallback_agent: str = ""


class Approval(Spec, frozen=True, kw_only=True):
    """Somebody's permission, before the step begins. Without an answer in `expires_s` the step fails."""

    reason: str = ""
    expires_s: PositiveSeconds | None = None


class Compensation(Spec, frozen=True, kw_only=True):
    """What undoes a step that completed, when the workflow fails later: an agent with a task."""

    agent: Name
    task: str
    timeout_s: PositiveSeconds | None = None
    attempts: Annotated[int, Meta(ge=1, le=20)] = 3


class Step(Spec, frozen=True, kw_only=True):
    """A node of a workflow: a step, with `agent` or `route`; or a block, with `mode` and `steps`.

    Fields for steps only: agent, route, task, inputs, expects, outputs, acceptance, retry, compensate, model. For
    blocks only: mode, steps, concurrency, on_failure, quorum, max_iterations, until, on_exhausted. `needs` is for
    nodes of a graph. `source` is the loader's: the file and line where the node stands.
    """

    id: Name
    title: str = ""
    needs: tuple[str, ...] = ()
    """Ids of nodes of the same graph that must have completed. Who leaves an input is needed without saying so."""
    when: Condition | None = None
    """Unless this holds when its turn comes, the node is skipped, which is no failure."""
    optional: bool = False
    """Whether its failure counts as none."""
    budgets: Budgets = Budgets()
    timeout_s: PositiveSeconds | None = None
    """Of a step, for each attempt; of a block, for all within it."""
    approval: Approval | None = None

    agent: str = ""
    route: Route | None = None
    task: str = ""
    """What the agent is told; `{{task}}` and `{{iteration}}` stand for the workflow's task and the loop's count."""
    inputs: tuple[str, ...] = ()
    """Artifacts whose content, or summary and reference where it is long, is put below the task.

    In a loop, those that a later step leaves are the previous iteration's, and missing in the first.
    """
    expects: dict[str, ArtifactKind] = {}
    """Kinds that inputs must be of, by name: checked against who leaves them, before anything starts."""
    outputs: tuple[Output, ...] = ()
    acceptance: tuple[str, ...] = ()
    """What must be true of the work; the agent is told."""
    model: str = ""
    retry: Retry = Retry()
    compensate: Compensation | None = None

    mode: Mode | None = None
    steps: tuple[Step, ...] = ()
    concurrency: Annotated[int, Meta(ge=1, le=1000)] | None = None
    """Steps of a parallel block or a graph that run at once; the workflow's own limit unless given."""
    on_failure: FailurePolicy = "fail_fast"
    quorum: Annotated[int, Meta(ge=1)] | None = None
    max_iterations: Annotated[int, Meta(ge=1, le=MAX_ITERATIONS)] | None = None
    until: Condition | None = None
    """Ends a loop: looked at after each iteration."""
    on_exhausted: Literal["fail", "continue"] = "fail"
    """What a loop does whose condition does not hold after its last iteration."""
    source: str = ""


class WorkflowSpec(Spec, frozen=True, kw_only=True):
    """A workflow definition. `digest` and `source` are the loader's, as an agent's."""

    name: Name
    description: str = ""
    tags: tuple[str, ...] = ()
    mode: Mode = "sequential"
    inputs: tuple[WorkflowInput, ...] = ()
    steps: tuple[Step, ...] = ()
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Steps of the whole workflow that run at once."""
    on_failure: FailurePolicy = "fail_fast"
    quorum: Annotated[int, Meta(ge=1)] | None = None
    max_iterations: Annotated[int, Meta(ge=1, le=MAX_ITERATIONS)] | None = None
    until: Condition | None = None
    on_exhausted: Literal["fail", "continue"] = "fail"
    budgets: Budgets = Budgets()
    timeout_s: PositiveSeconds | None = None
    permissions: Permissions = Permissions(preset="autonomous")
    """They bind every step, on top of its agent's own: they can only narrow."""
    isolation: Isolation = Isolation()
    summarize_above_bytes: Annotated[int, Meta(ge=256)] = 16 * 1024
    """An input that is longer reaches a step as a summary and a reference."""
    summarizer: str = "summarizer"
    """The agent that writes those; empty: the beginning of the text stands for it."""
    git_branch: bool = False
    """Whether the changes of each step are committed, to a branch of the workflow's own: a sink `git_branch`."""
    sinks: tuple[Sink, ...] = ()
    """Where artifacts are delivered besides the index."""
    learn: bool = False
    """Whether OTTO.md is brought up to date, with somebody's permission, when a run has ended well."""
    digest: str = ""
    source: str = ""


def sinks_of(spec: WorkflowSpec) -> tuple[Sink, ...]:
    """Its sinks, with the one that `git_branch` stands for."""
    has_branch = any(sink.to == "git_branch" for sink in spec.sinks)
    return (*spec.sinks, Sink(to="git_branch")) if spec.git_branch and not has_branch else spec.sinks


def sink_secrets(spec: WorkflowSpec) -> tuple[str, ...]:
    """The names of the secrets that its sinks want."""
    names = [name for sink in spec.sinks for name in (sink.secret, *sink.secrets) if name]
    return tuple(dict.fromkeys(names))


class ResolvedWorkflow(Spec, frozen=True, kw_only=True):
    """A workflow and the agents of its steps, as they were when it was started: it keeps them to its end."""

    spec: WorkflowSpec
    agents: tuple[AgentSpec, ...] = ()
    """Every agent that a step, a fallback, a compensation or the summaries name or were routed to, by name."""
    routed: dict[str, str] = {}
    """Step id → the agent that the router chose."""
    sink_files: tuple[SinkFile, ...] = ()
    """The sinks of the user's own that it names."""
    model: str = ""
    """What answers all of them in place of their own models, if the client said so."""
