"""The red team's page: every attack of the suite, and the layer that blocks it."""

from __future__ import annotations

from collections import Counter

from pages.common import NOTICE, cell
from tests.redteam.cases import CASES


def red_team_page() -> str:
    """One table, and how many attacks each layer blocks."""
    counts = Counter(case.layer for case in CASES)
    totals = "".join(f"| {layer} | {count} |\n" for layer, count in sorted(counts.items()))
    rows = "".join(
        f"| `{case.name}` | {cell(case.attempt)} | {case.layer}{' *' if case.needs else ''} |\n" for case in CASES
    )
    return f"""{NOTICE}
# The red team

Attacks that systems of this kind have fallen to. `tests/redteam` tries each against the real thing: the decision with
the real tools, file tools on a real directory, programs in the real sandbox; and asserts that the layer named here is
the one that blocked it. Most are blocked by more layers than one.

| layer | attacks |
|---|---|
{totals}
A star: the layer needs bubblewrap. Where that is missing the test is skipped, and says which layer is not there;
`ottoctl doctor` says what the machine gives.

| attack | what is tried | blocked by |
|---|---|---|
{rows}"""
