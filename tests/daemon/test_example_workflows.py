"""The shipped workflows with their agents, end to end: scripted models, real files, a real pytest, a real git."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ottoctl.demo import team
from ottoctl.demo.files import file_name, write_files
from ottoctl.demo.stage import NO_PLUGINS, Stage
from ottoctl.rendering.decisions import decision_tree
from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import OttoError
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.decisions import DecisionFilter
from ottod.protocol.results import DecisionsFound
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.workshop import ended


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a workflow is to show. `side_by_side`: paths whose order is not given."""

    steps: tuple[str, ...]
    side_by_side: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    files: tuple[str, ...]
    statuses: tuple[str, ...] = ()
    changed: str


SHOWN = {
    "bug-fix-loop": Shown(
        steps=("[1]/fix", "[1]/test", "[2]/fix", "[2]/test", "[2]/review", "[3]/fix", "[3]/test", "[3]/review"),
        skipped=("[1]/review",),
        files=("code_diff.md", "review_report.md", "test_report.md"),
        statuses=("red", "green", "green"),
        changed="tally/invoice.py",
    ),
    "plan-implement-review": Shown(
        steps=("plan", "design", "build[1]/implement", "build[1]/review", "build[2]/implement", "build[2]/review"),
        files=("ticket.md", "design_brief.md", "code_diff.md", "review_report.md"),
        changed="tally/receipt.py",
    ),
    "refactor-swarm": Shown(
        side_by_side=("research/dependents", "research/purpose", "research/tests"),
        steps=(
            "plan",
            *(f"work[{n}]/{step}" for n in (1, 2) for step in ("implement", "verify", "review")),
            "report",
        ),
        files=("design.md", "code_diff.md", "test_report.md", "review_report.md", "report.md"),
        statuses=("green", "green"),
        changed="tally/money.py",
    ),
    "parallel-scaffold": Shown(
        side_by_side=("parts/backend", "parts/docs", "parts/frontend", "parts/qa"),
        steps=(
            "contract",
            "whole[1]/test",
            "whole[1]/review",
            "whole[2]/mend",
            "whole[2]/test",
            "whole[2]/review",
            "learn",
        ),
        skipped=("whole[1]/mend",),
        files=("design.md", "api_notes.md", "readme_notes.md", "test_report.md", "review_report.md"),
        statuses=("green", "green"),
        changed="OTTO.md",
    ),
}


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """One that lets sessions leave out pytest's plug-ins, which take longer to load than the project's tests."""
    with running_daemon(team.SETTINGS) as started:
        yield started


IN_SHORT = "plan-implement-review"
"""The quickest is in the suite; all are in `make test-long`, and in `make demo-team`, which checks the same."""


