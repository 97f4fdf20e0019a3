from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError
from ottod.settings.sections import DaemonSettings, ProjectSettings
from ottod.settings.tool_files import ToolShelf, find_tools, tool_functions

OPEN = DaemonSettings(project_may=ProjectSettings(tools=True))
TOOL = "from ottod.tools.sdk import tool\n\n\n@tool\ndef {}(x: int) -> int:\n    '''Do it.'''\n    return x\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a configuration, and a repository with a directory in it."""
    for name in ("home/.config/otto/tools", "home/repo/.git", "home/repo/.otto/tools", "home/repo/sub/.otto/tools"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "home"


def shelf(home: Path, cwd: str = "repo/sub", settings: DaemonSettings = OPEN) -> ToolShelf:
    return find_tools(cwd=home / cwd, config_home=home / ".config/otto", home=home, settings=settings)


def write(path: Path, *names: str) -> Path:
    path.write_text("".join(TOOL.format(name) for name in names))
    return path


def test_tools_are_found_by_their_mark() -> None:
    """A function at the left margin below `@tool` is one; helpers, methods, other decorators and text are not."""
    text = (
        "import x\n@tool\ndef one(): ...\n\n@tool(\n    permissions=['net'],\n)\n@other\nasync def two(): ...\n"
        "def helper(): ...\n@tools\ndef three(): ...\n@tool\nX = 1\ndef four(): ...\n"
        "class A:\n    @tool\n    def five(self): ...\n'''\n  @tool\n'''\ndef six(): ...\n"
    )
    assert tool_functions(text) == [("one", 3), ("two", 9)]


@given(st.text(max_size=200))
def test_no_text_is_too_strange_to_be_looked_at(text: str) -> None:
    """Whatever a stranger wrote, looking for tools ends and raises nothing."""
    tool_functions(text)


def test_a_projects_tools_are_off_unless_the_daemon_says_otherwise(home: Path) -> None:
    """A repository's code is a stranger's; one's own tools are there in any case."""
    write(home / "repo/.otto/tools/a.py", "lint")
    write(home / ".config/otto/tools/b.py", "note")
    assert shelf(home, settings=DaemonSettings()).names == ("user__note", "user__*")
    assert shelf(home).names == ("project__lint", "user__note", "project__*", "user__*")
    assert shelf(home, cwd=".").names == ("user__note", "user__*")


def test_the_nearer_directory_wins(home: Path) -> None:
    """A name is looked for from the session's directory up to the repository's root."""
    write(home / "repo/.otto/tools/a.py", "lint", "fix")
    near = write(home / "repo/sub/.otto/tools/a.py", "lint")
    found = shelf(home)
    assert found.tools["project__lint"].file == str(near)
    assert [file.tools for file in found.choose(["project__*"])] == [("lint",), ("fix",)]


def test_only_chosen_files_travel(home: Path) -> None:
    """The files of the chosen tools, with the chosen functions, and no others."""
    write(home / "repo/.otto/tools/a.py", "lint", "fix")
    write(home / "repo/.otto/tools/b.py", "other")
    (file,) = shelf(home).choose(["shell", "project__fix", "github__*"])
    assert (file.origin, file.tools, Path(file.path).name) == ("project", ("fix",), "a.py")
    assert "def lint" in file.source


def test_the_same_name_twice_is_an_error_where_it_is_wanted(home: Path) -> None:
    """Two definitions in one directory: file and line of both are named, and who uses neither is not bothered."""
    write(home / "repo/.otto/tools/a.py", "lint", "fine")
    write(home / "repo/.otto/tools/b.py", "lint")
    found = shelf(home)
    with pytest.raises(ConfigError, match=r"b.py:5:1: tool 'lint' is also defined at .*a.py:5") as caught:
        found.choose(["project__lint"])
    assert caught.value.mend == "rename one of the two"
    assert [file.tools for file in found.choose(["project__fine"])] == [("fine",)]


def test_files_that_cannot_be_read(home: Path) -> None:
    """A link out of the project, bytes that are no text, and a huge file are errors of their own tools only."""
    write(home / "elsewhere.py", "out")
    (home / "repo/.otto/tools/out.py").symlink_to(home / "elsewhere.py")
    (home / "repo/.otto/tools/binary.py").write_bytes(b"\xff\xfe")
    (home / "repo/.otto/tools/huge.py").write_text("#" * (300 * 1024))
    (home / "repo/.otto/tools/.hidden.py").write_text(TOOL.format("hidden"))
    write(home / "repo/.otto/tools/ok.py", "ok")
    found = shelf(home)
    assert [file.tools for file in found.choose(["project__ok"])] == [("ok",)]
    for name, message in (("out", "leaves the project"), ("binary", "not UTF-8"), ("huge", "larger than")):
        with pytest.raises(ConfigError, match=message):
            found.choose([f"project__{name}"])
