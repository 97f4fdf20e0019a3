"""What cannot be obeyed is answered with what to type instead."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from ottoctl.application import asked_command, build_app
from ottoctl.misuse import CommandLineError, say_misuse

SAID = [
    ("logs --tail abc x", "--tail: 'abc' is not a whole number", "of 0 or more, as in `ottoctl logs --tail 2 x`"),
    ("logs --tail=abc x", "--tail: 'abc' is not a whole number", "as in `ottoctl logs --tail=2 x`"),
    ("rollback x --turns 0", "--turns: 0 is not possible", "of 1 or more, as in `ottoctl rollback x --turns 2`"),
    ("logs -nabc x", "--tail: 'abc' is not a whole number", "as in `ottoctl logs -n2 x`"),
    ("logs -fn abc x", "--tail: 'abc' is not a whole number", "as in `ottoctl logs -fn 2 x`"),
    ("logs -fnabc abc", "--tail: 'abc' is not a whole number", "as in `ottoctl logs -fn2 abc`"),
    ("rollback 0 --turns 0", "--turns: 0 is not possible", "as in `ottoctl rollback 0 --turns 2`"),
    ("rollback x=0 --turns=0", "--turns: 0 is not possible", "as in `ottoctl rollback x=0 --turns=2`"),
    ("logs --tail 3 --tail abc x", "--tail: 'abc' is not a whole number", "as in `ottoctl logs --tail 3 --tail 2 x`"),
    (
        "artifact list --limit 20000",
        "--limit: 20000 is not possible",
        "from 1 to 10000, as in `ottoctl artifact list",
    ),
    ("--timeout x ps", "--timeout: 'x' is not a number", "of 0.01 or more, as in `ottoctl --timeout 2 ps`"),
    ("logs --tial 3 x", "No such option: --tial", "did you mean --tail?"),
    ("top -n 3 -o json", "-n 3: JSON is one document", "`ottoctl top -n 3 -o jsonl`, or -n 1"),
    ("config get", "No such command 'get'", "`ottoctl config` has: show, check"),
    ("config shwo", "No such command 'shwo'", "did you mean `ottoctl config show`?"),
    ("worklfow list", "No such command 'worklfow'", "did you mean `ottoctl workflow`?"),
    ("frobnicate", "No such command 'frobnicate'", "see `ottoctl -h`"),
    (
        "approve --for 8h a-1 a-2",
        "--for says how long",
        "`ottoctl approve a-1 a-2 --agent --for 8h`, or leave out --for",
    ),
    (
        "approve a-1 --session --agent",
        "exclude each other",
        "`ottoctl approve a-1 --session`, or `ottoctl approve a-1",
    ),
    ("approve a-1 --agent --for 0s", "more than nothing", "write 30m, 8h or 7d"),
    ("approve a-1 --agent --for soon", "--for: not a duration: 'soon'", "write 30m, 8h or 7d"),
    ("workflow run fix x --input wish", "--input 'wish' names no artifact", "--input NAME=TEXT, or NAME=@FILE"),
    ("workflow run fix x --input wish=@nofile", "/nofile: no such file or directory", "--input wish=TEXT"),
    ("workflow run fix x --input wish=@.", "is a directory", "name a file that is there"),
    (
        "config show ring.szie",
        "no such key: ring.szie",
        "did you mean 'ring.size_bytes'? ottoctl config show ring.size",
    ),
    ("config show rign.size_bytes", "no such key: rign.size_bytes", "did you mean 'ring.size_bytes'?"),
    ("config show rng", "no such key: rng", "did you mean 'ring'? ottoctl config show ring"),
    ("config show stop_grace_s", "no such key: stop_grace_s", "did you mean 'sessions.stop_grace_s'?"),
    ("config show ring.frobnicate", "no such key: ring.frobnicate", "see what there is: ottoctl config show ring"),
    ("status", "No such command 'status'", "did you mean `ottoctl daemon status`?"),
    ("sessions", "No such command 'sessions'", "did you mean `ottoctl ps`?"),
    ("workflow start", "No such command 'start'", "did you mean `ottoctl workflow"),
    ("config show qqqq", "no such key: qqqq", "see what there is: ottoctl config show"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somewhere without a configuration and without a daemon."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "OTTO_RUNTIME_DIR", "OTTO_STATE_DIR", "OTTO_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("OTTO_CONFIG", "OTTO_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def status_of(arguments: list[str]) -> int:
    """As `ottoctl.application.run`, without its process."""
    try:
        status = build_app(asked_command(arguments))(arguments, prog_name="ottoctl", standalone_mode=False)
    except CommandLineError as error:
        return say_misuse(error, arguments)
    except typer.Exit as end:
        return end.exit_code
    return int(status)


@pytest.mark.parametrize(("typed", "wrong", "mend"), SAID, ids=[typed for typed, _, _ in SAID])
def test_what_to_type_instead(capsys: pytest.CaptureFixture[str], typed: str, wrong: str, mend: str) -> None:
    """One error, one mend, status 2."""
    assert status_of(shlex.split(typed)) == 2
    said = capsys.readouterr().err
    errors, mends = (re.findall(f"{mark}: (.*)", said) for mark in ("ottoctl: error", "mend"))
    assert len(errors) == len(mends) == 1, said
    assert wrong in errors[0] and mend in mends[0], said


def test_no_text_of_the_library_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Its words for numbers are not those of people."""
    for typed in ("logs --tail abc x", "rollback x --turns 0"):
        status_of(shlex.split(typed))
        assert "Input should be" not in capsys.readouterr().err


def test_the_configuration_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistakes are errors; a rule for an agent that nobody sees is a warning with its line, and status 0."""
    assert status_of(["config", "check"]) == 0 and "the defaults hold" in capsys.readouterr().out
    file = tmp_path / "otto.yml"
    monkeypatch.setenv("OTTO_CONFIG", str(file))
    file.write_text("permissions:\n  rules:\n    - {effect: deny, agent: coder}\n    - {effect: deny, agent: codr}\n")
    assert status_of(["config", "check"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{file}: ok\n"
    assert said.err == (
        f"ottoctl: warning: {file}:4:29: permissions.rules[1].agent: unknown agent 'codr' — did you mean 'coder'?\n"
        "  mend: write 'coder'\n"
    )
    file.write_text("rng: 1\nringg: 2\n")
    assert status_of(["config", "check"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"{file}:1:1: " in said.err and f"{file}:2:1: " in said.err
    assert status_of(["config", "check", "-o", "jsonl"]) == 2
    assert '"ok":false' in capsys.readouterr().out
