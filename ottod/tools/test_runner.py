"""test_runner: finds a project's tests, runs them, and says which fail."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ottod.errors import UNDECODABLE, ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Files, ProgramResult, Tool, ToolContext, ToolOutput
from ottod.tools.keep_whole import MAX_KEPT_BYTES, Shown, keep_output
from ottod.tools.shell import QUIET, describe_ending, run_shell
from ottod.tools.test_reports import Counts, parse_report

MAX_CONFIG_BYTES = 1024 * 1024
SUMMARISER = Path(__file__).with_name("junit_program.py")
SUMMARY_TIMEOUT_S = 30.0
SUMMARY_BYTES = 256 * 1024
MAX_SHOWN_NAMES = 50

# Bytecode is the session's own: none is left in the project, and none of the project's is read from an earlier run.
BYTECODE = "bytecode"
PYTHON = f'PYTHONPYCACHEPREFIX="$TMPDIR/{BYTECODE}" exec "$@"'
CLEARER = Path(__file__).with_name("bytecode_program.py")
PYTEST = f'{PYTHON} -q --tb=short -p no:cacheprovider -o junit_family=xunit1 --junitxml="$TMPDIR/$0"'

Framework = Literal["auto", "pytest", "unittest", "npm", "go", "cargo", "make"]
COMMANDS = {
    "npm": ["npm", "test"],
    "go": ["go", "test", "-v"],
    "cargo": ["cargo", "test"],
    "make": ["make", "test"],
}


class TestArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tests to run, and how."""

    __test__ = False  # pytest takes a class of this name for a test.

    framework: Annotated[Framework, Meta(description="The test framework; auto looks at the project's files.")] = (
        "auto"
    )
    select: Annotated[
        tuple[str, ...], Meta(description="Only these: files, directories or test ids, as the framework takes them.")
    ] = ()
    command: Annotated[str, Meta(description="Run this command line instead.")] = ""
    cwd: Annotated[str, Meta(description="The project's directory, relative to the working directory.")] = "."
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Seconds after which the run is killed, whatever it prints."),
    ] = None


async def run(arguments: TestArguments, context: ToolContext) -> ToolOutput:
    """A line of counts, the names of failing tests, and the output of the run."""
    timeout_s = min(arguments.timeout_s or context.timeout_s, context.timeout_s)
    framework: str = arguments.framework if not arguments.command else "command"
    if framework == "auto":
        framework = await context.in_thread(detect, context.files, arguments.cwd)
    context.progress(f"running tests: {arguments.command or framework}")
    counts: Counts | None = None
    if framework == "pytest":
        framework, result, counts = await _run_python(arguments, context, timeout_s)
    elif framework == "unittest":
        python = await _interpreter(arguments.cwd, context, module="unittest")
        if python is None:
            raise ToolError("no Python interpreter in .venv or on the session's PATH", code="no_program")
        result = await _run_unittest(python, arguments, context, timeout_s)
    elif arguments.command:
        result = await run_shell(arguments.command, context, cwd=arguments.cwd, timeout_s=timeout_s)
    else:
        result = await _run(_command(framework, arguments.select), arguments, context, timeout_s)
    counts = counts or parse_report(framework, result.output)
    shown = await keep_output(result.output, context, name="test-output.txt", is_truncated=result.truncated)
    return _report(framework, result, counts, shown, timeout_s)


def detect(files: Files, cwd: str) -> str:
    """The framework of the project in `cwd`. Raises ToolError if there is no sign of any."""
    names = {entry.name for entry in files.list(cwd)}

    def has(name: str, *signs: str) -> bool:
        if name not in names:
            return False
        text = "\n" + files.read(f"{cwd}/{name}", max_bytes=MAX_CONFIG_BYTES).decode("utf-8", "replace")
        return any(sign in text for sign in signs)

    if names & {"pytest.ini", ".pytest.ini", "conftest.py"}:
        return "pytest"
    if has("pyproject.toml", "[tool.pytest") or has("setup.cfg", "[tool:pytest]") or has("tox.ini", "[pytest]"):
        return "pytest"
    if "go.mod" in names:
        return "go"
    if "Cargo.toml" in names:
        return "cargo"
    if "package.json" in names and _npm_script(files, cwd):
        return "npm"
    if _has_python_tests(files, cwd, names):
        return "pytest"
    if any(has(name, "\ntest:", "\ntest :") for name in ("GNUmakefile", "makefile", "Makefile")):
        return "make"
    raise ToolError(
        "no tests were recognised here; give `command`, or `cwd` if the project is in a directory below",
        code="no_tests",
    )


