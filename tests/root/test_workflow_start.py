"""What a workflow needs is looked at before it starts: each session that a step may want could be started now."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ottod.errors import OttoError
from ottod.protocol.requests import StartSession, WorkflowStart
from ottod.protocol.workflows import Compensation, ResolvedWorkflow, Retry, Step, WorkflowInput, WorkflowSpec
from ottod.root.definitions import Kept
from ottod.root.resolve import Resolved, Resolver
from ottod.root.vault import Vault
from ottod.settings.daemon import DaemonSettings
from ottod.settings.paths import Paths
from ottod.settings.sections import ProviderSettings

SETTINGS = DaemonSettings(providers={"shut": ProviderSettings(adapter="openai", api_key_env="SHUT_KEY")})
AGENTS = {
    "fine": "model: scripted:script.yml\n",
    "keyless": "model: shut:m\n",
    "falls": "model: scripted:script.yml\nfallback_models: [shut:m]\n",
    "caged": "model: scripted:script.yml\nisolation: {memory: required}\n",
    "away": "model: scripted:own.yml\nworking_dir: sub\n",
}
SERVED = (
    "model: scripted:script.yml\n"
    "mcp_servers: [{name: notes, url: 'https://mcp.example.com/', headers: {Authorization: '${NOTES_TOKEN}'}}]\n"
)
OUTSIDE = "model: scripted:script.yml\nworking_dir: leads_out\n"


class World:
    """A project with agents, and root's resolver on a host that gives no isolation."""

    def __init__(self, base: Path) -> None:
        self.base, self.cwd = base, base / "project"
        (self.cwd / ".otto/agents").mkdir(parents=True)
        (self.cwd / "sub").mkdir()
        (self.cwd / "leads_out").symlink_to("/usr")
        for file in ("script.yml", "sub/own.yml"):
            (self.cwd / file).write_text("- text: done\n")
        for name, text in AGENTS.items():
            (self.cwd / f".otto/agents/{name}.yml").write_text(text)
        (base / "home/.config/otto/agents").mkdir(parents=True)
        (base / "home/.config/otto/agents/outside.yml").write_text(OUTSIDE)
        (base / "home/.config/otto/agents/served.yml").write_text(SERVED)
        env = {"HOME": str(base / "home"), "OTTO_STATE_DIR": str(base / "s"), "OTTO_RUNTIME_DIR": str(base / "r")}
        self.resolver = Resolver(
            settings=SETTINGS,
            paths=Paths.from_env(env, uid=1000),
            vault=Vault(SETTINGS, {}, blot_out=lambda names: None),
            platform=cast(Any, SimpleNamespace(report=dict)),
        )

    def start(self, spec: WorkflowSpec, model: str = "", kept: Kept | None = None, **inputs: bytes) -> Resolved:
        asked = StartSession(
            cwd=str(self.cwd), task="go", model=model, workflow=WorkflowStart(spec=spec, inputs=inputs)
        )
        made = self.base / "made"
        return self.resolver.resolve(asked, made, kept) if kept is not None else self.resolver.resolve(asked, made)

    def refusal(self, spec: WorkflowSpec, **more: Any) -> OttoError:
        with pytest.raises(OttoError) as refused:
            self.start(spec, **more)
        assert not (self.base / "made").exists()
        return refused.value


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def flow(**fields: Any) -> WorkflowSpec:
    """A step that can be done, and then one more."""
    return WorkflowSpec(name="flow", steps=(Step(id="first", agent="fine"), Step(**{"id": "last", **fields})))


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        ({"agent": "keyless"}, "auth", "'shut'"),
        ({"agent": "fine", "model": "shut:m"}, "auth", "'shut'"),
        ({"agent": "falls"}, "auth", "'shut'"),
        ({"agent": "falls", "model": "scripted:script.yml"}, "auth", "'shut'"),
        ({"agent": "fine", "retry": Retry(attempts=2, fallback_agent="keyless")}, "auth", "'shut'"),
        ({"agent": "fine", "compensate": Compensation(agent="keyless", task="undo")}, "auth", "'shut'"),
        ({"agent": "fine", "model": "scripted:nowhere.yml"}, "no_script", "nowhere.yml"),
        ({"agent": "caged"}, "isolation_unavailable", "'memory'"),
        ({"agent": "outside"}, "bad_cwd", "outside"),
        ({"agent": "served"}, "bad_config", "NOTES_TOKEN"),
    ],
)
def test_what_a_later_step_lacks_refuses_the_start(world: World, step: dict[str, Any], code: str, words: str) -> None:
    """A key, also for a model that only the step names or that only stands in; a script, isolation, a directory, what
    a server's header names. The step is named, and nothing has been made."""
    error = world.refusal(flow(**step))
    assert (error.code, words in error.message) == (code, True), error.message
    assert "step 'last'" in error.message, error.message
    assert error.mend


@pytest.mark.parametrize(
    ("step", "model"),
    [
        ({"agent": "keyless", "model": "scripted:script.yml"}, ""),
        ({"agent": "keyless"}, "scripted:script.yml"),
        ({"agent": "away"}, ""),
    ],
)
def test_what_no_session_would_use_hinders_nobody(world: World, step: dict[str, Any], model: str) -> None:
    """A model that the step, or the client, replaces; and a script lies where its agent works."""
    assert world.start(flow(**step), model).workflow is not None


def test_a_summary_is_not_worth_a_refusal(world: World) -> None:
    """Who writes them has no key: the beginning of a text stands for its summary."""
    spec = WorkflowSpec(name="flow", steps=(Step(id="a", agent="fine"),), summarizer="keyless")
    assert world.start(spec).workflow is not None


def test_what_was_kept_is_looked_at_as_well(world: World) -> None:
    """An earlier definition goes by what there is today."""
    spec = flow(agent="keyless")
    agents = tuple(world.resolver.look_up(StartSession(agent=name, cwd=str(world.cwd)))[0] for name in AGENTS)
    kept = Kept(workflow=ResolvedWorkflow(spec=spec, agents=agents))
    assert world.refusal(spec, kept=kept).code == "auth"


def test_what_it_begins_with_is_looked_at(world: World) -> None:
    """A file that is not there, or is not what its schema says: before the start, as what the client gives."""
    form = {"type": "object", "required": ["goal"]}
    inputs = (WorkflowInput(name="plan", file="docs/plan.json", schema=form),)
    spec = WorkflowSpec(name="flow", inputs=inputs, steps=(Step(id="a", agent="fine"),))
    missing = world.refusal(spec)
    assert "docs/plan.json" in missing.message and "--input plan=@FILE" in missing.mend
    assert "goal" in world.refusal(spec, plan=b"{}").message
    (world.cwd / "docs").mkdir()
    (world.cwd / "docs/plan.json").write_text("{}")
    assert "goal" in world.refusal(spec).message
    (world.cwd / "docs/plan.json").write_text('{"goal": 1}')
    assert world.start(spec).workflow is not None
