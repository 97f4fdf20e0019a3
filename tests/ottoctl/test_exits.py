"""One table from causes and codes to exit statuses, and its page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from ottoctl.exits import MEANINGS, OF_CAUSE, OF_CODE, exit_page, status_of_cause, status_of_code, worst
from ottod.protocol.cause import Cause, CauseKind

PAGE = Path(__file__).parents[2] / "docs/reference/exit-statuses.md"


@pytest.mark.parametrize("kind", get_args(CauseKind))
def test_every_cause_has_a_status(kind: CauseKind) -> None:
    """No cause falls through, and every status has a meaning."""
    assert status_of_cause(Cause(kind=kind)) in MEANINGS


def test_only_completed_is_0() -> None:
    """Nothing but success looks like success."""
    assert [kind for kind, status in OF_CAUSE.items() if status == 0] == ["completed"]
    assert 0 not in OF_CODE.values()
    assert status_of_cause(None) == 8


def test_an_unknown_code_is_a_failure() -> None:
    """A newer daemon's code is 1, not success."""
    assert status_of_code("something_new") == 1


def test_the_first_failure_counts() -> None:
    """A command about several sessions reports the first that went wrong."""
    assert (worst([]), worst([0, 0]), worst([0, 4, 1])) == (0, 0, 4)


def test_every_code_that_root_raises_is_known() -> None:
    """A code in the daemon's control path that this table forgets would silently mean 1."""
    root = Path(__file__).parents[2] / "ottod/root"
    raised = {
        code for file in root.glob("*.py") for code in re.findall(r'\bcode(?: =|=)\s?"([a-z_]+)"', file.read_text())
    }
    means_failed = {"internal", "storage", "no_answer", "hello_required", "start_failed", "auth", "unknown_worker"}
    of_causes = {"restart_intensity", "auto_shutdown"}
    of_admissions = {"unused"}
    told_to_workers = {"not_started"}
    assert raised - set(OF_CODE) - means_failed - of_causes - of_admissions - told_to_workers == set()


def test_the_page_is_the_table() -> None:
    """docs/reference/exit-statuses.md is generated from the table (`python -m ottoctl.exits`)."""
    assert PAGE.read_text() == exit_page()
