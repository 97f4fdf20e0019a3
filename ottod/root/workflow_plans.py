"""What a workflow's session is made from, and what it may start: its agents as they were when it was started.

Reads files, so all but `step_request` runs on a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from ottod.errors import ConfigError, RefusedError, StorageError
from ottod.protocol.requests import StartSession, WorkflowStart
from ottod.protocol.specs import AgentSpec, Group, Limits, Restart
from ottod.protocol.worker_requests import SpawnChild
from ottod.protocol.workflows import MAX_STEPS, ResolvedWorkflow, WorkflowSpec, sinks_of
from ottod.root.plan import SessionPlan
from ottod.root.session_table import Session
from ottod.settings.agents import AgentFinder
from ottod.settings.narrowing import narrower
from ottod.settings.workflow_file import check_workflow_spec
from ottod.settings.workflow_people import People
from ottod.settings.workflow_start import check_inputs, wants_diffs
from ottod.settings.workflows import find_workflow, resolve_workflow

INPUTS_DIR = "inputs"
"""In a workflow's session directory: what it was given to begin with, by name."""
MAX_DEPTH = 8
MANY_RESTARTS = 10_000
"""A step that loses its workers fails by itself; its siblings and its workflow have nothing to do with it."""


def read_workflow(request: StartSession, start: WorkflowStart, agents: AgentFinder) -> ResolvedWorkflow:
    """The workflow that is meant, checked whole, with everybody whom it needs. Raises ConfigError, RefusedError."""
    if request.agent or request.spec is not None or bool(start.name) == (start.spec is not None):
        raise ConfigError("give one of an agent, an agent's spec, a workflow, a workflow's spec")
    if start.spec is None:
        spec = find_workflow(start.name, agents)
    else:
        spec = check_workflow_spec(start.spec, people=People(agents), settings=agents.settings)
    check_inputs(spec, start.inputs, str(agents.cwd))
    return resolve_workflow(spec, agents, task=request.task)


def session_spec(workflow: ResolvedWorkflow) -> AgentSpec:
    """The workflow as an agent: what its session is called, and what that may use."""
    spec = workflow.spec
    return AgentSpec(
        name=spec.name,
        description=spec.description,
        kind="workflow",
        model="",
        # What a step has changed is found by git; besides, only a sink of the user's own is ever run.
        tools=("git",) if wants_diffs(spec) or _has_branch(spec) else (),
        tags=spec.tags,
        permissions=spec.permissions,
        budgets=spec.budgets,
        isolation=spec.isolation,
        limits=Limits(max_children=MAX_STEPS, max_depth=MAX_DEPTH),
        restart=Restart(policy="transient"),
        group=Group(max_restarts=MANY_RESTARTS),
        # What its agents name reaches them through it.
        env=tuple(dict.fromkeys(name for agent in workflow.agents for name in agent.env)),
        learn=spec.learn,
        digest=spec.digest,
        source=spec.source,
    )


def _has_branch(spec: WorkflowSpec) -> bool:
    return any(sink.to == "git_branch" for sink in sinks_of(spec))


def write_inputs(directory: Path, inputs: Mapping[str, bytes]) -> None:
    """Puts what the workflow was given where its worker finds it. Raises StorageError."""
    if not inputs:
        return
    try:
        (directory / INPUTS_DIR).mkdir(mode=0o700)
        for name, data in inputs.items():
            (directory / INPUTS_DIR / name).write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot keep the inputs: {error.strerror}") from error


def step_request(parent: Session, plan: SessionPlan, body: SpawnChild, key: str) -> StartSession:
    """The session for a step of a workflow. Raises RefusedError for what the workflow has no right to."""
    workflow = plan.workflow
    if workflow is None:
        raise RefusedError(f"{parent.id} is no workflow", code="refused")
    spec = next((agent for agent in workflow.agents if agent.name == body.agent), None)
    if spec is None:
        raise RefusedError(f"{body.agent[:100]} is no agent of workflow {workflow.spec.name}", code="refused")
    if body.output_schema:
        spec = replace(spec, output_schema=body.output_schema)
    if spec.restart.policy == "temporary":
        # The workflow hears of a step's end when there is nothing to go on with any more.
        spec = replace(spec, restart=replace(spec.restart, policy="transient"))
    return StartSession(
        agent="",
        spec=replace(spec, budgets=narrower(spec.budgets, body.budgets)),
        task=body.task,
        cwd=plan.cwd,
        env={**plan.env, **plan.server_env},
        model=workflow.model or body.model,
        title=body.title,
        parent=parent.id,
        run_mode="headless" if parent.info.run_mode == "headless" else "interactive",
        key=key,
        traceparent=body.traceparent,
    )
