"""Sinks that cannot work are refused before anything starts, with file, line and mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from ottod.protocol.sinks import Sink
from ottod.protocol.workflows import sinks_of
from ottod.settings.sections import DaemonSettings, SecretSettings, SinkSettings
from ottod.settings.workflow_file import parse_workflow
from ottod.settings.workflow_sinks import sink_file

SETTINGS = DaemonSettings(
    sinks=SinkSettings(
        hosts=("hooks.example.org", "*.example.net:8443"), local=("127.0.0.1:9000",), secrets=("key",)
    ),
    secrets={"key": SecretSettings(env="KEY"), "other": SecretSettings(env="OTHER")},
)
STEPS = "steps:\n  - {agent: planner, outputs: [design, {name: ticket, kind: ticket}]}\n"


def errors(sink: str, head: str = "") -> list[str]:
    text = f"{STEPS}{head}sinks:\n  - {sink}\n"
    _, found = parse_workflow(text.encode(), file="flow.yml", settings=SETTINGS)
    return [str(error) for error in found]


@pytest.mark.parametrize(
    "sink",
    [
        "{to: filesystem, path: docs}",
        "{to: filesystem, files: {design: docs/design.md}, on_conflict: replace}",
        "{to: sqlite, path: a/b.db, artifacts: [ticket], kinds: [ticket], required: true}",
        "{to: webhook, url: 'https://hooks.example.org/a', secret: key, content_bytes: 1 MiB}",
        "{to: webhook, url: 'https://a.example.net:8443/', timeout_s: 5s}",
        "{to: webhook, url: 'http://127.0.0.1:9000/hook'}",
        "{to: git_branch, attempts: 2}",
        "{to: program, program: issues, options: {a: b}, secrets: [key]}",
    ],
)
def test_what_is_right(sink: str) -> None:
    assert errors(sink) == []


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ("{to: mail}", "filesystem"),
        ("{to: filesystem}", "needs path or files"),
        ("{to: sqlite}", "needs path"),
        ("{to: webhook}", "needs url"),
        ("{to: program}", "needs program"),
        ("{to: git_branch, path: x}", "path has no meaning for a sink to git_branch"),
        ("{to: filesystem, path: ../x}", "outside of the working directory"),
        ("{to: filesystem, path: /x}", "outside of the working directory"),
        ("{to: filesystem, path: .git/hooks}", "belongs to git"),
        ("{to: filesystem, files: {design: a/.otto/b}}", "belongs to git"),
        ("{to: filesystem, path: x, artifacts: [desing]}", "no step leaves 'desing'"),
        ("{to: filesystem, files: {other: x}}", "no step leaves 'other'"),
        ("{to: webhook, url: 'https://elsewhere.example.org/'}", "may not go to elsewhere.example.org"),
        ("{to: webhook, url: 'http://127.0.0.1:9001/'}", "may not go to 127.0.0.1"),
        ("{to: webhook, url: 'https://u@hooks.example.org/'}", "no URL of a webhook"),
        ("{to: webhook, url: 'ftp://hooks.example.org/'}", "no URL of a webhook"),
        ("{to: webhook, url: 'https://hooks.example.org/', secret: kye}", "unknown secret 'kye'"),
        ("{to: webhook, url: 'https://hooks.example.org/', secret: other}", "may not have the secret 'other'"),
        ("{to: program, program: p, secrets: [other]}", "may not have the secret 'other'"),
        ("{to: filesystem, path: x, timeout_s: 5s}", "timeout_s has no meaning for a sink to filesystem"),
        ("{to: sqlite, path: x, timeout_s: 5s}", "timeout_s has no meaning for a sink to sqlite"),
        ("{to: git_branch, timeout_s: 5s}", "timeout_s has no meaning for a sink to git_branch"),
        ("{to: filesystem, path: x, name: A b}", "name"),
        ("{to: filesystem, path: x, pth: y}", "unknown key 'pth'"),
    ],
)
def test_what_is_wrong(sink: str, said: str) -> None:
    (found,) = errors(sink)
    assert said in found and found.startswith("flow.yml:4:"), found


def test_names_are_unique() -> None:
    (found,) = errors("{to: filesystem, path: a}\n  - {to: filesystem, path: b}")
    assert "two sinks are called 'filesystem'" in found
    assert errors("{to: filesystem, path: a}\n  - {to: filesystem, name: b, path: b}") == []


def test_git_branch_is_a_sink() -> None:
    spec, found = parse_workflow(f"git_branch: true\n{STEPS}".encode(), file="flow.yml")
    assert not found and spec is not None and sinks_of(spec) == (Sink(to="git_branch"),)
    spec, found = parse_workflow(
        f"git_branch: true\n{STEPS}sinks: [{{to: git_branch, required: true}}]\n".encode(), file="flow.yml"
    )
    assert not found and spec is not None and len(sinks_of(spec)) == 1


def test_a_sink_of_ones_own_is_found_among_the_users(tmp_path: Path) -> None:
    (tmp_path / "sinks").mkdir()
    (tmp_path / "sinks/issues.py").write_text("def deliver(parcel): ...\n")
    assert sink_file("issues", tmp_path).source.startswith("def deliver")
    for name, mend in (("isues", "did you mean"), ("../sinks/issues", "use one of"), ("none", "use one of")):
        with pytest.raises(Exception, match="no sink") as caught:
            sink_file(name, tmp_path)
        assert mend in getattr(caught.value, "mend", ""), caught.value
