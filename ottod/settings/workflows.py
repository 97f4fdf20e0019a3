"""Where workflows are found, and which wins when a name is taken twice: as agents are (`agents`), in `workflows/`.

A workflow is checked with the agents that a session in the same directory would find, so a name that is unknown there
is a mistake of the workflow. What a project's workflow asks for is narrowed as its agents are.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import ResolvedWorkflow, Step, WorkflowSpec
from ottod.settings.agents import MAX_AGENT_FILES, AgentFinder, AgentLayer
from ottod.settings.levels import project_levels, same_owner
from ottod.settings.nearest import nearest
from ottod.settings.placeholders import fill_in
from ottod.settings.policy import is_within, narrow_workflow, project_of
from ottod.settings.routing import Routing, route, without_mentions
from ottod.settings.sections import DaemonSettings
from ottod.settings.workflow_file import check_workflow
from ottod.settings.workflow_people import People
from ottod.settings.workflow_sinks import sink_files
from ottod.settings.workflow_tree import is_block, places

BUILTIN_DIR = Path(__file__).parent / "builtin" / "workflows"
WORKFLOW_SUFFIXES = (".yml", ".yaml")


class WorkflowEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One workflow name as it would be found in some directory: a spec, or every mistake that its file has.

    `shadows` are the files of the same name that this one hides, `notes` what a project's workflow was denied.
    """

    name: str
    layer: AgentLayer
    source: str
    spec: WorkflowSpec | None = None
    errors: tuple[ConfigError, ...] = ()
    shadows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class WorkflowDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that is searched. `project_dir` is the project that its workflows belong to."""

    path: Path
    layer: AgentLayer
    project_dir: Path | None = None


class WorkflowFinder(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a search depends on: where agents are found, workflows are. Blocks on files."""

    agents: AgentFinder
    builtin_dir: Path = BUILTIN_DIR

    def directories(self) -> list[WorkflowDirectory]:
        """The directories in order of precedence, whether they exist or not."""
        cwd = self.agents.cwd
        project = [
            WorkflowDirectory(path=path / ".otto" / "workflows", layer="project", project_dir=root)
            for path, root in project_levels(cwd, self.agents.home)
            if same_owner(path, cwd, ".otto/workflows")
        ]
        return [
            *project,
            WorkflowDirectory(path=self.agents.config_home / "workflows", layer="user"),
            WorkflowDirectory(path=self.builtin_dir, layer="builtin"),
        ]

    def find(self, name: str) -> WorkflowEntry:
        """The entry of one name. Raises: ConfigError `unknown_workflow`, with the nearest and where it looked."""
        found = self._files(only=name)
        if name in found:
            return self._entry(name, found[name], People(self.agents))
        known = sorted(self._files())
        close = nearest(name, known)
        looked = ", ".join(str(d.path) for d in self.directories() if d.layer != "builtin")
        error = ConfigError(
            f"unknown workflow {name!r}" + (f" — did you mean {close!r}?" if close else ""),
            mend=f'{name} is an agent: `ottoctl run {name} "what to do"`'
            if any(agent.name == name for agent in self.agents.entries())
            else f"known workflows: {', '.join(known)}; looked in {looked} and the built-ins",
        )
        error.code = "unknown_workflow"
        raise error

    def has(self, name: str) -> bool:
        """Whether a file has that name, right or wrong."""
        return name in self._files(only=name)

    def entries(self) -> list[WorkflowEntry]:
        """Every name, sorted. A file that is wrong is an entry with errors and hides no other."""
        people = People(self.agents)
        return [self._entry(name, files, people) for name, files in sorted(self._files().items())]

    def _files(self, only: str = "") -> dict[str, list[tuple[WorkflowDirectory, Path]]]:
        found: dict[str, list[tuple[WorkflowDirectory, Path]]] = {}
        for directory in self.directories():
            for file in _workflow_files(directory.path):
                if not only or file.stem == only:
                    found.setdefault(file.stem, []).append((directory, file))
        return found

    def _entry(self, name: str, files: list[tuple[WorkflowDirectory, Path]], people: People) -> WorkflowEntry:
        directory, file = files[0]
        spec: WorkflowSpec | None = None
        errors: list[ConfigError] = []
        notes: tuple[str, ...] = ()
        twin = next((f for d, f in files[1:] if d.path == directory.path), None)
        if twin is not None:
            message = f"workflow {name!r} is also defined in {twin.name}"
            errors.append(ConfigError(message, file=str(file), mend="remove one of the two"))
        elif directory.project_dir is not None and not is_within(file, directory.project_dir):
            mend = "copy the file into the project"
            errors.append(ConfigError("a link that leaves the project", file=str(file), mend=mend))
        else:
            spec, errors = check_workflow(file, people=people, settings=self.agents.settings)
        if spec is not None and directory.project_dir is not None and self.agents.settings is not None:
            try:
                spec, notes = narrow_workflow(
                    spec, self.agents.settings, project=directory.project_dir, home=self.agents.home
                )
            except ConfigError as error:
                spec, errors = None, [error]
        return WorkflowEntry(
            name=name,
            layer=directory.layer,
            source=str(file),
            spec=spec,
            errors=tuple(errors),
            shadows=tuple(str(f) for _, f in files[1:]),
            notes=notes,
        )


