"""The attacks: each with a name, what it tries, and the layer that must block it.

Rows are explicit: a new attack is a row. `needs` is what the host must give for the layer to be there at all; without
it the case is skipped and says so.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from tests.redteam.arena import Act
from tests.redteam.decisions import ALLOWLIST, DENYLIST, OTHER_DECISIONS, PATHS, denied_path, denied_program, only_git
from tests.redteam.notes import NOTES
from tests.redteam.projects import PROJECTS
from tests.redteam.sandbox import FILE_TOOLS, SANDBOX

Needs = Literal["", "sandbox"]


class Case(NamedTuple):
    """One attack."""

    name: str
    attempt: str
    layer: str
    act: Act
    needs: Needs = ""


CASES: tuple[Case, ...] = (
    *(Case(f"denied-program-{n}", f"`rm` is denied: `{shown}`", "decision: rules", denied_program(line))
      for n, shown, line in DENYLIST),
    *(Case(f"allowed-program-{n}", f"only `git *` is allowed: `{shown}`", "decision: rules", only_git(line))
      for n, shown, line in ALLOWLIST),
    *(Case(f"denied-path-{n}", f"`secrets/` is denied: {what}", "decision: rules", denied_path(tool, arguments))
      for n, what, tool, arguments in PATHS),
    *(Case(n, what, layer, act) for n, what, layer, act in OTHER_DECISIONS),
    *(Case(n, what, "project files only narrow", act) for n, what, act in PROJECTS),
    *(Case(n, what, layer, act) for n, what, layer, act in NOTES),
    *(Case(n, what, layer, act) for n, what, layer, act in FILE_TOOLS),
    *(Case(n, what, layer, act, "sandbox") for n, what, layer, act in SANDBOX),
)  # fmt: skip
