"""What a call would do to files is found out by doing it to none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.model import ToolCall
from ottod.settings.names import FILE_TOOLS
from ottod.tools.registry import BUILTIN_TOOLS
from ottod.worker.preview import Preview

TOOLS = {tool.name: tool for tool in BUILTIN_TOOLS}


def diff(root: Path, tool: str, **arguments: Any) -> str | None:
    files = BeneathFiles(str(root))
    try:
        call = ToolCall(call="c", tool=tool, arguments=msgspec.json.encode(arguments).decode())
        return asyncio.run(Preview(TOOLS, files).diff(call))
    finally:
        files.close()


def test_each_file_tool_shows_what_it_would_change_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Title\n\none\n\n## Part\n\ntwo\n")
    (tmp_path / "a.json").write_text('{\n  "x": 1\n}\n')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert diff(tmp_path, "fs_edit", path="a.md", old="one", new="three") == (
        "--- a/a.md\n+++ b/a.md\n@@ -1,6 +1,6 @@\n # Title\n \n-one\n+three\n \n ## Part\n \n"
    )
    assert (
        diff(tmp_path, "fs_write", path="new/b", content="x\n") == "--- /dev/null\n+++ b/new/b\n@@ -0,0 +1 @@\n+x\n"
    )
    assert "-two\n+more" in (
        diff(tmp_path, "markdown", action="replace", file="a.md", heading="Part", content="more") or ""
    )
    assert '-  "x": 1\n+  "x": 2' in (diff(tmp_path, "data", action="set", file="a.json", path="x", value=2) or "")
    assert diff(tmp_path, "data", action="get", file="a.json") is None, "it only reads"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_call_that_would_fail_says_why(tmp_path: Path) -> None:
    assert (diff(tmp_path, "fs_edit", path="no", old="a", new="b") or "").startswith(
        "… it would fail now: no such file"
    )
    assert "fail now" in (diff(tmp_path, "fs_write", path="../out", content="x") or "")
    assert "fail now" in (diff(tmp_path, "fs_write", path="a") or "")


@pytest.mark.parametrize("tool", ["shell", "git", "nothing", "artifact_write"])
def test_of_other_calls_there_is_none(tool: str, tmp_path: Path) -> None:
    assert diff(tmp_path, tool, command="rm -rf /", name="x", content="y") is None


def test_file_tools_do_nothing_but_read_and_write() -> None:
    assert all(TOOLS[name].permissions <= {"read", "write"} for name in FILE_TOOLS)