def find_workflow(name: str, agents: AgentFinder) -> WorkflowSpec:
    """The workflow that a name means where these agents are found, as it would run.

    Blocks on files. Raises: ConfigError, the first mistake of its file, or with code `unknown_workflow`.
    """
    entry = WorkflowFinder(agents=agents).find(name)
    if entry.spec is None:
        raise entry.errors[0]
    return entry.spec


def resolve_workflow(spec: WorkflowSpec, agents: AgentFinder, *, task: str = "") -> ResolvedWorkflow:
    """The workflow with every agent that it may need, and who was found for its routes.

    Blocks on files. Raises: ConfigError `unknown_agent`, `no_route`, or what is wrong with an agent's file.
    """
    people = People(agents)
    routings = choose(spec, people, task=task)
    routed: dict[str, str] = {}
    for step, routing in routings.items():
        if not routing.agent:
            error = ConfigError(f"nobody can be found for step {step!r}: {routing.reason}", mend="name an agent")
            error.code = "no_route"
            raise error
        routed[step] = routing.agent
    names = {spec.summarizer, *routed.values()}
    for place in places(spec):
        if isinstance(place.node, Step):
            compensation = place.node.compensate.agent if place.node.compensate is not None else ""
            names |= {place.node.agent, place.node.retry.fallback_agent, compensation}
    found: list[AgentSpec] = [people.find(name) for name in sorted(names - {""})]
    files = sink_files(spec, agents.config_home)
    return ResolvedWorkflow(spec=spec, agents=tuple(found), routed=routed, sink_files=files)


def workflow_now(spec: WorkflowSpec, settings: DaemonSettings, *, home: Path) -> WorkflowSpec:
    """A workflow from an earlier day, as far as its project may have it today. The digest stays what it was."""
    project = project_of(spec.source, home, room="workflows")
    return spec if project is None else narrow_workflow(spec, settings, project=project, home=home)[0]


def choose(spec: WorkflowSpec, people: People, *, task: str = "") -> dict[str, Routing]:
    """Id of each step that has a route → who was chosen for it, and why.

    The workflow's task is about the whole: whom it names, it names for no step.
    """
    whole = without_mentions(task)
    return {
        place.node.id: route(fill_in(place.node.task, task=whole, iteration=1), people.agents, want=place.node.route)
        for place in places(spec)
        if isinstance(place.node, Step) and not is_block(place.node) and place.node.route is not None
    }


def _workflow_files(directory: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []  # Absent, or not ours to read: the other layers still count.
    files = [directory / n for n in names if n.endswith(WORKFLOW_SUFFIXES) and not n.startswith(".")]
    return files[:MAX_AGENT_FILES]
