"""Writes the reference pages from the code: `python docs/generate.py`; with `--check`, fails if one is stale.

What a page says of a thing stands at the thing: in a struct's docstring, in the string below a field, in a tool's
schema, in a command's help. Only the keys of agent files are explained beside the pages, in `pages/agent_fields`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from pages.cli import cli_page  # noqa: E402
from pages.configuration import configuration_page  # noqa: E402
from pages.events import events_page  # noqa: E402
from pages.index import index_page  # noqa: E402
from pages.metrics import metrics_page  # noqa: E402
from pages.presets import presets_page  # noqa: E402
from pages.red_team import red_team_page  # noqa: E402
from pages.routing import routing_page  # noqa: E402
from pages.states import states_page  # noqa: E402
from pages.tools import tools_page  # noqa: E402
from pages.turns import turns_page  # noqa: E402
from pages.workflow_fields import workflow_fields_page  # noqa: E402

from ottoctl.exits import exit_page  # noqa: E402

PAGES: tuple[tuple[str, Callable[[], str]], ...] = (
    ("configuration", configuration_page),
    ("events", events_page),
    ("workflow-fields", workflow_fields_page),
    ("routing", routing_page),
    ("tools", tools_page),
    ("presets", presets_page),
    ("red-team", red_team_page),
    ("cli", cli_page),
    ("session-states", states_page),
    ("turns", turns_page),
    ("metrics", metrics_page),
    ("exit-statuses", exit_page),
    ("index", index_page),
)


def main(arguments: list[str]) -> int:
    """Writes the pages, or compares them. Returns the exit status."""
    is_check = arguments == ["--check"]
    if arguments and not is_check:
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    stale = 0
    for name, page in PAGES:
        file = ROOT / "docs" / "reference" / f"{name}.md"
        before = file.read_text() if file.exists() else ""
        try:
            text = page().rstrip() + "\n"
        except ModuleNotFoundError as error:
            # A page whose subject is not there is stale only if it pretends that it were.
            print(f"{name}: no module {error.name}", file=sys.stderr)
            stale += bool(before)
            continue
        if text == before:
            continue
        shown = file.relative_to(ROOT)
        if is_check:
            stale += 1
            sys.stdout.writelines(
                difflib.unified_diff(
                    before.splitlines(keepends=True), text.splitlines(keepends=True), str(shown), "from the code"
                )
            )
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            print(f"wrote {shown}")
    if stale:
        print(f"{stale} page(s) are stale: run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
