"""Processes of Otto are started so that no file in a working directory becomes a part of them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
THE_ONE_PLACE = ROOT / "ottod/settings/interpreter.py"
FILES = sorted(
    {file for package in ("ottod", "ottoctl") for file in (ROOT / package).rglob("*.py")} - {THE_ONE_PLACE}
)
KEEPING_OUT = (["'-I'"], ["'-P'"])
"""Options that keep the working directory off `sys.path`."""
MEANT = [(file, ["'-m'", "'pytest'"]) for file in ("ottoctl/commands/demo.py", "ottoctl/demo/stage.py")]
"""Here pytest runs on the demonstration's own project, which it must find."""


def command_lines(file: Path) -> list[tuple[str, int, list[str]]]:
    """What stands behind this interpreter in lists and tuples, as it is written, with its place."""
    found = []
    text = file.read_text()
    for node in ast.walk(ast.parse(text)) if "sys.executable" in text else ():
        if isinstance(node, ast.List | ast.Tuple):
            words = [ast.unparse(each) for each in node.elts]
            if "sys.executable" in words:
                found.append((str(file.relative_to(ROOT)), node.lineno, words[words.index("sys.executable") + 1 :]))
    return found


def test_no_interpreter_looks_where_it_is_started() -> None:
    """Whoever starts this installation's Python says -P or -I first, or leaves it to `ottod.settings.interpreter`."""
    found = [line for file in FILES for line in command_lines(file)]
    assert {file for file, _, _ in found} >= {file for file, _ in MEANT}
    wrong = [
        f"{file}:{line}"
        for file, line, words in found
        if words[:1] not in KEEPING_OUT and (file, words[:2]) not in MEANT
    ]
    assert not wrong
