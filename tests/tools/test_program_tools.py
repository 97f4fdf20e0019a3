from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.errors import ToolError
from ottod.tools.grep import GREP
from ottod.tools.shell import SHELL
from ottod.tools.test_runner import BYTECODE, CLEARER, TEST_RUNNER
from tests.fakes.session_place import SessionPlace

CATASTROPHE = {"pattern": "^(a|a)*$", "path": "f"}


@pytest.fixture(params=["rg", "own"])
def searcher(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SessionPlace]:
    """A place where grep uses ripgrep, and one where it has none."""
    if request.param == "rg" and shutil.which("rg") is None:
        pytest.skip("ripgrep is not installed")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    if request.param == "own":
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("head", "sh", "bash"):
            (tools / name).symlink_to(str(shutil.which(name)))
        env["PATH"] = str(tools)
    place = SessionPlace(tmp_path, env=env)
    yield place
    place.close()
    assert place.leftovers() == []


def grep(place: SessionPlace, **arguments: object) -> list[str]:
    return place.call(GREP, json.dumps(arguments)).text.splitlines()


def test_grep_finds_lines(searcher: SessionPlace) -> None:
    """Either searcher answers alike: by regex or plain text, with globs, case, context and ignore files."""
    for name, text in {
        "a.py": "import os\nx = 1\ny = X\n",
        "src/b.py": "x = 2  # (x)\n",
        "src/c.txt": "x marks\n",
        "ignored.py": "x = 3\n",
        ".hidden/d.py": "x = 4\n",
        ".git/e.py": "x = 5\n",
    }.items():
        (searcher.project / name).parent.mkdir(parents=True, exist_ok=True)
        (searcher.project / name).write_text(text)
    (searcher.project / ".gitignore").write_text("ignored.py\n")
    (searcher.project / "binary").write_bytes(b"x = 6\n\0\0")
    (searcher.project / "link").symlink_to(searcher.outside)
    assert grep(searcher, pattern=r"^x = \d") == [".hidden/d.py:1:x = 4", "a.py:2:x = 1", "src/b.py:1:x = 2  # (x)"]
    assert grep(searcher, pattern="(x)", literal=True) == ["src/b.py:1:x = 2  # (x)"]
    assert grep(searcher, pattern="x", glob="*.txt") == ["src/c.txt:1:x marks"]
    assert grep(searcher, pattern="= x", ignore_case=True) == ["a.py:3:y = X"]
    assert grep(searcher, pattern="x = 2", path="src") == ["src/b.py:1:x = 2  # (x)"]
    assert grep(searcher, pattern="x = 1", path="a.py", context=1) == [
        "a.py-1-import os",
        "a.py:2:x = 1",
        "a.py-3-y = X",
    ]
    assert grep(searcher, pattern="the secret") == ["no matches"]
    assert grep(searcher, pattern="--version") == ["no matches"]


def test_grep_refuses_bad_questions(searcher: SessionPlace) -> None:
    """A broken pattern, a missing path and a path outside are errors that say what to do."""
    with pytest.raises(ToolError, match="bad pattern"):
        grep(searcher, pattern="(")
    with pytest.raises(ToolError, match="no such file"):
        grep(searcher, pattern="x", path="missing")
    with pytest.raises(ToolError, match="outside"):
        grep(searcher, pattern="x", path="../outside")


def test_grep_is_bounded(searcher: SessionPlace) -> None:
    """A pattern that matches everything gives the first lines and says that there are more."""
    (searcher.project / "many").write_text("match\n" * 50_000)
    output = searcher.call(GREP, '{"pattern": "match", "limit": 5}')
    assert output.truncated
    assert output.text.splitlines() == [
        *(f"many:{number}:match" for number in range(1, 6)),
        "[cut at 5 lines; narrow the search with path, glob or a longer pattern]",
    ]


def test_a_catastrophic_pattern_is_killed(tmp_path: Path) -> None:
    """A pattern that backtracks for ever ends at the timeout, with its process."""
    place = SessionPlace(tmp_path, env={"PATH": "/no/such/directory", "HOME": "/nowhere"})
    (place.project / "f").write_text("a" * 60 + "b\n")
    started_at = time.monotonic()
    output = place.call(GREP, json.dumps(CATASTROPHE), timeout_s=1.0)
    assert 1.0 <= time.monotonic() - started_at < 60.0
    assert output.is_error and "took too long" in output.text
    assert place.leftovers() == []
    place.close()


