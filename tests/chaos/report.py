"""What a run says in the end: Markdown for people, JSON for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from tests.chaos.findings import INVARIANTS
from tests.chaos.run import Run
from tests.chaos.storm import FAULTS

SHOWN_VIOLATIONS = 20


def summary(run: Run, *, command: str) -> dict[str, Any]:
    """Everything that is worth keeping."""
    findings = run.findings
    return {
        "seed": run.seed,
        "command": command,
        "sessions": run.sessions,
        "minutes": round(run.duration_s / 60, 2),
        "load": [round(each, 1) for each in os.getloadavg()],
        "cores": os.cpu_count(),
        "passed": not findings.violations and not shortfalls(run),
        "shortfalls": shortfalls(run),
        "violations": [each._asdict() for each in findings.violations],
        "violations_dropped": findings.dropped,
        "faults": {name: run.deeds.counts[name] for name in FAULTS},
        "faults_total": run.deeds.counts.total(),
        "checks": {name: findings.checks[name] for name in INVARIANTS},
        "events": run.witness.events,
        "records": run.witness.records,
        "sessions_seen": len(run.witness.stories),
        "incarnations": sum(len(s.starts) for s in run.witness.stories.values()),
        "causes": dict(sorted(run.causes.items())),
        "users": dict(run.operator.counts),
        "requests": dict(run.desk.counts),
        "refusals": dict(run.desk.refusals),
        "witness": {
            "cursor": run.witness.cursor,
            "subscriptions": run.witness.resumed,
            "gaps": run.witness.gaps,
            "offsets_missed": run.witness.missed,
        },
        "roots": run.host.lives,
        "adoptions": len(run.adoptions),
        "root_start_s": worst(run.host.ready_s),
        "root_down_s": worst(each.down_s for each in run.adoptions),
        "adoption_s": worst(each.heard_s for each in run.adoptions),
        "looks_at_processes": run.census.looks,
        "processes_seen": len(run.census.owners),
    }


def worst(values: Iterable[float]) -> float:
    """The largest, in milliseconds' precision; 0 for none."""
    return round(max(values, default=0.0), 3)


def shortfalls(run: Run) -> list[str]:
    """What the run was to do and did not: it proves nothing of that."""
    missing = [f"no {name} was injected" for name in FAULTS if not run.deeds.counts[name]]
    missing += [f"nothing was checked of: {name}" for name in run.findings.unchecked()]
    if not run.adoptions:
        missing.append("no adoption was seen")
    if not run.witness.events:
        missing.append("no event was seen")
    return missing


def markdown(data: dict[str, Any]) -> str:
    """The report for people."""
    verdict = "every invariant held" if data["passed"] else "FAILED"
    lines = [
        f"# Chaos: {verdict}",
        "",
        (
            f"Seed {data['seed']}, {data['minutes']:g} minutes, {data['sessions']} sessions at a time, "
            f"{data['cores']} cores, load {data['load'][0]}."
        ),
        "",
        (
            f"- {data['events']:,} events checked in {data['records']:,} records of {data['sessions_seen']} sessions "
            f"({data['incarnations']} incarnations)"
        ),
        f"- {data['faults_total']} faults injected, {data['roots']} lives of root",
        (
            f"- slowest of {data['adoptions']} adoptions: {data['adoption_s']:g} s from root's death until every "
            f"stream was heard again; slowest start of a root: {data['root_start_s']:g} s"
        ),
        f"- {data['processes_seen']} processes of sessions seen in {data['looks_at_processes']} looks",
        (
            f"- the witness subscribed {data['witness']['subscriptions']} times and was told of "
            f"{data['witness']['gaps']} gaps"
        ),
        "",
        *table("fault", data["faults"]),
        *table("invariant", {INVARIANTS[name]: count for name, count in data["checks"].items()}, "checks"),
        *table("end of an incarnation or session", data["causes"]),
        *table("what users did", data["users"]),
        *table("requests", data["requests"]),
        *(table("refused with", data["refusals"]) if data["refusals"] else []),
    ]
    if not data["passed"]:
        lines += ["## What did not hold", ""]
        lines += [f"- {each}" for each in data["shortfalls"]]
        for each in data["violations"][:SHOWN_VIOLATIONS]:
            lines.append(f"- {each['at_s']:.1f} s, {each['invariant']}, {each['session']}: {each['text']}")
        lines += ["", f"Again with: `{data['command']}`", ""]
    return "\n".join(lines)


def table(name: str, rows: dict[str, int], unit: str = "times") -> list[str]:
    """A table of counts, with an empty line behind it."""
    return [f"| {name} | {unit} |", "|---|---:|", *(f"| {what} | {count:,} |" for what, count in rows.items()), ""]


def to_json(data: dict[str, Any]) -> str:
    """The report for machines."""
    return json.dumps(data, indent=2) + "\n"
