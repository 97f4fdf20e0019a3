"""Where settings come from."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ottoctl.rendering.config import settings_table, value_text
from ottod.errors import ConfigError
from ottod.settings.origins import Setting, settings_of
from ottod.settings.sections import DaemonSettings

FILE = """\
# A comment.
ring:
  size_bytes: 128 MiB
  sync: interval
models: {default: local:m}
providers:
  local:
    adapter: openai
    base_url: http://127.0.0.1:8080/v1
  anthropic: {max_concurrent: 3}
permissions:
  rules:
    - {effect: ask, tool: git}
    - effect: deny
      tool: shell
"""


def found(file: Path) -> dict[str, Setting]:
    return {each.key: each for each in settings_of(file) if isinstance(each, Setting)}


def test_each_value_that_holds_has_its_line_or_is_a_default(tmp_path: Path) -> None:
    """Also one that says what goes without saying; built-in providers and aliases are there, the file's over them."""
    file = tmp_path / "otto.yml"
    file.write_text(FILE)
    settings = found(file)
    lines = {key: each.line for key, each in settings.items() if each.file}
    assert lines == {
        "ring.size_bytes": 3,
        "ring.sync": 4,
        "models.default": 5,
        "providers.local.adapter": 8,
        "providers.local.base_url": 9,
        "providers.anthropic.max_concurrent": 10,
        "permissions.rules[0]": 13,
        "permissions.rules[1]": 14,
    }
    assert settings["ring.size_bytes"].origin == f"{file}:3" and settings["ring.size_bytes"].value == 128 * 1024**2
    assert settings["permissions.rules[1]"].value == {"effect": "deny", "tool": "shell"}
    assert settings["models.strong"].origin == settings["providers.anthropic.adapter"].origin == "default"
    assert settings["providers.local.timeout_s"].is_default and settings["budgets.day.usd"].value is None
    # Each section of the settings is among them, and all of it is data.
    assert {key.partition(".")[0].partition("[")[0] for key in settings} == set(DaemonSettings.__struct_fields__)
    msgspec.json.encode(list(settings.values()))


def test_without_a_file_all_are_defaults(tmp_path: Path) -> None:
    """So they are of one with nothing but comments."""
    (tmp_path / "empty.yml").write_text("# Nothing yet.\n")
    for name in ("absent.yml", "empty.yml"):
        assert all(each.is_default for each in found(tmp_path / name).values())


def test_a_file_with_mistakes_gives_them(tmp_path: Path) -> None:
    """All of them, and no settings."""
    file = tmp_path / "otto.yml"
    file.write_text("rng: {}\nring: {sync: never}\n")
    errors = settings_of(file)
    assert [each.line for each in errors if isinstance(each, ConfigError)] == [1, 2]


def test_values_are_shown_as_they_are_written() -> None:
    """With their units; a dash where nothing is set."""
    shown = {
        ("ring.size_bytes", 64 * 1024**2): "64 MiB",
        ("pool.warm", 1_000_000): "1000000",
        ("sessions.hung_after_s", 90.0): "90s",
        ("redaction.shapes", True): "true",
        ("budgets.day.usd", None): "-",
        ("env", ("PATH", "LC_*")): "[PATH, LC_*]",
        ("telemetry.traces.sample_ratio", 0.5): "0.5",
    }
    for (key, value), text in shown.items():
        assert value_text(key, value) == text
    table = settings_table([Setting(key="a.b_s", value=2.0, origin="default")], width=0, color=False)
    assert table.splitlines()[1].split() == ["a.b_s", "default", "2s"]