def test_shell_runs_a_command_line(place: SessionPlace) -> None:
    """Output and exit status come back; a failure is marked; a watcher sees the output as it comes."""
    output = place.call(SHELL, '{"command": "echo hello; cat missing; exit 4"}')
    assert output.text == "hello\ncat: missing: No such file or directory\n[exit status 4]"
    assert output.is_error and output.exit_status == 4
    assert "".join(place.streamed).startswith("hello\n")
    assert place.call(SHELL, '{"command": "true"}').text == "(no output)"
    (place.project / "sub").mkdir()
    assert place.call(SHELL, '{"command": "pwd", "cwd": "sub"}').text == str(place.project / "sub")


def test_shell_output_that_is_too_long_is_kept_whole(place: SessionPlace) -> None:
    """Both its ends are shown, the cut between them says where the whole is; a secret at the cut is in neither."""
    token = "ghp_" + "a1B2" * 9
    command = f"seq 1 190; echo {token}; seq 1 20000"
    output = place.call(SHELL, json.dumps({"command": command}), max_output_bytes=1400)
    lines = output.text.splitlines()
    assert output.truncated and lines[0] == "1" and lines[-1] == "20000"
    assert "ghp_" not in output.text and "a1B2a1B2" not in output.text
    assert "bytes not shown; the whole is the artifact art-0000000000 (shell-output.txt)" in output.text
    ((info, data),) = place.artifacts.kept
    assert info.kind == "file" and data.startswith(b"1\n2\n") and data.endswith(b"\n20000\n")
    assert b"[redacted:github-token]" in data and b"ghp_" not in data


def test_shell_output_beyond_all_bounds_says_so(place: SessionPlace) -> None:
    """The artifact has its beginning and its end, and the cut does not call that the whole."""
    output = place.call(SHELL, '{"command": "yes | head -c 5000000; echo the end"}', max_output_bytes=1000)
    assert output.truncated and output.text.endswith("the end")
    assert "; its first and last 2097152 bytes are the artifact art-" in output.text
    ((_, data),) = place.artifacts.kept
    assert 4 * 1024 * 1024 <= len(data) < 4 * 1024 * 1024 + 100 and data.endswith(b"the end\n")


def test_shell_timeouts_and_leftovers_are_said(place: SessionPlace) -> None:
    """A command that runs too long, and background processes that were killed, are named in the result."""
    # A busy machine takes its time to start a program: it is given more until it has said enough.
    for timeout_s in (0.5, 2, 8, 25):
        arguments = json.dumps({"command": "while :; do echo x; done", "timeout_s": timeout_s})
        output = place.call(SHELL, arguments, max_output_bytes=2000)
        if output.truncated:
            break
    assert (
        output.is_error and output.truncated and output.text.endswith(f"[killed: it ran longer than {timeout_s} s]")
    )
    assert len(output.text.encode()) < 2300
    output = place.call(SHELL, '{"command": "setsid sleep 60 & echo started"}')
    assert output.text == "started\n[1 background process killed: nothing outlives a call]"
    assert not output.is_error


def test_an_agents_timeout_cannot_be_raised_by_a_call(place: SessionPlace) -> None:
    """The limit of the session holds, whatever the model asks for."""
    started_at = time.monotonic()
    output = place.call(SHELL, '{"command": "sleep 60", "timeout_s": 50}', timeout_s=0.4)
    assert "longer than 0.4 s" in output.text
    assert time.monotonic() - started_at < 40.0


def test_shell_commands_with_tricks_in_them_stay_inside(place: SessionPlace) -> None:
    """Wrappers, line continuations and builtins reach no file outside."""
    secret = place.outside / "secret.txt"
    for command in (
        f"c\\\nat {secret}",
        f"env -S 'cat {secret}'",
        f"exec 3< {secret}; cat <&3",
        f"read line < {secret}; echo $line",
        f". {secret}",
        f"cd {place.outside}; cat secret.txt",
        f"echo x | tee {secret}",
    ):
        place.call(SHELL, json.dumps({"command": command}))
        output = place.call(SHELL, json.dumps({"command": command}))
        assert "the secret" not in output.text, command
    assert secret.read_text() == "the secret\n"


