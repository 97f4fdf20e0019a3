"""Variables that somebody named: a session gets them all, or it does not start, and the refusal says what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ottod.errors import RefusedError
from ottod.protocol.requests import ENV_WANTED, StartSession, WorkflowStart
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.root.resolve import Resolved, Resolver
from ottod.root.vault import Vault
from ottod.settings.daemon import DaemonSettings
from ottod.settings.paths import Paths
from ottod.settings.sections import SecretSettings

SETTINGS = DaemonSettings(secrets={"db": SecretSettings(env="DB_URL")})
HELD = "postgres-0123456789"


@pytest.fixture
def resolver(tmp_path: Path) -> Resolver:
    vault = Vault(SETTINGS, {"DB_URL": HELD}, blot_out=lambda names: None)
    vault.open(SETTINGS)
    env = {
        "HOME": str(tmp_path / "home"),
        "OTTO_STATE_DIR": str(tmp_path / "s"),
        "OTTO_RUNTIME_DIR": str(tmp_path / "r"),
    }
    paths = Paths.from_env(env, uid=1000)
    return Resolver(settings=SETTINGS, paths=paths, vault=vault, platform=cast(Any, SimpleNamespace(report=dict)))


@pytest.fixture(params=["agent", "workflow"])
def start(request: pytest.FixtureRequest, tmp_path: Path, resolver: Resolver) -> Any:
    """Starts one that takes EDITOR, with variables that it must get."""
    (tmp_path / "project/.otto/agents").mkdir(parents=True)
    (tmp_path / "project/script.yml").write_text("- text: done\n")
    (tmp_path / "project/.otto/agents/one.yml").write_text(
        "model: scripted:script.yml\nenv: [EDITOR, OTTO_X, COPY]\n"
    )
    spec = WorkflowSpec(name="flow", steps=(Step(id="first", agent="one", task="go"),))

    def started(**env: str) -> Resolved:
        what: dict[str, Any] = {"agent": "one", "task": "go"}
        if request.param == "workflow":
            what = {"workflow": WorkflowStart(spec=spec), "task": "go"}
        asked = StartSession(cwd=str(tmp_path / "project"), env={**env, ENV_WANTED: " ".join(env)}, **what)
        return resolver.resolve(asked, tmp_path / "made")

    return started


def test_what_is_taken_passes(start: Any) -> None:
    """Of an agent, and of a workflow one of whose agents takes it."""
    assert start(EDITOR="ed").env == {"EDITOR": "ed"}


@pytest.mark.parametrize(
    ("env", "message", "mend"),
    [
        ({"COLOUR": "red"}, "takes no COLOUR from its environment", "env: \\[COLOUR\\]"),
        ({"OTTO_X": "1"}, "OTTO_X: what begins with OTTO_ is Otto's own", "another name"),
        ({"DB_URL": "x"}, "DB_URL: here the daemon has a key or another secret", "leave it out"),
        ({"COPY": f"of {HELD}"}, "COPY: here the daemon has a key or another secret", "leave it out"),
    ],
)
def test_what_may_not_pass_refuses_the_start(start: Any, env: dict[str, str], message: str, mend: str) -> None:
    """Before anything is made, and no value is repeated."""
    with pytest.raises(RefusedError, match=message) as refused:
        start(EDITOR="ed", **env)
    assert refused.value.code == "env_refused" and HELD not in str(refused.value)
    assert mend.replace("\\", "") in refused.value.mend


def test_a_workflows_mend_names_its_agents(start: Any, request: pytest.FixtureRequest) -> None:
    """It has no list of its own."""
    with pytest.raises(RefusedError) as refused:
        start(COLOUR="red")
    whose = "one of its agents" if "[workflow]" in request.node.name else "the agent's file"
    assert whose in refused.value.mend
