"""A copy of the demonstration's project for one workflow, under git, and what can be seen of it from outside.

Whatever is said of tests here was run here, by us: no agent's report is taken for it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import msgspec

from ottoctl.environment import shared_environment
from ottod.errors import OttoError

BROKEN = ("bug-fix-loop",)
"""The workflows that begin with the project's bugs; for all others they have been mended."""
KEPT_OUT = "__pycache__/\n.pytest_cache/\n"
GIT = ("git", "-c", "user.name=Otto", "-c", "user.email=otto@localhost", "-c", "core.hooksPath=/dev/null")
NOT_AGENTS = ":(exclude).otto"

NO_PLUGINS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
"""The project's tests need no plug-in; whoever develops Otto has some, which take longer to load than the tests."""

_COUNT = re.compile(r"(\d+) (passed|failed|error)")


class TestRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of pytest said. `failed` counts errors too."""

    passed: int = 0
    failed: int = 0
    said: str = ""
    output: str = ""

    @property
    def is_green(self) -> bool:
        return self.passed > 0 and not self.failed


class Stage:
    """One copy. `prepare` makes it."""

    def __init__(self, workflow: str, directory: Path) -> None:
        self.workflow = workflow
        self.directory = directory

    def prepare(self) -> None:
        """The project in a repository of its own, as the workflow finds it. Raises OttoError without git."""
        with as_file(files("ottoctl") / "demo") as source:
            shutil.copytree(source / "project", self.directory, ignore=shutil.ignore_patterns("__pycache__"))
            if self.workflow not in BROKEN:
                shutil.copytree(source / "mended", self.directory, dirs_exist_ok=True)
        (self.directory / ".gitignore").write_text(KEPT_OUT)
        self._git("init", "--quiet", "--initial-branch=main")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message=Tally as it is")

    def scripts(self) -> str:
        """The model that plays a script for each agent of the workflow."""
        return f"scripted:.otto/scripts/{self.workflow}"

    def tests(self) -> TestRun:
        """The tests as they are now."""
        return run_tests(self.directory)

    def diff(self) -> str:
        """All that has changed, but for what Otto keeps in `.otto`."""
        self._git("add", "--all", "--intent-to-add", "--", ".")
        return self._git("diff", "HEAD", "--", ".", NOT_AGENTS)

    def tests_without(self, diffs: Sequence[bytes], place: Path) -> TestRun:
        """The tests of the end, on the code as it was before these changes to it, the newest last."""
        shutil.copytree(self.directory, place, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        for diff in reversed(diffs):
            done = subprocess.run(
                [*GIT, "apply", "--reverse", "--exclude=tests/*", "-"],
                cwd=place,
                input=diff,
                capture_output=True,
                check=False,
                # Not the repository of whoever calls us, nor any above.
                env={**os.environ, "GIT_CEILING_DIRECTORIES": str(place.parent)},
            )
            if done.returncode:
                return TestRun(
                    said=f"its change cannot be taken back: {done.stderr.decode(errors='replace').strip()}"
                )
        return run_tests(place)

    def _git(self, *arguments: str) -> str:
        try:
            done = subprocess.run([*GIT, *arguments], cwd=self.directory, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise OttoError("the demonstration uses a real git, and there is none", mend="install git") from error
        if done.returncode:
            raise OttoError(f"git {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout


def run_tests(directory: Path) -> TestRun:
    """A real pytest in a directory. Agents have changed what it runs, so it gets what their programs get."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={**shared_environment(os.environ), "PYTHONDONTWRITEBYTECODE": "1", NO_PLUGINS: "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    said = lines[-1].strip("= ") if lines else done.stderr.strip()[-200:]
    counts = {word: int(number) for number, word in _COUNT.findall(said)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return TestRun(passed=counts.get("passed", 0), failed=failed, said=said, output=done.stdout)
