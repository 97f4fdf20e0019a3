"""How another process of this installation is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAY = "import json, sys; from ottod.settings.interpreter import program; print(json.dumps(program(*sys.argv[1:])))"


def said(option: str, *words: str) -> list[str]:
    """The command line that an interpreter started with this option gives."""
    argv = [sys.executable, option, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {SAY}", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("option", ["-P", "-I"])
def test_it_is_this_interpreter_as_it_is(option: str) -> None:
    """By its whole path, without the working directory; one that is isolated begets isolated ones."""
    assert said(option, "ottod", "run", "x y") == [sys.executable, option, "-m", "ottod", "run", "x y"]


@pytest.mark.parametrize(("option", "is_found"), [("-P", True), ("-I", False)])
def test_modules_are_looked_for(tmp_path: Path, option: str, is_found: bool) -> None:
    """Where PYTHONPATH says, unless the interpreter is isolated, and never where the process is started."""
    named, here = tmp_path / "named", tmp_path / "here"
    for place in (named, here):
        place.mkdir()
        (place / "planted.py").write_text("print(__file__)")
    command, env = said(option, "planted"), {**os.environ, "PYTHONPATH": str(named)}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip() == str(named / "planted.py")) is is_found, done
    assert str(here) not in done.stdout