def python_project(place: SessionPlace, body: str) -> None:
    # A virtual environment of the project's own, with the packages of the one that runs these tests.
    (place.project / ".venv/bin").mkdir(parents=True)
    (place.project / ".venv/bin/python").symlink_to(os.path.realpath(sys.executable))
    (place.project / ".venv/lib").symlink_to(Path(sys.prefix) / "lib")
    home = Path(os.path.realpath(sys.executable)).parent
    (place.project / ".venv/pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    (place.project / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (place.project / "tests").mkdir()
    (place.project / "tests/test_it.py").write_text(body)


PYTEST_BODY = """
import pytest

class TestGroup:
    def test_in_class(self): assert 1 == 2
def test_passes(): print("fine")
@pytest.mark.parametrize("n", [1, 2])
def test_many(n): assert n == 1
@pytest.mark.skip
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError("no fixture")
def test_errs(broken): pass
"""


def test_pytest_is_run_and_counted(place: SessionPlace) -> None:
    """The project's own interpreter runs pytest; counts and failing tests come from its report; nothing is left."""
    python_project(place, PYTEST_BODY)
    output = place.call(TEST_RUNNER, "{}", timeout_s=60.0)
    assert output.data["framework"] == "pytest"
    counts = {name: output.data[name] for name in ("passed", "failed", "errors", "skipped")}
    assert counts == {"passed": 2, "failed": 2, "errors": 1, "skipped": 1}, output.text
    assert output.data["failing"] == [
        "tests/test_it.py::TestGroup::test_in_class",
        "tests/test_it.py::test_many[2]",
        "tests/test_it.py::test_errs",
    ]
    assert output.is_error and output.exit_status == 1
    assert output.text.startswith("pytest: 2 passed, 2 failed, 1 error, 1 skipped")
    chosen = place.call(TEST_RUNNER, '{"select": ["tests/test_it.py::test_passes"]}', timeout_s=60.0)
    assert chosen.data["passed"] == 1 and not chosen.is_error
    assert not list(place.project.rglob("__pycache__")) and not (place.project / ".pytest_cache").exists()
    assert not list((place.project.parent / "tmp").glob("junit-*"))


def test_an_edit_within_the_same_second_is_tested(place: SessionPlace) -> None:
    """A change that keeps a module's size and time stamp is seen by the next run."""
    python_project(place, "import code_under_test\ndef test_it(): assert code_under_test.f() == 2\n")
    (place.project / "conftest.py").write_text("import sys; sys.path.insert(0, '.')\n")
    module = place.project / "code_under_test.py"
    for value, passed in ((1, 0), (2, 1)):
        module.write_text(f"def f(): return {value}\n")
        os.utime(module, (1_700_000_000, 1_700_000_000))
        assert place.call(TEST_RUNNER, "{}", timeout_s=60.0).data["passed"] == passed


def clear_bytecode(base: Path) -> set[str]:
    """What the clearer leaves of `base/bytecode`, by its place below `base`."""
    argv = [sys.executable, "-I", "-S", "-c", CLEARER.read_text(), BYTECODE]
    subprocess.run(argv, env={"TMPDIR": str(base)}, check=True, timeout=30)
    top = base / "bytecode" / base.relative_to("/")
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_symlink() or not path.is_dir()}


def bytecode(base: Path, name: str, *, compiled_s: float, source_s: int = 1) -> Path:
    """Source that says it is so old, and what it was compiled to then."""
    source = base / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("code")
    os.utime(source, (source_s, source_s))
    file = (base / "bytecode" / source.relative_to("/")).with_suffix(".cpython-312.pyc")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"MAGC" + bytes(4) + source_s.to_bytes(4, "little") + bytes(4) + b"code")
    os.utime(file, (compiled_s, compiled_s))
    return file


def test_bytecode_is_kept_where_it_can_stand_for_nothing_else(tmp_path: Path) -> None:
    """Of installed packages, compiled well after their files came to be there, however old those say that they are;
    never the project's, nor what is cut, or has lost its source."""
    now_s = time.time()
    packages = "venv/lib/python3.12/site-packages"
    bytecode(tmp_path, f"{packages}/a/old.py", compiled_s=now_s + 60)
    bytecode(tmp_path, "usr/lib/python3/dist-packages/b.py", compiled_s=now_s + 60)
    bytecode(tmp_path, f"{packages}/a/fresh.py", compiled_s=now_s)
    bytecode(tmp_path, f"{packages}/a/replaced.py", compiled_s=now_s - 3600)
    bytecode(tmp_path, "work/src/code.py", compiled_s=now_s + 60)
    bytecode(tmp_path, f"{packages}/short.py", compiled_s=now_s + 60).write_bytes(b"MAGC")
    bytecode(tmp_path, f"{packages}/lost.py", compiled_s=now_s + 60)
    (tmp_path / packages / "lost.py").unlink()
    left = {f"{packages}/a/old.cpython-312.pyc", "usr/lib/python3/dist-packages/b.cpython-312.pyc"}
    assert clear_bytecode(tmp_path) == left


def test_bytecode_of_a_directory_that_was_put_in_anothers_place_goes(tmp_path: Path) -> None:
    """Its files have not changed since; the directory has."""
    path = bytecode(tmp_path, "venv/lib/python3.12/site-packages/a/old.py", compiled_s=time.time() + 60)
    elsewhere = tmp_path / "venv2"
    (tmp_path / "venv").rename(elsewhere)
    (tmp_path / "venv").symlink_to(elsewhere)
    assert clear_bytecode(tmp_path)
    changed_s = os.lstat(tmp_path / "venv").st_ctime
    os.utime(path, (changed_s, changed_s))
    assert clear_bytecode(tmp_path) == set()