def _npm_script(files: Files, cwd: str) -> bool:
    try:
        package: Any = json.loads(files.read(f"{cwd}/package.json", max_bytes=MAX_CONFIG_BYTES))
        return "test" in package.get("scripts", {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def _has_python_tests(files: Files, cwd: str, names: set[str]) -> bool:
    for directory in (cwd, f"{cwd}/tests", f"{cwd}/test"):
        if directory != cwd and directory.rpartition("/")[2] not in names:
            continue
        try:
            entries = files.list(directory)
        except ToolError:
            continue
        if any(
            e.name.endswith("_test.py") or (e.name.startswith("test_") and e.name.endswith(".py")) for e in entries
        ):
            return True
    return False


def _command(framework: str, select: tuple[str, ...]) -> list[str]:
    chosen = list(select)
    if framework == "go":
        return [*COMMANDS["go"], *(chosen or ["./..."])]
    if framework == "npm" and chosen:
        return [*COMMANDS["npm"], "--", *chosen]
    return [*COMMANDS[framework], *chosen]


async def _run(argv: list[str], arguments: TestArguments, context: ToolContext, timeout_s: float) -> ProgramResult:
    return await context.programs.run(
        argv,
        timeout_s=timeout_s,
        max_output_bytes=MAX_KEPT_BYTES,
        cwd=arguments.cwd,
        env={**QUIET, **context.key_env},
        on_output=context.stream,
    )


async def _run_python(
    arguments: TestArguments, context: ToolContext, timeout_s: float
) -> tuple[str, ProgramResult, Counts | None]:
    """By pytest if an interpreter has it, by unittest if none has."""
    python = await _interpreter(arguments.cwd, context, module="pytest")
    if python is None:
        python = await _interpreter(arguments.cwd, context, module="unittest")
        if python is None or arguments.framework == "pytest":
            raise ToolError(
                "pytest is not installed for the project's .venv nor for python on the session's PATH",
                code="no_program",
                mend="install it there, or give `command`",
            )
        return "unittest", await _run_unittest(python, arguments, context, timeout_s), None
    report = f"junit-{secrets.token_hex(8)}.xml"
    argv = ["/bin/sh", "-c", PYTEST, report, python, "-m", "pytest", *arguments.select]
    result = await _run(argv, arguments, context, timeout_s)
    return "pytest", result, await _read_report(report, context)


async def _run_unittest(
    python: str, arguments: TestArguments, context: ToolContext, timeout_s: float
) -> ProgramResult:
    chosen = list(arguments.select) or ["discover"]
    return await _run(
        ["/bin/sh", "-c", PYTHON, "sh", python, "-m", "unittest", *chosen], arguments, context, timeout_s
    )


async def _interpreter(cwd: str, context: ToolContext, *, module: str) -> str | None:
    """The first Python that has the module: the project's own, then those on the session's PATH."""
    candidates = []
    for place in dict.fromkeys((cwd, ".")):
        for name in (".venv", "venv"):
            path = f"{place}/{name}/bin/python"
            try:
                await context.in_thread(context.files.stat, path)
            except ToolError:
                continue
            candidates.append(f"{context.files.root}/{context.files.relative(path)}")
    check = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    clear = await asyncio.to_thread(CLEARER.read_text)
    for python in (*candidates, "python", "python3"):
        try:
            result = await context.programs.run(
                [python, "-c", f"{clear}\n{check}", BYTECODE],
                timeout_s=SUMMARY_TIMEOUT_S,
                max_output_bytes=4096,
                cwd=cwd,
            )
        except ToolError as error:
            if error.code != "no_program":
                raise
            continue
        if result.ended == "exited" and result.exit_status == 0:
            return python
    return None


async def _read_report(report: str, context: ToolContext) -> Counts | None:
    source = await asyncio.to_thread(SUMMARISER.read_text)
    result = await context.programs.run(
        [sys.executable, "-I", "-S", "-c", source, report],
        timeout_s=SUMMARY_TIMEOUT_S,
        max_output_bytes=SUMMARY_BYTES,
    )
    if result.ended != "exited" or result.exit_status != 0:
        return None  # The run died before it wrote one; its output may still say something.
    try:
        return msgspec.json.decode(result.output, type=Counts)
    except UNDECODABLE:
        return None


def _report(
    framework: str, result: ProgramResult, counts: Counts | None, shown: Shown, timeout_s: float
) -> ToolOutput:
    ending = describe_ending(result, timeout_s)
    is_empty = counts is not None and counts.total == 0
    seconds = f"{result.duration_ms / 1000:.1f} s"
    lines = []
    if counts is None:
        lines.append(f"{framework}: no counts in the output ({seconds})")
    else:
        errors = plural(counts.errors, "error")
        outcome = f"{counts.passed} passed, {counts.failed} failed, {errors}, {counts.skipped} skipped"
        note = "; the output was cut, counts may be too low" if result.truncated and framework != "pytest" else ""
        lines.append(f"{framework}: {outcome} ({seconds}{note})")
        if is_empty:
            lines.append("no test was run, so nothing is shown to be right")
        if counts.failing:
            lines.append("failing:")
            lines += [f"  {name}" for name in counts.failing[:MAX_SHOWN_NAMES]]
            if len(counts.failing) > MAX_SHOWN_NAMES:
                lines.append(f"  … and {len(counts.failing) - MAX_SHOWN_NAMES} more")
    lines += ["", shown.text.rstrip("\n"), ending]
    known = counts or Counts()
    summary = {**msgspec.structs.asdict(known), "failing": list(known.failing)}
    return ToolOutput(
        text="\n".join(lines).rstrip("\n"),
        is_error=result.ended == "timeout" or result.exit_status != 0 or is_empty,
        truncated=shown.is_cut,
        exit_status=result.exit_status,
        data={"framework": framework, "counted": counts is not None, **summary, "duration_ms": result.duration_ms},
    )


def touches(arguments: TestArguments) -> Facts:
    """The command that is given, or the framework's own. Which that is the project's files may decide."""
    if arguments.command:
        return Facts(commands=(arguments.command,), cwd=arguments.cwd)
    known = {"pytest": ["pytest"], "unittest": ["python", "-m", "unittest"], **COMMANDS}
    program = known.get(arguments.framework, [""])
    return Facts(programs=((*program, *arguments.select),), cwd=arguments.cwd)


TEST_RUNNER = Tool(
    name="test_runner",
    description=(
        "Run the project's tests (pytest, unittest, npm, go, cargo, make test, or a command line) and report how "
        "many passed and which failed, with the output."
    ),
    arguments=TestArguments,
    permissions=frozenset({"read", "exec"}),
    idempotent=False,
    run=run,
    touches=touches,
    timeout_s=600.0,
)
