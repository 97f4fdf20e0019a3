"""Workflows of a real daemon, for tests: agents as files of a project, played by scripts, with real tools."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from ottoctl.sync import SyncOtto, SyncSession
from ottod.protocol import journal as j
from ottod.protocol.workflows import Step, WorkflowSpec
from tests.daemon.harness import RealDaemon


def agent(daemon: RealDaemon, name: str, *turns: Mapping[str, object], **fields: object) -> None:
    """Writes an agent into the daemon's working directory that plays these turns."""
    directory = daemon.workdir / ".otto" / "agents"
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / f"{name}.script.yaml_"
    fresh = directory / f"{name}.fresh"  # As in `RealDaemon.script`: nobody reads half of one.
    fresh.write_text(yaml.safe_dump({"turns": list(turns)}))
    fresh.replace(script)
    said = {"name": name, "description": f"plays {name}", "model": f"scripted:{script}", **fields}
    (directory / f"{name}.yml").write_text(yaml.safe_dump(said))


def shell(command: str) -> dict[str, object]:
    """A turn that runs a command."""
    return {"tools": [{"name": "shell", "arguments": {"command": command}}]}


def keep(name: str, content: str, kind: str = "file") -> dict[str, object]:
    """A turn that keeps an artifact."""
    return {"tools": [{"name": "artifact_write", "arguments": {"name": name, "content": content, "kind": kind}}]}


def worker(daemon: RealDaemon, name: str, command: str, answer: str = "done", **fields: object) -> None:
    """An agent that runs one command, then answers."""
    agent(daemon, name, shell(command), {"text": answer}, tools=["shell"], **fields)


def step(name: str, agent: str = "", **fields: Any) -> Step:
    """A step of the agent that is called as it is, unless another is named."""
    return Step(id=name, agent=agent or name, **fields)


def block(name: str, mode: str, *steps: Step, **fields: Any) -> Step:
    return Step(id=name, mode=mode, steps=steps, **fields)  # type: ignore[arg-type]


def workflow(mode: str, *steps: Step, **fields: Any) -> WorkflowSpec:
    return WorkflowSpec(name="flow", mode=mode, steps=steps, **{"summarizer": "", **fields})  # type: ignore[arg-type]


def start(daemon: RealDaemon, otto: SyncOtto, spec: WorkflowSpec, task: str = "go", **fields: Any) -> SyncSession:
    return otto.start_workflow(spec=spec, task=task, cwd=daemon.workdir, **fields)


def ended(session: SyncSession) -> list[j.StepEnded]:
    """The attempts of steps that are over, in order."""
    return [entry for entry in session.journal() if isinstance(entry, j.StepEnded)]


def paths(session: SyncSession, outcome: str = "completed") -> list[str]:
    return [entry.path for entry in ended(session) if entry.outcome == outcome]


def ottoctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command beside the daemon, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        cwd=daemon.workdir,
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
