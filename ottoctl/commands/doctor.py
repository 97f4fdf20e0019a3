"""`ottoctl doctor`."""

from __future__ import annotations

import os
from pathlib import Path

from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import FAILED, OK

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@command
def doctor(console: Console) -> int | None:
    """Check that everything sessions need is there, and say what would mend what is not

    Each layer of isolation is proved by trying to break it: past a memory cap and a limit on processes, out of the
    sandbox, onto the network. Fails if something does not work, or if a layer that the configuration requires is
    absent; what is merely missed is a warning. It takes some seconds.

    Example: `ottoctl doctor -o json`
    """
    from ottoctl.checks import examine
    from ottoctl.endpoint import resolve_endpoint
    from ottoctl.findings import Patient
    from ottoctl.rendering.ansi import one_line, paint
    from ottod.settings.paths import Paths

    patient = Patient(
        env=os.environ,
        paths=Paths.from_env(os.environ, uid=os.getuid()),
        endpoint=resolve_endpoint(console.endpoint),
        timeout_s=console.timeout_s,
        cwd=Path.cwd(),
    )
    findings = examine(patient)
    if console.output == "text":
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            mark, style = MARKS[finding.level]
            head = f"{paint(mark, style, color=console.color)} {finding.check.ljust(width)}"
            console.write(f"{head}  {one_line(finding.detail)}\n")
            if finding.mend:
                console.write(f"  {' ' * width}  mend: {one_line(finding.mend)}\n")
    else:
        console.records(list(findings))
    return FAILED if any(finding.level == "fail" for finding in findings) else OK