def test_what_is_no_plain_file_among_bytecode_goes(tmp_path: Path) -> None:
    """A pipe that nobody writes to keeps nobody waiting, and no link leads elsewhere."""
    file = bytecode(tmp_path, "venv/lib/python3.12/site-packages/a/old.py", compiled_s=time.time() + 60)
    os.mkfifo(file.with_name("pipe.cpython-312.pyc"))
    file.with_name("link.cpython-312.pyc").symlink_to(file)
    file.with_name("directory").symlink_to(tmp_path)
    assert clear_bytecode(tmp_path) == {"venv/lib/python3.12/site-packages/a/old.cpython-312.pyc"}
    (tmp_path / "bytecode").rename(tmp_path / "other")
    (tmp_path / "bytecode").symlink_to(tmp_path / "other")
    clear_bytecode(tmp_path)
    assert len(list((tmp_path / "other").rglob("*.pyc"))) == 1


def test_a_hanging_test_run_is_killed(place: SessionPlace) -> None:
    """A test that never ends, printing all the time, is killed, and said to have been."""
    python_project(
        place, "import time\ndef test_hangs():\n    while True: print('x', flush=True); time.sleep(0.01)\n"
    )
    output = place.call(TEST_RUNNER, '{"timeout_s": 2}', timeout_s=60.0)
    assert output.is_error and "[killed: it ran longer than 2 s]" in output.text
    assert output.data["counted"] is False


def test_a_crashing_test_run_is_a_result(place: SessionPlace) -> None:
    """A run that dies by a signal before it can report is told as that."""
    python_project(place, "import os\ndef test_dies(): os.kill(os.getpid(), 11)\n")
    output = place.call(TEST_RUNNER, "{}", timeout_s=60.0)
    assert output.is_error and output.exit_status == -11 and "killed by signal 11" in output.text


def test_unittest_is_used_without_pytest(place: SessionPlace) -> None:
    """Where no interpreter has pytest, unittest runs the tests that it knows."""
    (place.project / "test_it.py").write_text(
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test_a(self): pass\n    def test_b(self): self.fail()\n"
        "    @unittest.skip('x')\n    def test_c(self): pass\n"
    )
    output = place.call(TEST_RUNNER, '{"framework": "unittest"}', timeout_s=60.0)
    counts = {name: output.data[name] for name in ("passed", "failed", "errors", "skipped")}
    assert counts == {"passed": 1, "failed": 1, "errors": 0, "skipped": 1}, output.text
    assert output.data["failing"] == ["test_b"]


def test_a_run_of_no_tests_is_no_success(place: SessionPlace) -> None:
    """A run that finds none shows nothing: up to Python 3.11 unittest calls that OK."""
    (place.project / "notes.py").write_text("")
    output = place.call(TEST_RUNNER, '{"framework": "unittest"}', timeout_s=60.0)
    assert output.is_error and "no test was run" in output.text and output.data["passed"] == 0
    output = place.call(TEST_RUNNER, json.dumps({"command": "echo 'Ran 0 tests in 0.000s'; echo; echo OK"}))
    assert output.is_error and output.exit_status == 0, output.text


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_and_command_lines_are_run(place: SessionPlace) -> None:
    """A Makefile's test target is recognised, and a given command line is run as it is."""
    (place.project / "Makefile").write_text("all:\n\ntest:\n\t@echo '3 passed in 0.1s'\n")
    output = place.call(TEST_RUNNER, "{}")
    assert output.data["framework"] == "make" and output.data["passed"] == 3 and not output.is_error
    output = place.call(TEST_RUNNER, '{"command": "echo custom; exit 2"}')
    assert output.exit_status == 2 and "custom" in output.text and output.data["counted"] is False


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_is_run_in_confinement(place: SessionPlace) -> None:
    """A package's test script runs, with node's own test runner, and is counted."""
    (place.project / "package.json").write_text('{"name": "x", "scripts": {"test": "node --test"}}')
    (place.project / "x.test.js").write_text(
        "const test = require('node:test');\ntest('good', () => {});\n"
        "test('bad', () => { throw new Error('no'); });\n"
    )
    output = place.call(TEST_RUNNER, "{}", timeout_s=60.0)
    assert output.data["framework"] == "npm"
    assert (output.data["passed"], output.data["failed"]) == (1, 1), output.text
    assert "bad" in output.data["failing"]


def test_a_project_without_tests_is_said_to_have_none(place: SessionPlace) -> None:
    """Nothing to run is an error with a way out, not an empty success."""
    with pytest.raises(ToolError, match="no tests were recognised"):
        place.call(TEST_RUNNER, "{}")
