from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError, ToolError
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import Tool
from ottod.tools.checkpoint import CHECKPOINT
from ottod.tools.fs_read import FS_READ
from ottod.tools.registry import BUILTIN_TOOLS, tools_by_name
from ottod.tools.test_reports import Counts, parse_report


@pytest.mark.parametrize("tool", BUILTIN_TOOLS, ids=lambda tool: tool.name)
def test_every_tool_is_fully_described(tool: Tool[msgspec.Struct]) -> None:
    """A tool's schema is an object without references, closed to unknown fields, each field with a description."""
    schema = tool.schema().parameters
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert "$ref" not in msgspec.json.encode(schema).decode()
    assert all(field.get("description") for field in schema["properties"].values())
    assert tool.description and tool.timeout_s > 0
    assert tool.touches is not None, "of a tool that says nothing rules expect anything"


def test_tools_are_found_by_name() -> None:
    """Known names give tools in their order, an unknown one an error with the nearest name."""
    assert list(tools_by_name(["shell", "fs_read"])) == ["shell", "fs_read"]
    with pytest.raises(ConfigError) as caught:
        tools_by_name(["fs_raed"])
    assert caught.value.message == "unknown tool 'fs_raed'" and caught.value.mend == "did you mean 'fs_read'?"
    assert len({tool.name for tool in BUILTIN_TOOLS}) == len(BUILTIN_TOOLS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `path`"),
        ("{", "not valid JSON"),
        ("[]", "Expected `object`"),
        ('{"path": 1}', "Expected `str`"),
        ('{"path": "f", "ofset": 3}', "did you mean `offset`?"),
        ('{"path": "f", "offset": 0}', ">= 1"),
        ("[" * 100_000, "fs_read"),
        ('{"path": "\ud800"}', "not valid text"),
    ],
)
def test_wrong_arguments_are_explained(text: str, message: str) -> None:
    """Whatever a model writes, it is told what is wrong and which fields there are."""
    with pytest.raises(ToolError) as caught:
        decode_arguments(FS_READ, text)
    assert message in str(caught.value) and caught.value.code == "bad_arguments"


def test_numbers_written_as_text_are_accepted() -> None:
    """Models quote numbers; that is not worth a turn."""
    assert decode_arguments(FS_READ, '{"path": "f", "offset": "3"}').offset == 3


@given(text=st.text())
def test_any_text_gives_arguments_or_an_error(text: str) -> None:
    """No text makes the decoder raise anything but ToolError."""
    for tool in BUILTIN_TOOLS:
        try:
            decode_arguments(tool, text)
        except ToolError:
            pass


@pytest.mark.parametrize(
    ("framework", "output", "expected"),
    [
        (
            "pytest",
            "FAILED tests/a.py::b - assert\n=== 1 failed, 2 passed, 1 skipped, 1 error in 0.12s ===",
            Counts(passed=2, failed=1, errors=1, skipped=1, failing=("tests/a.py::b",)),
        ),
        ("pytest", "no tests ran in 0.01s", None),
        (
            "unittest",
            "FAIL: test_b (m.T.test_b)\nRan 4 tests in 0.1s\n\nFAILED (failures=1, skipped=1)",
            Counts(passed=2, failed=1, skipped=1, failing=("test_b",)),
        ),
        ("unittest", "Ran 3 tests in 0.0s\n\nOK", Counts(passed=3)),
        (
            "go",
            "--- PASS: TestA (0.00s)\n--- FAIL: TestB (0.01s)\n--- SKIP: TestC (0.00s)\nFAIL\tx [build failed]",
            Counts(passed=1, failed=1, errors=1, skipped=1, failing=("TestB", "x")),
        ),
        (
            "cargo",
            (
                "test t::b ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured\n\n"
                "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured"
            ),
            Counts(passed=4, failed=1, skipped=2, failing=("t::b",)),
        ),
        (
            "npm",
            "  ● sum › adds\n\nTests:       1 failed, 2 skipped, 3 passed, 6 total",
            Counts(passed=3, failed=1, skipped=2, failing=("sum › adds",)),
        ),
        ("npm", " Tests  1 failed | 2 passed (3)", Counts(passed=2, failed=1)),
        ("npm", "\n  2 passing (4ms)\n  1 failing\n  1 pending\n", Counts(passed=2, failed=1, skipped=1)),
        ("npm", "not ok 2 - bad\n# pass 1\n# fail 1\n# skipped 0\n", Counts(passed=1, failed=1, failing=("bad",))),
        ("make", "Ran 1 test in 0.0s\n\nOK", Counts(passed=1)),
        ("make", "all good", None),
    ],
)
def test_reports_are_read(framework: str, output: str, expected: Counts | None) -> None:
    """The counts that each framework prints are found, colours or not."""
    assert parse_report(framework, output) == expected
    assert parse_report(framework, f"\x1b[31m{output}\x1b[0m") == expected


@given(output=st.text())
def test_any_output_can_be_read(output: str) -> None:
    """No output breaks the readers."""
    parse_report("make", output)


@pytest.mark.parametrize("name", ["2", "", "a b", "-x", "x" * 65, "é"])
def test_a_checkpoint_has_a_name_that_is_no_turn(name: str) -> None:
    """`fork --at 2` means a turn."""
    with pytest.raises(ToolError):
        decode_arguments(CHECKPOINT, msgspec.json.encode({"name": name}).decode())
    assert decode_arguments(CHECKPOINT, '{"name": "tests-green.2"}').name == "tests-green.2"
