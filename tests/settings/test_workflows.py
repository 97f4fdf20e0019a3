"""Discovery and precedence of workflows, what a project may not do, and who a workflow's agents are."""

from __future__ import annotations

from pathlib import Path

import pytest

from ottod.errors import ConfigError
from ottod.protocol.specs import Isolation
from ottod.protocol.workflows import ResolvedWorkflow, Step
from ottod.settings.agents import finder
from ottod.settings.sections import DaemonSettings
from ottod.settings.workflows import BUILTIN_DIR, WorkflowFinder, find_workflow, resolve_workflow

ONE = "steps: [{agent: coder}]\n"


class World:
    """A home with a repository in it, and a user's configuration."""

    def __init__(self, base: Path) -> None:
        self.home = base / "home"
        self.repo = self.home / "repo"
        self.cwd = self.repo / "sub"
        self.config_home = self.home / ".config" / "otto"
        self.cwd.mkdir(parents=True)
        (self.repo / ".git").mkdir()

    def put(self, directory: Path, name: str, text: str = ONE, *, kind: str = "workflows") -> Path:
        below = directory / kind if directory == self.config_home else directory / ".otto" / kind
        below.mkdir(parents=True, exist_ok=True)
        (below / name).write_text(text)
        return below / name

    def finder(self) -> WorkflowFinder:
        settings = DaemonSettings()
        return WorkflowFinder(
            agents=finder(cwd=self.cwd, config_home=self.config_home, home=self.home, settings=settings)
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_project_over_user_over_builtin(world: World) -> None:
    """Each layer hides the same name below it, and the entry lists what it hides."""
    builtin = world.finder().find("plan-implement-review")
    assert builtin.layer == "builtin"
    user = world.put(world.config_home, "plan-implement-review.yml")
    assert world.finder().find("plan-implement-review").layer == "user"
    root = world.put(world.repo, "plan-implement-review.yaml")
    near = world.put(world.cwd, "plan-implement-review.yml")
    entry = world.finder().find("plan-implement-review")
    assert (entry.layer, entry.source) == ("project", str(near))
    assert entry.shadows == (str(root), str(user), builtin.source)
    assert find_workflow("plan-implement-review", world.finder().agents) == entry.spec


def test_an_unknown_workflow_is_refused_with_the_nearest(world: World) -> None:
    """The error says what was meant and where it looked."""
    world.put(world.repo, "release.yml")
    with pytest.raises(ConfigError) as caught:
        world.finder().find("relaese")
    assert caught.value.code == "unknown_workflow"
    assert str(caught.value) == "unknown workflow 'relaese' — did you mean 'release'?"
    assert str(world.repo / ".otto" / "workflows") in caught.value.mend
    with pytest.raises(ConfigError, match="unknown workflow 'coder'") as caught:
        world.finder().find("coder")
    assert caught.value.mend == 'coder is an agent: `ottoctl run coder "what to do"`'


@pytest.mark.parametrize("name", ["", "../release", "/etc/passwd", "release.yml", "a\0b"])
def test_names_are_never_paths(world: World, name: str) -> None:
    """Nothing but the listed directories is looked at."""
    world.put(world.repo, "release.yml")
    with pytest.raises(ConfigError, match="unknown workflow"):
        world.finder().find(name)


def test_a_wrong_file_hides_no_other_and_no_lower_layer_stands_in(world: World) -> None:
    """It is an entry with every mistake; running it fails."""
    world.put(world.config_home, "bad.yml")
    world.put(world.repo, "bad.yml", "stesp: 1\nsteps: [{agent: nobody}]\n")
    world.put(world.repo, "good.yml")
    entries = {entry.name: entry for entry in world.finder().entries()}
    assert entries["good"].spec is not None
    assert [e.line for e in entries["bad"].errors] == [1, 2]
    with pytest.raises(ConfigError, match="unknown key 'stesp'"):
        find_workflow("bad", world.finder().agents)


def test_twins_and_links_out_of_the_project_are_refused(world: World, tmp_path: Path) -> None:
    """Which of two was meant cannot be known; what lies outside is not read."""
    world.put(world.repo, "twin.yml")
    world.put(world.repo, "twin.yaml")
    (tmp_path / "secret.yml").write_text("top secret text")
    (world.repo / ".otto" / "workflows" / "leak.yml").symlink_to(tmp_path / "secret.yml")
    assert "is also defined in" in str(world.finder().find("twin").errors[0])
    (error,) = world.finder().find("leak").errors
    assert "leaves the project" in str(error) and "secret text" not in str(error)


def test_a_projects_workflow_names_the_projects_agents(world: World) -> None:
    """What is unknown to a session here is a mistake of the file."""
    world.put(world.repo, "own.yml", "steps: [{agent: helper}]\n")
    assert "unknown agent 'helper'" in str(world.finder().find("own").errors[0])
    world.put(world.repo, "helper.yml", "model: fast\n", kind="agents")
    assert world.finder().find("own").errors == ()


def test_a_project_only_narrows(world: World) -> None:
    """Layers and directories of a project's workflow are narrowed as an agent's; a script outside is refused."""
    text = "isolation: {network: off, read_paths: [/etc]}\n" + ONE
    world.put(world.repo, "wide.yml", text)
    entry = world.finder().find("wide")
    assert entry.spec is not None and entry.spec.isolation == Isolation(network="preferred")
    assert len(entry.notes) == 2
    world.put(world.config_home, "mine.yml", text)
    mine = world.finder().find("mine").spec
    assert mine is not None and mine.isolation.read_paths == ("/etc",)
    world.put(world.repo, "out.yml", "steps: [{agent: coder, model: 'scripted:/etc/passwd'}]\n")
    (error,) = world.finder().find("out").errors
    assert error.code == "refused" and "outside the project" in str(error)


def test_a_workflow_is_resolved_to_agents(world: World) -> None:
    """Every agent that it may need, each once; routes are decided by tags, tools and the task."""
    world.put(
        world.repo,
        "w.yml",
        "steps:\n"
        "  - {id: a, agent: coder, retry: {attempts: 2, fallback_agent: assistant}}\n"
        "  - {id: b, route: {tags: review}, compensate: {agent: coder, task: undo}}\n"
        "  - {id: c, route: {tools: fs_write}, task: 'Fix this bug: {{task}}'}\n",
    )
    finder = world.finder()
    spec = find_workflow("w", finder.agents)
    plan = resolve_workflow(spec, finder.agents, task="make the failing test pass")
    assert isinstance(plan, ResolvedWorkflow) and plan.spec == spec
    assert set(plan.routed) == {"b", "c"}
    names = [agent.name for agent in plan.agents]
    assert names == sorted({"assistant", "coder", "summarizer", *plan.routed.values()})


def test_a_route_to_nobody_is_refused_when_it_starts(world: World) -> None:
    """Without tags, tools or a word that fits there is nobody to choose."""
    world.put(world.repo, "w.yml", "steps: [{id: a, route: {hint: zzzz qqqq}}]\n")
    spec = find_workflow("w", world.finder().agents)
    with pytest.raises(ConfigError, match="nobody can be found for step 'a'") as caught:
        resolve_workflow(spec, world.finder().agents)
    assert caught.value.code == "no_route"


def test_every_builtin_workflow_is_right(world: World) -> None:
    """The shipped workflows load without a mistake, say what they are for and have a budget."""
    files = sorted(BUILTIN_DIR.glob("*"))
    assert {f.stem for f in files} == {"plan-implement-review", "parallel-scaffold", "bug-fix-loop", "refactor-swarm"}
    for file in files:
        entry = world.finder().find(file.stem)
        assert entry.errors == (), entry.errors
        assert entry.spec is not None
        assert entry.spec.description and entry.spec.budgets.usd and entry.spec.tags
        resolve_workflow(entry.spec, world.finder().agents, task="x")


def test_whom_the_workflows_task_names_gets_no_step_for_it(world: World) -> None:
    """Who reviews is not who writes because somebody says so of the whole; a step's own task may name somebody."""
    for name, fields in (("writer", "tags: [code]"), ("judge", "tags: [review]\ndescription: Judges parsers")):
        world.put(world.repo, f"{name}.yml", f"model: fast\n{fields}\n", kind="agents")
    text = (
        "steps:\n"
        '- {id: hinted, task: "{{task}}", route: who judges parsers}\n'
        '- {id: tagged, task: "{{task}}", route: {tags: review, hint: judges parsers}}\n'
        "- {id: bare, route: {tags: [code]}}\n"
        '- {id: own, task: "@writer judges parsers: {{task}}", route: who judges parsers}\n'
    )
    world.put(world.repo, "w.yml", text)
    spec = find_workflow("w", world.finder().agents)
    routed = resolve_workflow(spec, world.finder().agents, task="@writer fix the parser").routed
    assert routed == {"hinted": "judge", "tagged": "judge", "bare": "writer", "own": "writer"}


@pytest.mark.parametrize("kind", ["workflow", "harness"])
def test_what_is_not_run_may_not_be_a_steps_agent(world: World, kind: str) -> None:
    """By name, or found by a route."""
    world.put(world.repo, "flow.yml", f"kind: {kind}\ntags: [rare]\n", kind="agents")
    world.put(world.repo, "w.yml", "steps:\n- {agent: flow}\n- {id: b, route: {tags: rare}}\n")
    named, routed = world.finder().find("w").errors
    assert f"'flow' is a {kind}, not an agent" in str(named)
    assert "no agent has the tag 'rare'" in str(routed)
    assert Step(id="x").mode is None
