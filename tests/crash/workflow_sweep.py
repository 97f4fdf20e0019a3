"""The sweep of workflows: a life for each place at which a workflow's process, or those of its steps, can be killed.

Every life is the same: a plan, a loop whose reviewer sends the work back once, two branches, and, if it is to fail,
a step that breaks, so that what was done is undone. Each step leaves a line in a file that nothing in Otto reads.
After a kill the artifacts, the outcome and the lines must be those of a life that was not disturbed.

`python -m tests.crash.workflow_sweep` takes every place.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import yaml

from ottoctl.sync import SyncOtto, SyncSession
from ottod.protocol import journal as j
from ottod.protocol.requests import ListSessions
from ottod.protocol.workflows import Compensation, Condition, Output, Step, WorkflowSpec
from ottod.worker.failpoints import VARIABLE, WORKFLOW_VARIABLE
from tests.crash.sweep import POINTS, Place
from tests.daemon.harness import RealDaemon, running_daemon
from tests.daemon.program import run_program

EFFECTS = "effects"
VERDICT = {"type": "object", "required": ["v"], "properties": {"v": {"type": "string"}}}
REVIEW = (
    'if [ "$$(grep -c ^build {effects})" -ge 2 ]; then v=approved; else v=again; fi; '
    'echo "{{\\"v\\": \\"$$v\\"}}" > r'
)


class WorkflowLife(msgspec.Struct, frozen=True, kw_only=True):
    """What one workflow did."""

    place: Place
    outcome: str
    artifacts: tuple[str, ...]
    effects: dict[str, int]
    """Lines that were left, by command."""
    ended: tuple[str, ...]
    """Paths of attempts that completed, in order."""
    begun_again: tuple[str, ...]
    """Paths of steps that were begun after they had completed."""
    undone: tuple[str, ...]
    incarnations: int
    restarts: int
    """Of its steps, together."""
    records: int


def _agent(directory: Path, name: str, *turns: dict[str, object], tools: tuple[str, ...] = ("shell",)) -> None:
    script = directory / f"{name}.script"
    script.write_text(yaml.safe_dump({"turns": list(turns)}))
    said = {
        "name": name,
        "description": name,
        "model": f"scripted:{script}",
        "tools": list(tools),
        "env": [VARIABLE, WORKFLOW_VARIABLE],
        "restart": {"backoff": {"base_s": 0, "jitter": 0}},
    }
    (directory / f"{name}.yml").write_text(yaml.safe_dump(said))


def _call(command: str) -> dict[str, object]:
    return {"tools": [{"name": "shell", "arguments": {"command": command}}]}


def _write_agents(agents: Path) -> None:
    """The user's: a project's may not name variables."""
    agents.mkdir(parents=True, exist_ok=True)
    for name in ("plan", "build", "left", "right", "undo-left", "undo-build"):
        _agent(agents, name, _call(f"echo {name} >> {EFFECTS}"), {"text": f"{name} is done"})
    # It fails once it has had its effect, and is tried again.
    again: dict[str, object] = {"when": {"user_contains": "tried before"}, "text": "it was undone already"}
    breaks: dict[str, object] = {"alternatives": [again, {"error": {"status": 400, "message": "it breaks"}}]}
    _agent(agents, "undo-plan", _call(f"echo undo-plan >> {EFFECTS}"), breaks)
    write: dict[str, object] = {"tools": [{"name": "artifact_write", "arguments": {"name": "review", "file": "r"}}]}
    review = _call(REVIEW.format(effects=EFFECTS))
    _agent(agents, "review", review, write, {"text": "reviewed"}, tools=("shell", "artifact_write"))
    _agent(agents, "break", {"error": {"status": 400, "message": "it breaks"}}, tools=())


def _spec(*, fails: bool) -> WorkflowSpec:
    def undo(name: str) -> Compensation:
        return Compensation(agent=f"undo-{name}", task="undo it")

    loop = Step(
        id="work",
        mode="loop",
        max_iterations=3,
        until=Condition(artifact="review", field="v", equals="approved"),
        steps=(
            Step(id="build", agent="build", inputs=("plan", "review"), compensate=undo("build")),
            Step(id="review", agent="review", outputs=(Output(name="review", schema=VERDICT),)),
        ),
    )
    both = Step(
        id="both",
        mode="parallel",
        steps=(Step(id="left", agent="left", compensate=undo("left")), Step(id="right", agent="right")),
    )
    plan = Step(id="plan", agent="plan", outputs=(Output(name="plan", capture="answer"),), compensate=undo("plan"))
    last = (Step(id="break", agent="break"),) if fails else ()
    return WorkflowSpec(name="swept", summarizer="", steps=(plan, loop, both, *last))


class WorkflowSweep:
    """Workflows of one daemon, some at a time. `victim` says whose processes are killed."""

    def __init__(self, daemon: RealDaemon, otto: SyncOtto, *, fails: bool, at_once: int = 4) -> None:
        self._daemon = daemon
        self._otto = otto
        self._spec = _spec(fails=fails)
        self._at_once = at_once
        self._count = 0
        _write_agents(daemon.base / "config" / "agents")

    def live(self, places: Iterable[Place], variable: str = WORKFLOW_VARIABLE) -> Iterator[WorkflowLife]:
        """Runs one workflow for each place to its end, in this order."""
        waiting = list(places)
        while waiting:
            batch, waiting = waiting[: self._at_once], waiting[self._at_once :]
            started = [(place, *self._start(place, variable)) for place in batch]
            for place, session, directory in started:
                session.wait(timeout_s=300.0)
                yield workflow_life(place, self._otto, session, directory)

    def _start(self, place: Place, variable: str) -> tuple[SyncSession, Path]:
        self._count += 1
        directory = self._daemon.workdir / f"{'failing' if len(self._spec.steps) > 3 else 'life'}-{self._count}"
        directory.mkdir()
        env = {"PATH": os.environ["PATH"]}
        if place.point:
            env[variable] = f"1:{place.point}:{place.record}"
        return self._otto.start_workflow(spec=self._spec, task="go", cwd=directory, env=env), directory


def workflow_life(place: Place, otto: SyncOtto, session: SyncSession, directory: Path) -> WorkflowLife:
    """What a workflow that has ended did."""
    info, entries = session.info(), session.journal()
    done: list[str] = []
    again: list[str] = []
    artifacts: list[str] = []
    undone: list[str] = []
    for entry in entries:
        if isinstance(entry, j.StepBegun) and entry.path in done:
            again.append(entry.path)
        elif isinstance(entry, j.StepEnded) and entry.outcome == "completed":
            done.append(entry.path)
            artifacts += entry.artifacts
        elif isinstance(entry, j.CompensationEnded) and entry.outcome == "completed":
            undone.append(entry.path)
    file = directory / EFFECTS
    tree = otto.list_with(ListSessions(all=True, tree=session.id)).sessions
    return WorkflowLife(
        place=place,
        outcome=info.cause.kind if info.cause is not None else info.state,
        artifacts=tuple(sorted(artifacts)),
        effects=dict(Counter(file.read_text().split())) if file.exists() else {},
        ended=tuple(done),
        begun_again=tuple(again),
        undone=tuple(undone),
        incarnations=info.incarnation,
        restarts=sum(each.restarts for each in tree if each.session != info.session),
        records=len(entries),
    )


def what_is_wrong(life: WorkflowLife, undisturbed: WorkflowLife, *, may_miss: bool = False) -> list[str]:
    """How a workflow that was disturbed differs from the other in what must be the same.

    `may_miss`: a step's own process was killed, so that nobody knows whether its command had its effect.
    """
    wrong = []
    for field in ("outcome", "artifacts"):
        if getattr(life, field) != getattr(undisturbed, field):
            wrong.append(f"{field}: {getattr(life, field)}, not {getattr(undisturbed, field)}")
    if sorted(life.ended) != sorted(undisturbed.ended):
        wrong.append(f"completed: {life.ended}")
    if life.begun_again:
        wrong.append(f"begun again: {life.begun_again}")
    if sorted(life.undone) != sorted(undisturbed.undone):
        wrong.append(f"undone: {life.undone}")
    more = Counter(life.effects) - Counter(undisturbed.effects)
    missing = Counter(undisturbed.effects) - Counter(life.effects)
    if more or (missing and not may_miss):
        wrong.append(f"effects: {life.effects}")
    return wrong


def main() -> int:
    """Prints what was found; exit status 1 if a workflow differs from the undisturbed one where it must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=4, help="workflows that run at the same time")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th place only")
    arguments = parser.parse_args()
    lives = wrongs = killed = 0
    with running_daemon(env={"OTTO_FAILPOINTS": "1"}) as daemon, daemon.client() as otto:
        for fails in (False, True):
            sweep = WorkflowSweep(daemon, otto, fails=fails, at_once=arguments.at_once)
            (undisturbed,) = sweep.live([Place()])
            places = [Place(p, n) for n in range(undisturbed.records) for p in POINTS][:: arguments.every]
            for life in sweep.live(places):
                lives, killed = lives + 1, killed + (life.incarnations > 1)
                for wrong in what_is_wrong(life, undisturbed):
                    wrongs += 1
                    print(f"{'failing, ' * fails}killed {life.place}: {wrong}", file=sys.stderr)
    print(f"{lives} workflows, {killed} of them killed, {wrongs} differences")
    return 1 if wrongs else 0


if __name__ == "__main__":
    run_program(main)