@pytest.mark.parametrize(
    "workflow", [pytest.param(w, marks=[] if w == IN_SHORT else pytest.mark.long) for w in SHOWN]
)
def test_a_shipped_workflow_goes_back_once_and_ends_well(workflow: str, daemon: RealDaemon, tmp_path: Path) -> None:
    """The reviewer finds what is really wrong, the loop goes back, the next review approves; all is on record."""
    shown, stage = SHOWN[workflow], Stage(workflow, daemon.workdir / "tally")
    stage.prepare()
    before = stage.tests() if workflow == "bug-fix-loop" else None
    with daemon.client(timeout_s=60) as otto:
        session = start(otto, stage, before.output if before is not None else "")
        asked = see_to_its_end(otto, session)
        result = session.wait(timeout_s=10)
        assert result.ok, (result.cause, result.result)
        done = [entry.path for entry in ended(session) if entry.outcome == "completed"]
        assert tuple(path for path in done if path not in shown.side_by_side) == shown.steps
        assert tuple(sorted(set(done) & set(shown.side_by_side))) == shown.side_by_side
        assert tuple(e.path for e in session.journal() if isinstance(e, j.StepSkipped)) == shown.skipped

        artifacts = sorted(otto.artifacts(session=session.id, all_versions=True), key=lambda a: (a.at_ns, a.version))
        contents = {a.artifact: otto.read_artifact(a) for a in artifacts}
        graph = otto.decisions(DecisionFilter(tree=session.id, limit=500))

    verdicts = [review["verdict"] for review in documents(artifacts, contents, "review_report")]
    assert verdicts == ["needs_revision", "approved"]
    assert documents(artifacts, contents, "review_report")[0]["blockers"]
    reports = documents(artifacts, contents, "test_report")
    assert tuple(report["status"] for report in reports) == shown.statuses

    # What the tests of the end say: yes to the end, and no to what was sent back.
    after = stage.tests()
    assert after.is_green and (before is None or before.failed == 3)
    assert not reports or (reports[-1]["passed"], reports[-1]["failed"]) == (after.passed, 0)
    first_review = next(a for a in artifacts if a.name == "review_report")
    later = [contents[a.artifact] for a in artifacts if a.name == "code_diff" and a.at_ns > first_review.at_ns]
    first = stage.tests_without(later, tmp_path / "first")
    assert later and first.failed and first.passed, first.said

    assert f"+++ b/{shown.changed}" in stage.diff()
    assert len(git(stage.directory, "log", "--format=%h").split()) == 1, "agents do not commit"
    files = write_files(artifacts, contents, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= set(shown.files)
    for artifact in {a.name: a for a in artifacts}.values():
        path = files[artifact.artifact]
        assert path.name == file_name(artifact)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.digest
    tells_why(graph)
    # What binds later runs is shown to somebody first.
    assert asked == (["write OTTO.md"] if workflow == "parallel-scaffold" else [])


def start(otto: SyncOtto, stage: Stage, failure: str) -> SyncSession:
    """The shipped workflow by its name, as any user would start it."""
    return otto.start_workflow(
        stage.workflow,
        team.TASKS[stage.workflow],
        inputs={"failure": failure} if failure else {},
        cwd=stage.directory,
        model=stage.scripts(),
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", NO_PLUGINS: "1"},
    )


def see_to_its_end(otto: SyncOtto, session: SyncSession) -> list[str]:
    """Waits, and agrees to what is asked; gives what that was."""
    asked: list[str] = []

    def has_ended() -> bool:
        for waiting in otto.approvals(session=session.id):
            asked.extend(waiting.approval.claims)
            otto.approve(waiting.approval.approval)
        return session.info().state == "ended"

    wait_for("the workflow has ended", has_ended, deadline_s=180)
    return asked


def documents(artifacts: list[ArtifactInfo], contents: dict[str, bytes], name: str) -> list[Any]:
    return [msgspec.json.decode(contents[a.artifact]) for a in artifacts if a.name == name]


def tells_why(graph: DecisionsFound) -> None:
    """From a goal over a decision with what it has chosen and rejected to an outcome; and it can be drawn."""
    kinds = {node.node: node.kind for node in graph.nodes}
    assert set(kinds.values()) >= {"goal", "decision", "option", "action", "outcome"}
    joins = {(kinds[e.source], e.kind, kinds[e.target]) for e in graph.edges}
    assert joins >= {
        ("goal", "leads_to", "decision"),
        ("decision", "chosen", "option"),
        ("decision", "rejected", "option"),
        ("decision", "leads_to", "action"),
    }
    led = {
        edge.source: edge.target for edge in graph.edges if edge.kind == "leads_to" and kinds[edge.source] != "goal"
    }
    ends = set()
    for node in kinds:
        while node in led:
            node = led[node]
        ends.add(kinds[node])
    assert "outcome" in ends
    drawn = decision_tree(graph.nodes, graph.edges, color=False)
    assert "goal: " in drawn and "└─ " in drawn and "outcome: " in drawn


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True, text=True).stdout


def test_a_workflow_is_refused_before_it_starts_if_somebody_has_no_script(daemon: RealDaemon) -> None:
    """A directory of scripts has one for each agent of the steps; whoever is missing is named."""
    stage = Stage("bug-fix-loop", daemon.workdir / "tally")
    stage.prepare()
    (stage.directory / ".otto/scripts/bug-fix-loop/test-runner.yml").unlink()
    with daemon.client() as otto, pytest.raises(OttoError, match="no script for test-runner at ") as caught:
        start(otto, stage, "")
    assert caught.value.code == "no_script"


@pytest.mark.timeout(300)
def test_the_demo_of_a_team_looks_at_what_it_claims_and_leaves_nothing(tmp_path: Path) -> None:
    """Verdicts, artifacts, tests before and after, the decision graph; every claim holds; no file stays behind."""
    done = subprocess.run(
        [sys.executable, "-m", "ottoctl", "demo", "team", "--workflow", "plan-implement-review", "--no-keep"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1. NEEDS REVISION · Criterion 3 is not met" in done.stdout and "2. APPROVED" in done.stdout
    assert "1 failed, 7 passed" in done.stdout and "8 passed" in done.stdout
    assert "+++ b/tally/receipt.py" in done.stdout and "└─ leads_to d-" in done.stdout
    assert "design_brief.md" in done.stdout and "✗" not in done.stdout and "$0." in done.stdout
    assert "plan-implement-review  ✓ build[2]/review" in done.stderr
    assert list(tmp_path.iterdir()) == []
