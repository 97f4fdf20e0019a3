"""The report of the demonstration of teams: what each workflow did and left, and what was found to be so. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ottoctl.demo.files import file_name
from ottoctl.demo.findings import Claim, Findings
from ottoctl.rendering import amounts
from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.decisions import decision_tree
from ottoctl.rendering.steps import steps_table

SHADES = {"+": "green", "-": "red", "@": "cyan"}
NAME_CHARS = 24


def report(found: Findings, claims: Sequence[Claim], *, is_only: bool, width: int, color: bool) -> str:
    """One workflow's. Of several, the diffs are left to those who want to see them."""

    def head(text: str) -> str:
        return "\n" + paint(text, "bold", color=color)

    seconds = amounts.duration(found.result.duration_s)
    cost = amounts.usd(found.usd_micros)
    lines = [
        "",
        paint(f"━━ {found.workflow} · {one_line(found.task)} · {seconds} · {cost}", "bold cyan", color=color),
    ]
    lines += [head("Steps"), steps_table(found.rows, width=width, color=color).rstrip()]
    lines += [head("Verdicts")]
    for number, review in enumerate(found.reviews, 1):
        lines += _verdict(number, review, color)
    lines += [head("Tests, run by the demonstration itself"), f"  before       {found.before.said}"]
    if found.first_try is not None:
        lines.append(f"  first try    {found.first_try.said}   (the tests of the end, on what was reviewed first)")
    lines.append(f"  now          {paint(found.after.said, 'green' if found.after.is_green else 'red', color=color)}")
    lines += [head("Artifacts, in the index and on the disk"), *_artifacts(found)]
    if is_only:
        lines += [head("The change"), *_diff(found.diff, color)]
    lines += [head("Decisions"), decision_tree(found.nodes, found.edges, color=color).rstrip()]
    lines += [head("Found to be so"), *(_claim(claim, color) for claim in claims)]
    return "\n".join(lines) + "\n"


def _verdict(number: int, review: dict[str, Any], color: bool) -> list[str]:
    is_good = review["verdict"] == "approved"
    verdict = paint("APPROVED" if is_good else "NEEDS REVISION", "green" if is_good else "yellow", color=color)
    lines = [f"  {number}. {verdict} · {one_line(review.get('summary', ''))}"]
    for level, word in (("blockers", "blocker"), ("high", "high"), ("medium", "medium")):
        for each in review[level]:
            told = each if isinstance(each, str) else f"{each.get('where', '')} {each['problem']}".strip()
            lines.append(f"     {word}: {one_line(told)}")
    return lines


def _artifacts(found: Findings) -> list[str]:
    versions = {artifact.name: artifact for artifact in found.artifacts}
    lines = []
    for artifact in versions.values():
        place = found.files.get(artifact.artifact)
        of = f"version {artifact.version}" if artifact.version > 1 else ""
        name = file_name(artifact)
        about = f"{amounts.size(artifact.size_bytes):>9}  {artifact.digest[:12]}  {of}"
        lines.append(f"  {name:<{NAME_CHARS}} {about}".rstrip() if place else f"  {name:<{NAME_CHARS}} is missing")
    if found.files:
        lines.append(f"  in {next(iter(found.files.values())).parent}")
    return lines


def _diff(diff: str, color: bool) -> list[str]:
    lines = []
    for line in diff.splitlines():
        shade = SHADES.get(line[:1], "")
        lines.append(paint(printable(line), shade, color=color) if shade else printable(line))
    return lines or ["nothing was changed"]


def _claim(claim: Claim, color: bool) -> str:
    mark = paint("✓", "green", color=color) if claim.holds else paint("✗", "red", color=color)
    return f"  {mark} {one_line(claim.text)}"
