"""How a working directory's state is taken."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ottod.protocol.toolio import ProgramResult
from ottod.worker.workflow_diff import GRAFT, STATE, WorkingTree


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


@pytest.mark.parametrize(
    ("ends", "state", "calls"),
    [(["exited:1", "exited:0"], "tree", 2), (["exited:1"], "", 3), (["timeout:0"], "", 1), (["exited:0"], "tree", 1)],
)
def test_a_state_that_git_could_not_take_is_taken_again(ends: list[str], state: str, calls: int) -> None:
    """A file was changed or removed just then; what takes too long is not worth another wait."""
    made: list[str] = []

    class Programs:
        async def run(self, argv: list[str], **bounds: Any) -> ProgramResult:
            made.append(ends[min(len(made), len(ends) - 1)])
            ended, _, status = made[-1].partition(":")
            return ProgramResult(
                ended=ended,  # type: ignore[arg-type]
                exit_status=int(status),
                output="tree\n",
                truncated=False,
                total_bytes=5,
                duration_ms=1,
            )

    assert asyncio.run(WorkingTree(Programs()).state_if_any()) == state  # type: ignore[arg-type]
    assert len(made) == calls
