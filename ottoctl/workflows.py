"""The workflows that can be seen from here, as the command line needs them. Reads files; asks no daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ottoctl.findings import FileCheck
from ottod.errors import ConfigError
from ottod.protocol.specs import ModelTarget

if TYPE_CHECKING:
    from ottod.protocol.specs import AgentSpec
    from ottod.protocol.workflows import WorkflowSpec
    from ottod.settings.workflow_plan import WorkflowPlan
    from ottod.settings.workflows import WorkflowEntry, WorkflowFinder


def workflow_finder(cwd: Path | None = None) -> WorkflowFinder:
    """The finder that the daemon would use for a workflow in `cwd` (default: here)."""
    from ottoctl.agents import agent_finder
    from ottod.settings.workflows import WorkflowFinder

    return WorkflowFinder(agents=agent_finder(cwd))


def is_file(name: str) -> bool:
    """Whether a user means a file rather than a name."""
    return "/" in name or name.endswith((".yml", ".yaml"))


def workflow_entry(name: str, cwd: Path | None = None) -> WorkflowEntry:
    """The workflow of a name or in a file, right or wrong. Raises: ConfigError `unknown_workflow`."""
    import msgspec

    from ottod.settings.workflow_file import check_workflow
    from ottod.settings.workflow_people import People
    from ottod.settings.workflows import WorkflowEntry

    finder = workflow_finder(cwd)
    if not is_file(name):
        return finder.find(name)
    settings = finder.agents.settings
    spec, errors = check_workflow(name, people=People(finder.agents), settings=settings)
    # Mistakes are told of the file as it was typed; what runs may be asked about from anywhere.
    source = os.path.abspath(name)
    spec = msgspec.structs.replace(spec, source=source) if spec is not None else None
    return WorkflowEntry(name=Path(name).stem, layer="project", source=source, spec=spec, errors=tuple(errors))


def workflow_plan(spec: WorkflowSpec, task: str = "", cwd: Path | None = None, *, model: str = "") -> WorkflowPlan:
    """What a workflow would do with a task, here, and the most that it can cost.

    `model` answers in place of all others. Raises: ConfigError for what would refuse it: nobody for a route, an agent
    whose file is wrong, an unknown model.
    """
    from ottod.settings.models import resolve_model
    from ottod.settings.workflow_people import People
    from ottod.settings.workflow_plan import plan_of
    from ottod.settings.workflow_start import needs
    from ottod.settings.workflows import choose, resolve_workflow

    agents = workflow_finder(cwd).agents
    settings, directory = agents.settings, str(agents.cwd)
    assert settings is not None

    workflow = resolve_workflow(spec, agents, task=task)
    needed = {need.agent.name for need in needs(workflow)}

    def models_of(agent: AgentSpec, named: str) -> tuple[ModelTarget, ...]:
        own = os.path.join(directory, agent.working_dir)
        place = own if os.path.isdir(own) else directory
        wanted = [(m, agent.source) for m in (agent.model, *agent.fallback_models)]
        if first := model or named:
            wanted[0] = (first, "")
        found = []
        for name, source in wanted:
            try:
                found.append(resolve_model(name, settings, agent=agent.name, agent_source=source, cwd=place))
            except ConfigError:
                # As at a start: the beginning of a text stands for a summary that nobody can write.
                if agent.name in needed:
                    raise
                found.append(ModelTarget(provider="scripted", adapter="scripted", model=""))
        return tuple(found)

    return plan_of(workflow, choose(spec, People(agents), task=task), models_of)


def check_workflow_here(name: str, cwd: Path | None = None) -> FileCheck:
    """A workflow by name, or by file, as it would run in `cwd`."""
    from ottod.settings.permission_rules import rules_about_nobody
    from ottod.settings.yaml_source import read

    try:
        entry = workflow_entry(name, cwd)
        if entry.errors:
            return FileCheck(list(entry.errors), [])
        return FileCheck([], rules_about_nobody(read(entry.source), workflow_finder(cwd).agents.names))
    except ConfigError as error:
        return FileCheck([error], [])


def workflows_dir(cwd: Path | None, *, user: bool) -> Path:
    """Where a new workflow is written."""
    if user:
        from ottod.settings.paths import Paths

        return Paths.from_env(os.environ, uid=os.getuid()).config_home / "workflows"
    return (cwd or Path()) / ".otto" / "workflows"
