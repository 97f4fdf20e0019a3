"""What the demonstration of teams claims: each claim falls when what it says is not so; and its picture fits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ottoctl.demo.files import file_name, page, write_files
from ottoctl.demo.findings import Findings, claims
from ottoctl.demo.live import picture
from ottoctl.demo.stage import TestRun as Run
from ottoctl.demo.stage import run_tests
from ottoctl.demo.team import TASKS, chosen
from ottoctl.demo.team_report import report
from ottoctl.results import run_result
from ottod.errors import OttoError
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.cause import Cause
from ottod.protocol.decisions import DecisionEdge, DecisionNode
from ottod.protocol.results import SessionInfo

GREEN = Run(passed=5, said="5 passed in 0.1s")
RED = Run(passed=4, failed=1, said="1 failed, 4 passed in 0.1s")
BACK = {"verdict": "needs_revision", "blockers": ["it loses cents"], "high": [], "medium": []}
GOOD: dict[str, Any] = {"verdict": "approved", "blockers": [], "high": [], "medium": []}
STORY = ("goal", "decision", "option", "action", "outcome")


def session(name: str = "s-1", **fields: Any) -> SessionInfo:
    known: dict[str, Any] = {"agent": "flow", "model": "", "state": "ended", "cause": Cause(kind="completed")}
    return SessionInfo(session=name, **{**known, **fields})


def artifact(name: str, kind: str, content: bytes, version: int = 1) -> ArtifactInfo:
    digest = hashlib.sha256(content).hexdigest()
    return ArtifactInfo(artifact=f"art-{name}{version}", name=name, kind=kind, digest=digest, version=version)


def found(directory: Path) -> Findings:
    """All as it should be."""
    contents = {
        b"# Wish": artifact("ticket", "ticket", b"# Wish"),
        b"-a\n+b\n": artifact("code_diff", "code_diff", b"-a\n+b\n"),
    }
    artifacts = tuple(contents.values())
    files = write_files(artifacts, {a.artifact: data for data, a in contents.items()}, directory)
    nodes = tuple(
        DecisionNode(node=f"d-{n}", kind=kind, title=kind, session="s-1", agent="a", project="/p", at_ns=n)
        for n, kind in enumerate(STORY)
    )
    edges = tuple(
        DecisionEdge(source=f"d-{n}", kind="leads_to", target=f"d-{n + 1}", at_ns=n) for n in range(len(STORY) - 1)
    )
    return Findings(
        workflow="bug-fix-loop",
        task="mend it",
        result=run_result(session()),
        rows=(),
        artifacts=artifacts,
        files=files,
        wanted=("ticket", "code_diff"),
        reviews=(BACK, GOOD),
        reports=({"status": "green", "passed": 5, "failed": 0},),
        before=RED,
        first_try=RED,
        after=GREEN,
        nodes=nodes,
        edges=edges,
    )


def test_what_went_well_is_claimed_and_told(tmp_path: Path) -> None:
    right = found(tmp_path)
    said = claims(right, is_scripted=True)
    assert all(claim.holds for claim in said) and len(said) == 9
    assert any(claim.text.startswith("the 2 artifacts that were to be are in the index") for claim in said)
    told = report(right, said, is_only=True, width=0, color=False)
    assert "1. NEEDS REVISION" in told and "blocker: it loses cents" in told and "2. APPROVED" in told
    assert "✗" not in told and told.count("✓") == 9


@pytest.mark.parametrize(
    ("wrong", "claim"),
    [
        ({"result": run_result(session(cause=Cause(kind="failed")))}, "the workflow completed"),
        ({"reviews": (BACK,)}, "the reviewer approved at last"),
        ({"reviews": (GOOD,)}, "NEEDS REVISION once"),
        ({"reviews": (BACK, BACK, GOOD)}, "NEEDS REVISION once"),
        ({"reviews": ({**BACK, "blockers": []}, GOOD)}, "NEEDS REVISION once"),
        ({"reviews": ()}, "the reviewer approved at last"),
        ({"after": RED}, "its tests pass"),
        ({"after": Run(said="no tests ran")}, "its tests pass"),
        ({"reports": ({"status": "green", "passed": 9, "failed": 0},)}, "the last test report is true"),
        ({"wanted": ("ticket", "prd")}, "not prd"),
        ({"first_try": GREEN}, "with reason"),
        ({"first_try": None}, "with reason"),
        ({"before": GREEN}, "its tests failed before"),
        ({"edges": ()}, "the decision graph tells why"),
        ({"nodes": (), "edges": ()}, "the decision graph tells why"),
    ],
)
def test_a_claim_falls_when_it_is_not_so(wrong: dict[str, Any], claim: str, tmp_path: Path) -> None:
    fallen = [each.text for each in claims(replace(found(tmp_path), **wrong), is_scripted=True) if not each.holds]
    assert any(claim in text for text in fallen), fallen


def test_a_file_that_is_not_what_the_index_says_is_noticed(tmp_path: Path) -> None:
    right = found(tmp_path)
    (tmp_path / "ticket.md").write_text("# Another")
    assert next(c.text for c in claims(right, is_scripted=True) if not c.holds).endswith("; not ticket")
    (tmp_path / "ticket.md").unlink()
    assert not all(claim.holds for claim in claims(right, is_scripted=True))


def test_of_a_model_that_thinks_no_mistake_is_claimed(tmp_path: Path) -> None:
    """It may be right at once."""
    right = replace(found(tmp_path), reviews=(GOOD,), first_try=None, nodes=(), edges=())
    assert all(claim.holds for claim in claims(right, is_scripted=False))


def test_artifacts_have_files_for_programs_and_for_people(tmp_path: Path) -> None:
    """The content as it is, and what is no Markdown as a page beside it; of several versions the newest."""
    old, new = (
        artifact("review_report", "review_report", b"{}"),
        artifact(
            "review_report", "review_report", b'{"verdict":"approved","blockers":[{"problem":"p"}],"high":[]}', 2
        ),
    )
    write_files(
        [old, new],
        {old.artifact: b"{}", new.artifact: b'{"verdict":"approved","blockers":[{"problem":"p"}],"high":[]}'},
        tmp_path,
    )
    assert {path.name for path in tmp_path.iterdir()} == {"review_report.json", "review_report.md"}
    told = (tmp_path / "review_report.md").read_text()
    assert (
        "version 2" in told
        and "**verdict**: approved" in told
        and "- problem: p" in told
        and "**high**: none" in told
    )
    assert file_name(artifact("notes.txt", "file", b"")) == "notes.txt"
    assert "````diff\n+a\n````" in page(artifact("code_diff", "code_diff", b"+a\n"), b"+a\n")


def test_the_picture_leaves_out_what_has_ended_before_what_runs() -> None:
    """Where lines are few the oldest ended steps give way; workflows and live sessions stay."""
    top = session("s-0", kind="workflow", state="running", cause=None)
    ended = [session(f"s-e{n}", parent="s-0", created_at_ns=n + 1) for n in range(30)]
    live = [session(f"s-l{n}", parent="s-0", state="running", cause=None, created_at_ns=100 + n) for n in range(3)]
    drawn = picture([*live, *ended, top], ["? asked"], 3.0, (100, 12), False)
    assert len(drawn.splitlines()) <= 12
    assert all(f"s-l{n}" in drawn for n in range(3)) and "s-0" in drawn and "s-e29" in drawn and "s-e0 " not in drawn


def test_only_workflows_that_are_shown_can_be_chosen() -> None:
    assert chosen("") == chosen("all") == tuple(TASKS)
    assert chosen("refactor-swarm") == ("refactor-swarm",)
    with pytest.raises(OttoError, match="no demonstration of 'x'"):
        chosen("x")


def test_the_projects_tests_see_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents have written what runs here, and nothing confines it: its environment is that of their programs."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-" + "x" * 40)
    (tmp_path / "test_it.py").write_text(
        "import os\n\ndef test_it():\n    assert not [n for n in os.environ if 'KEY' in n]\n"
    )
    assert run_tests(tmp_path).is_green
