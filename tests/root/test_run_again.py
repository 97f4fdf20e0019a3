"""What to type to run a workflow once more: something that works, or nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import pytest

from ottoctl.workflows import workflow_entry
from ottod.ids import session_id
from ottod.protocol.cause import Cause
from ottod.protocol.results import SessionInfo
from ottod.root.lineage import how_to_go_on, run_again
from ottod.root.session_table import Session
from ottod.settings.workflows import BUILTIN_DIR


def run_of(source: str, *, cwd: str = "/p/src", cause: Literal["completed", "crashed"] = "completed") -> Session:
    info = SessionInfo(
        session=session_id(1),
        agent="fix",
        model="",
        state="stopped",
        kind="workflow",
        agent_source=source,
        cwd=cwd,
        cause=Cause(kind=cause),
    )
    return Session(info, None)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("/p/.otto/workflows/fix.yml", "fix"),
        ("/p/src/.otto/workflows/fix.yml", "fix"),
        (str(BUILTIN_DIR / "fix.yml"), "fix"),
        ("/elsewhere/.otto/workflows/fix.yml", "/elsewhere/.otto/workflows/fix.yml"),
        ("/srv/workflows/fix.yml", "/srv/workflows/fix.yml"),
        ("/srv/my flows/fix.yml", "'/srv/my flows/fix.yml'"),
    ],
)
def test_by_its_name_only_where_that_is_found(source: str, named: str) -> None:
    """From the session's own directory; from anywhere else by its file."""
    assert run_again(run_of(source)) == f'ottoctl workflow run {named} "…"'


@pytest.mark.parametrize("source", ["", "fix.yml"])
def test_what_is_in_no_file_has_no_command(source: str) -> None:
    """It was made in Python, or its file was named from a directory that nobody remembers."""
    assert run_again(run_of(source)) == ""
    assert "workflow run" not in how_to_go_on(run_of(source))
    assert (
        how_to_go_on(run_of(source, cause="crashed")) == f"ottoctl resume {session_id(1)} goes on with what is left"
    )


def test_a_file_is_remembered_by_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was typed, so that what is said of it holds anywhere."""
    monkeypatch.setenv("OTTO_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fix.yml").write_text("steps:\n  - {id: a, agent: coder}\n")
    entry = workflow_entry("./fix.yml")
    assert entry.spec is not None
    assert entry.source == entry.spec.source == str(tmp_path / "fix.yml")
    assert shlex.split(run_again(run_of(entry.spec.source)))[3] == str(tmp_path / "fix.yml")
