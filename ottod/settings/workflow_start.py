"""What has to be there before a workflow starts: what it begins with, a repository, and whoever may do its steps.

A client that plans a run looks at the same as the daemon that starts one, but for what only the daemon knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ottod.errors import ConfigError, RefusedError
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES
from ottod.protocol.requests import MAX_INPUTS_BYTES
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import ResolvedWorkflow, WorkflowInput, WorkflowSpec
from ottod.settings.json_schema import violations
from ottod.settings.regular_file import open_regular
from ottod.settings.workflow_tree import is_block, steps_of

MAX_TOLD = 3
"""Violations of a schema that are named."""


class Need(NamedTuple):
    """A session that a step may want: of an agent, with the model that the step names in place of the agent's."""

    agent: AgentSpec
    model: str
    step: str


def needs(workflow: ResolvedWorkflow) -> tuple[Need, ...]:
    """Every agent and model together that a step, a last attempt or what undoes a step may be done with.

    Each once, with the first step that wants it. Summaries are no part of it: they are seldom written, and the
    beginning of a text stands for one that cannot be.
    """
    agents = {agent.name: agent for agent in workflow.agents}
    found: dict[tuple[str, str], Need] = {}
    for step in steps_of(workflow.spec):
        if is_block(step):
            continue
        wanted = [(step.agent or workflow.routed.get(step.id, ""), step.model)]
        wanted.append((step.retry.fallback_agent, step.model))
        if step.compensate is not None:
            wanted.append((step.compensate.agent, ""))
        for name, model in wanted:
            if name in agents:
                found.setdefault((name, model), Need(agents[name], model, step.id))
    return tuple(found.values())


def wants_diffs(spec: WorkflowSpec) -> bool:
    """Whether git has to find out what steps change."""
    return any(output.capture == "diff" for step in steps_of(spec) for output in step.outputs)


def check_repository(spec: WorkflowSpec, cwd: str) -> None:
    """What steps change is found by git, in a repository of the directory's own. Raises RefusedError."""
    if wants_diffs(spec) and not os.path.lexists(os.path.join(cwd, ".git")):
        raise RefusedError(
            f"{spec.name} keeps what its steps change (`capture: diff`), and {cwd} is no git repository",
            code="no_repository",
            mend="git init there, or run it in a repository's own directory",
        )


def check_inputs(spec: WorkflowSpec, given: Mapping[str, bytes], cwd: str) -> None:
    """Whether a workflow can begin with what it is given, and with what lies in files there. Blocks on files.

    Raises ConfigError, RefusedError.
    """
    known = {each.name: each for each in spec.inputs}
    for name in given:
        if name not in known:
            mend = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"{spec.name} takes no input {name[:100]!r}", mend=mend)
    if sum(len(data) for data in given.values()) > MAX_INPUTS_BYTES:
        mend = "leave it in a file of the working directory, and name that in the workflow"
        raise RefusedError(f"inputs of more than {MAX_INPUTS_BYTES} bytes", code="too_large", mend=mend)
    for name, each in known.items():
        if name not in given and not each.file:
            if each.required:
                mend = f"give it: --input {name}=@FILE, or its text"
                raise ConfigError(f"{spec.name} needs the input {name}", mend=mend)
            continue
        data = given[name] if name in given else _from_file(spec, each, cwd)
        if data is not None and each.schema and (complaint := schema_complaint(data, each.schema)):
            where = "" if name in given else f" ({each.file})"
            raise ConfigError(f"the input {name}{where} of {spec.name} {complaint}", mend="mend what it says")


def schema_complaint(data: bytes, schema: dict[str, Any]) -> str:
    """Why a content is not JSON that satisfies a schema, as what follows its name; empty if it is."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"is not JSON: {error}"[:500]
    wrong = violations(schema, document)
    return f"is not what its schema says: {'; '.join(wrong[:MAX_TOLD])}"[:2000] if wrong else ""


def _from_file(spec: WorkflowSpec, each: WorkflowInput, cwd: str) -> bytes | None:
    """What the workflow would read, if a schema is to be looked at. Raises ConfigError if it has to be there."""
    try:
        return _read(cwd, each.file, is_wanted=bool(each.schema))
    except OSError as error:
        if not each.required:
            return None
        raise ConfigError(
            f"{spec.name} needs the input {each.name}, and {each.file} cannot be read: "
            + (error.strerror or str(error)).lower(),
            mend=f"write it there, or give it: --input {each.name}=@FILE",
        ) from error


def _read(cwd: str, file: str, *, is_wanted: bool) -> bytes | None:
    """A regular file of the directory, or below it. None if only its being there counts. Raises OSError."""
    top = os.path.realpath(cwd)
    path = os.path.realpath(os.path.join(top, file))
    if os.path.commonpath([top, path]) != top:
        raise OSError("it lies outside the working directory")
    # A link that has been put there since is not followed.
    with open_regular(path, follows_links=False) as stream:
        if os.fstat(stream.fileno()).st_size > MAX_ARTIFACT_BYTES:
            raise OSError(f"it has more than {MAX_ARTIFACT_BYTES} bytes")
        return stream.read(MAX_ARTIFACT_BYTES) if is_wanted else None
