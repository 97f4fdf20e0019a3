"""Permissions as text: an explanation, the audit trail, the permission that stands. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ottoctl.rendering.amounts import age
from ottoctl.rendering.ansi import one_line, paint, printable
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.policy import StandingGrant
from ottod.protocol.results import AuditEntry, PolicyExplanation, RuleWord

STYLES = {"runs": "green", "waits": "yellow", "fails": "red", "allow": "green", "ask": "yellow", "deny": "red"}
KIND_STYLES = {"denied": "red", "unavailable": "red", "asked": "yellow", "lost": "red"}
MAX_CLAIMS = 3


def explanation_page(found: PolicyExplanation, *, color: bool) -> str:
    """The outcome first, then the deciding rule, then everything else that spoke."""
    outcome = paint(found.outcome, STYLES[found.outcome], color=color)
    lines = [f"{one_line(found.agent)} {one_line(found.tool)}: it {outcome}" + _after(found.message, ": ")]
    if found.rule.rule:
        lines.append(f"  decided by   {_rule(found.rule)}")
        lines.append(f"  about        {one_line(found.claim)}")
        lines.append(f"  authority    {one_line(found.authority)}")
    if found.grant:
        lines.append(f"  permission stands {found.grant}")
    lines += [f"  not by       {_rule(other)}: {other.why}" for other in found.others]
    others = [
        r for r in found.rulings if (r.claim, r.authority, r.rule) != (found.claim, found.authority, found.rule)
    ]
    if others:
        lines.append("besides:")
        for ruling in others:
            effect = paint(ruling.effect, STYLES[ruling.effect], color=color)
            lines.append(
                f"  {effect} {one_line(ruling.claim)} by {_rule(ruling.rule)} [{one_line(ruling.authority)}]"
            )
            lines += [f"    not by {_rule(other)}: {other.why}" for other in ruling.others]
    if found.layers:
        lines.append("whatever the rules say:")
        lines += [f"  {word.layer} stops {one_line(word.claim)}: {word.why}" for word in found.layers]
    lines += [f"! {one_line(note)}" for note in found.notes]
    return "\n".join(lines) + "\n"


def _rule(word: RuleWord) -> str:
    where = f" at {one_line(word.source)}" if word.source else ""
    return f"`{one_line(word.rule)}`{where}" + (f" ({one_line(word.reason)})" if word.reason else "")


def _after(text: str, mark: str) -> str:
    return f"{mark}{one_line(text)}" if text else ""


def audit_table(entries: Sequence[AuditEntry], *, width: int, color: bool) -> str:
    """When, in which session, what became of which call, and by whose word."""
    rows = [
        [
            _clock(entry.at_ns),
            entry.session,
            printable(entry.agent),
            Cell(_kind(entry), KIND_STYLES.get(entry.kind, "red" if entry.decision == "denied" else "")),
            _call(entry.tool, entry.claims),
            _word(entry),
        ]
        for entry in entries
    ]
    return render_table(("TIME", "SESSION", "AGENT", "WHAT", "CALL", "BY"), rows, width=width, color=color)


def _kind(entry: AuditEntry) -> str:
    if entry.kind != "answered":
        return entry.kind
    return entry.decision + (f" ({entry.scope})" if entry.scope not in ("", "once") else "")


def _word(entry: AuditEntry) -> str:
    """Who or what decided, and why."""
    where = f" at {one_line(entry.source)}" if ":" in entry.source else ""
    who = one_line(entry.by or entry.grant or entry.rule) + (where if not entry.by else "")
    return ": ".join(part for part in (who, one_line(entry.reason)) if part)


def grants_table(found: Sequence[StandingGrant], *, now_ns: int, width: int, color: bool) -> str:
    """For whom what stands, since when, for how long, and by whose word."""
    rows = [
        [
            Cell(grant.grant, "bold"),
            printable(grant.agent),
            age(max(0, now_ns - grant.at_ns) / 1e9),
            "-" if grant.expires_at_ns is None else f"in {age(max(0, grant.expires_at_ns - now_ns) / 1e9)}",
            printable(grant.by),
            one_line(grant.cwd),
            _call(grant.tool, grant.claims),
        ]
        for grant in found
    ]
    head = ("ID", "AGENT", "AGE", "EXPIRES", "BY", "DIRECTORY", "CALL")
    return render_table(head, rows, width=width, color=color)


def _call(tool: str, claims: Sequence[str]) -> str:
    shown = ", ".join(one_line(claim) for claim in claims[:MAX_CLAIMS])
    more = f" and {len(claims) - MAX_CLAIMS} more" if len(claims) > MAX_CLAIMS else ""
    return f"{one_line(tool)} {shown}{more}".strip()


def _clock(at_ns: int) -> str:
    moment = datetime.fromtimestamp(at_ns / 1e9, tz=UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S") if at_ns else "-"
