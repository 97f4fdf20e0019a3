"""What the output of a test run says: how many passed and failed, and which. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

MAX_NAMES = 200


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a test run. `failing` names at most MAX_NAMES tests."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    failing: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All tests that were looked at."""
        return self.passed + self.failed + self.errors + self.skipped


def parse_report(framework: str, output: str) -> Counts | None:
    """The counts in the output of a framework's run; None if it states none. `make` may be any of them."""
    output = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output)
    parsers = [PARSERS[framework]] if framework in PARSERS else list(PARSERS.values())
    return next((counts for parse in parsers if (counts := parse(output)) is not None), None)


def _pytest(output: str) -> Counts | None:
    summary = r"^=* ?((?:\d+ \w+,? ?)+) in [\d.]+s"
    lines = re.findall(summary, output, re.MULTILINE)
    words = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", lines[-1])} if lines else {}
    if not words.keys() & {"passed", "failed", "error", "errors", "skipped", "xfailed", "xpassed"}:
        return None
    return Counts(
        passed=words.get("passed", 0) + words.get("xpassed", 0),
        failed=words.get("failed", 0),
        errors=words.get("error", 0) + words.get("errors", 0),
        skipped=words.get("skipped", 0) + words.get("xfailed", 0),
        failing=_names(re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)),
    )


def _unittest(output: str) -> Counts | None:
    ran = re.findall(r"^Ran (\d+) tests? in", output, re.MULTILINE)
    if not ran:
        return None
    verdict = re.findall(r"^(?:OK|FAILED|NO TESTS RAN)(?: \((.*)\))?$", output, re.MULTILINE)
    words = {word: int(number) for word, number in re.findall(r"([a-z ]+)=(\d+)", verdict[-1])} if verdict else {}
    words = {word.strip(): number for word, number in words.items()}
    failed = words.get("failures", 0) + words.get("unexpected successes", 0)
    errors, skipped = words.get("errors", 0), words.get("skipped", 0) + words.get("expected failures", 0)
    return Counts(
        passed=max(0, int(ran[-1]) - failed - errors - skipped),
        failed=failed,
        errors=errors,
        skipped=skipped,
        failing=_names(re.findall(r"^(?:FAIL|ERROR): (.+?)(?: \(|$)", output, re.MULTILINE)),
    )


def _go(output: str) -> Counts | None:
    cases = re.findall(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", output, re.MULTILINE)
    broken = re.findall(r"^FAIL\s+(\S+) \[(?:build|setup) failed\]", output, re.MULTILINE)
    if not cases and not broken:
        return None
    return Counts(
        passed=sum(outcome == "PASS" for outcome, _ in cases),
        failed=sum(outcome == "FAIL" for outcome, _ in cases),
        errors=len(broken),
        skipped=sum(outcome == "SKIP" for outcome, _ in cases),
        failing=_names([*(name for outcome, name in cases if outcome == "FAIL"), *broken]),
    )


def _cargo(output: str) -> Counts | None:
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", output, re.MULTILINE)
    broken = len(re.findall(r"^error: could not compile", output, re.MULTILINE))
    if not results and not broken:
        return None
    return Counts(
        passed=sum(int(each[0]) for each in results),
        failed=sum(int(each[1]) for each in results),
        errors=broken,
        skipped=sum(int(each[2]) for each in results),
        failing=_names(re.findall(r"^test (.+) \.\.\. FAILED$", output, re.MULTILINE)),
    )


def _npm(output: str) -> Counts | None:
    """Jest, Vitest, Mocha, and TAP as node:test prints it."""
    failing = _names(
        re.findall(
            r"^\s*(?:[\u2715\u2716\u00d7]|not ok \d+ -|●|FAIL) +(.+?)(?: \([\d.]+ ?m?s\))?$", output, re.MULTILINE
        )
    )
    summary = re.findall(r"^\s*Tests:?\s+(.*\d+ (?:passed|failed|skipped|todo).*)$", output, re.MULTILINE)
    if summary:
        words = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", summary[-1])}
        skipped = words.get("skipped", 0) + words.get("todo", 0)
        return Counts(passed=words.get("passed", 0), failed=words.get("failed", 0), skipped=skipped, failing=failing)
    tap = {
        word: int(number)
        for word, number in re.findall(r"^[#\u2139] (pass|fail|skipped) (\d+)$", output, re.MULTILINE)
    }
    mocha = {
        word: int(number) for number, word in re.findall(r"^\s+(\d+) (passing|failing|pending)", output, re.MULTILINE)
    }
    if not tap and not mocha:
        return None
    return Counts(
        passed=tap.get("pass", 0) + mocha.get("passing", 0),
        failed=tap.get("fail", 0) + mocha.get("failing", 0),
        skipped=tap.get("skipped", 0) + mocha.get("pending", 0),
        failing=failing,
    )


PARSERS: dict[str, Callable[[str], Counts | None]] = {
    "pytest": _pytest,
    "unittest": _unittest,
    "go": _go,
    "cargo": _cargo,
    "npm": _npm,
}


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in names))[:MAX_NAMES]
