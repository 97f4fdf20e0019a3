"""How a working directory's state is taken."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ottod.worker.workflow_diff import GRAFT, STATE


@pytest.mark.parametrize("script", [STATE, GRAFT])
def test_two_with_the_same_process_number_have_their_own_index(tmp_path: Path, script: str) -> None:
    """Each sandbox counts its processes from 1, and those of a session share a directory, as two subshells do."""
    stub = tmp_path / "bin" / "git"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$GIT_INDEX_FILE" >> seen\n')
    stub.chmod(0o755)
    place = tmp_path / "tmp"
    place.mkdir()
    words = ["sh", "-c", f"({script})\n({script})", "sh", "onto", "before", "after"]
    env = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "TMPDIR": str(place)}
    subprocess.run(words, cwd=tmp_path, env=env, check=True, timeout=60)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(set(seen)) == 2 and len(seen) >= 4, seen
    assert list(place.iterdir()) == [], "something was left behind"
