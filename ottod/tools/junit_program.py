"""Summarises a JUnit XML report as one line of JSON: {passed, failed, errors, skipped, failing}.

A program of its own, run in confinement by `python -I -S -c`, because the report is whatever the tests made of it.
Argument: the report's name in $TMPDIR; it is deleted. Exit status: 0, or 1 without a readable report.
"""

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

MAX_REPORT_BYTES = 64 * 1024 * 1024
MAX_NAMES = 200


def main() -> int:
    """Reads, deletes, counts, prints."""
    report = Path(os.environ["TMPDIR"]) / sys.argv[1]
    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            return 1
        cases = list(ElementTree.fromstring(report.read_bytes()).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return 1
    finally:
        report.unlink(missing_ok=True)
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    failing = []
    for case in cases:
        outcome = outcome_of(case)
        counts[outcome] += 1
        if outcome in ("failed", "errors"):
            failing.append(name_of(case))
    print(json.dumps({**counts, "failing": list(dict.fromkeys(failing))[:MAX_NAMES]}))
    return 0


def outcome_of(case: ElementTree.Element) -> str:
    """A case that failed and then could not be torn down counts once, as failed."""
    for tag, outcome in (("failure", "failed"), ("error", "errors"), ("skipped", "skipped")):
        if case.find(tag) is not None:
            return outcome
    return "passed"


def name_of(case: ElementTree.Element) -> str:
    """The test as pytest takes it on its command line, where the report says enough."""
    file, classname, name = case.get("file", ""), case.get("classname", ""), case.get("name", "")
    if not file:
        return "::".join(part for part in (classname, name) if part)
    module = file.removesuffix(".py").replace("/", ".")
    inner = classname.removeprefix(module).strip(".").replace(".", "::")
    return "::".join(part for part in (file, inner, name) if part)


if __name__ == "__main__":
    sys.exit(main())
