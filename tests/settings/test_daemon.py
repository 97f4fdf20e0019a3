"""The daemon's file, the models it names and the keys it points to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError, ProviderError
from ottod.settings.daemon import DaemonSettings, api_key, check, load, resolve_model, session_env
from ottod.settings.keys import MAX_KEY_BYTES
from ottod.settings.models import BUILTIN_ALIASES, BUILTIN_PROVIDERS, providers, resolve_name
from ottod.settings.sections import Prices, ProviderSettings

EXAMPLE = Path(__file__).parents[2] / "config" / "otto.yml"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "otto.yml"
    file.write_text(text)
    return file


def settings(text: str, tmp_path: Path) -> DaemonSettings:
    return load(write(tmp_path, text))


def test_an_absent_file_means_the_defaults_unless_it_was_asked_for(tmp_path: Path) -> None:
    """No file, no configuration; a file that OTTO_CONFIG names must exist."""
    assert load(tmp_path / "no.yml") == DaemonSettings()
    with pytest.raises(ConfigError, match=r"no\.yml: cannot read: no such file"):
        load(tmp_path / "no.yml", must_exist=True)


def test_the_example_states_the_defaults() -> None:
    """What the annotated example says is what a daemon without a file does."""
    example, default = load(EXAMPLE), DaemonSettings()
    assert example.models == BUILTIN_ALIASES
    for name in ("anthropic", "openai"):
        assert providers(example)[name] == BUILTIN_PROVIDERS[name]
    for field in set(DaemonSettings.__struct_fields__) - {"models", "providers"}:
        assert getattr(example, field) == getattr(default, field), field


def test_the_example_covers_every_key() -> None:
    """Every field of every section stands in the example; a new one cannot be forgotten."""
    assert _uncovered(DaemonSettings, yaml.safe_load(EXAMPLE.read_text()), "") == []


def _uncovered(struct: type[msgspec.Struct], *examples: Any) -> list[str]:
    *data, path = examples
    missing = []
    for field in msgspec.structs.fields(struct):
        values = [d[field.encode_name] for d in data if field.encode_name in d]
        here = f"{path}.{field.encode_name}"
        kind = field.type
        if not values:
            missing.append(here)
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            missing += _uncovered(kind, *values, here)
        elif get_origin(kind) is dict and get_args(kind)[1] in (ProviderSettings, Prices):
            entries = [entry for value in values for entry in value.values()]
            missing += _uncovered(get_args(kind)[1], *entries, here)
    return missing


WRONG = [
    *(
        (
            f"project_may: {{{key}: ['']}}\n",
            f"1:{17 + len(key)}: project_may.{key}: an empty path is no directory",
            "leave it out",
        )
        for key in ("read_paths", "write_paths")
    ),
    (
        "supervision: {max_restarts: 1000, period_s: 5}\n",
        "1:29: supervision: 1000 restarts in 5 s is no limit: nothing crashes more often than that",
        "write what is too often, such as `max_restarts: 3` and `period_s: 60s`; 0 allows no restart",
    ),
    (
        "permissions: {rules: [{effect: allow, command: ''}]}\n",
        "1:48: an empty command is no condition",
        "leave the key out to match everything",
    ),
    (
        "ring: {sync: alwais}\n",
        "1:14: ring.sync must be one of always, interval, none, got 'alwais'",
        "did you mean 'always'?",
    ),
    (
        "ring:\n  size_bytes: 1 MiB\n  segment_bytes: 256 KiB\n",
        "2:15: ring.size_bytes must be at least 8 times segment_bytes",
        "write 2097152 or more, or a smaller segment_bytes",
    ),
    (
        "sessions: {heartbeat_s: 30s}\n",
        "1:11: sessions.hung_after_s must be at least twice heartbeat_s",
        "write 60 or more, or a smaller heartbeat_s",
    ),
    (
        "sesions: {}\n",
        "1:1: unknown key 'sesions' — did you mean 'sessions'?",
        "write 'sessions'",
    ),
    (
        "sessions: {worker_priority: 20}\n",
        "1:29: sessions.worker_priority must be one of idle, low, normal, got 20",
        "write one of idle, low, normal",
    ),
    (
        "models:\n  a: b\n  b: a\n",
        "2:6: model aliases form a circle: a → b → a",
        "point one of them to `provider:model`",
    ),
    (
        "models:\n  default: anthropc:x\n",
        "2:12: model 'anthropc:x' names an unknown provider 'anthropc'",
        "did you mean 'anthropic'?",
    ),
    (
        "providers:\n  mine: {base_url: 'http://x'}\n",
        "2:3: provider 'mine' has no adapter",
        "add `adapter: openai`, `anthropic` or `scripted`",
    ),
    (
        "providers:\n  openai: {base_url: 'localhost:80'}\n",
        "2:22: base_url must start with http:// or https://, got 'localhost:80'",
        "write the URL up to and with the version, such as http://127.0.0.1:8080/v1",
    ),
    (
        "providers:\n  openai: {max_concurrent: 0}\n",
        "2:28: providers.openai.max_concurrent must be an integer (≥ 1), got 0",
        "write an integer (≥ 1)",
    ),
    (
        "providers:\n  openai: {requests_per_minute: 0}\n",
        "2:33: providers.openai.requests_per_minute must be an integer (≥ 1), got 0",
        "write an integer (≥ 1)",
    ),
    (
        "providers:\n  openai: {breaker: {error_rate: 50}}\n",
        "2:34: providers.openai.breaker.error_rate must be a number (> 0 and ≤ 1), got 50",
        "write a number (> 0 and ≤ 1)",
    ),
    (
        "providers:\n  openai: {breaker: {errorrate: 1}}\n",
        "2:22: unknown key 'errorrate' in 'providers.openai.breaker' — did you mean 'error_rate'?",
        "write 'error_rate'",
    ),
    (
        "providers:\n  openai:\n    breaker: {open_s: 1m, max_open_s: 30s}\n",
        "3:39: breaker.max_open_s is less than open_s (60 s)",
        "write 60 or more, or a smaller open_s",
    ),
    (
        "providers:\n  openai: {adapter: opnai}\n",
        "2:21: providers.openai.adapter must be one of scripted, anthropic, openai, got 'opnai'",
        "did you mean 'openai'?",
    ),
    (
        "env: PATH\n",
        "1:6: env must be a list of strings, got 'PATH'",
        "write `[one, another]`, or a line `- one` for each",
    ),
    (
        "ring: 64 MiB\n",
        "1:7: ring must be a mapping, got '64 MiB'",
        "write keys below it: size_bytes, segment_bytes, sync, sync_interval_s",
    ),
]


@pytest.mark.parametrize(("text", "message", "mend"), WRONG, ids=[m for _, m, _ in WRONG])
def test_a_wrong_daemon_file_is_named_exactly(tmp_path: Path, text: str, message: str, mend: str) -> None:
    """Each mistake gives one line with file, line and column, and this mend."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:{message}"
    assert caught.value.mend == mend


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    """`check` gives every mistake, in file order."""
    errors = check(write(tmp_path, "pool: {warm: x}\nring: {sync: 1}\nlogging: {leve: info}\n"))
    assert isinstance(errors, list)
    assert [e.line for e in errors] == [1, 2, 3]


@given(st.binary(max_size=120))
def test_any_file_gives_settings_or_config_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """No content makes loading raise anything else."""
    file = tmp_path_factory.getbasetemp() / "any-otto.yml"
    file.write_bytes(data)
    try:
        assert isinstance(load(file), DaemonSettings)
    except ConfigError as error:
        assert str(file) in str(error)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("name", "provider", "model"),
    [
        ("default", *BUILTIN_ALIASES["default"].split(":")),
        ("anthropic:some-new-model", "anthropic", "some-new-model"),
        ("claude-opus-5-5", "anthropic", "claude-opus-5-5"),
        ("gpt-6", "openai", "gpt-6"),
        ("o3", "openai", "o3"),
        ("o4-mini", "openai", "o4-mini"),
        ("qwen", "local", "qwen"),
        ("mine", "local", "a:b"),
        ("local:x:y", "local", "x:y"),
    ],
)
def test_names_find_their_provider(tmp_path: Path, name: str, provider: str, model: str) -> None:
    """Aliases, `provider:model`, listed names and names that show whose they are."""
    text = (
        "models: {mine: also, also: 'local:a:b'}\n"
        "providers:\n  local: {adapter: openai, api: chat, base_url: 'http://h/v1', models: [qwen]}\n"
    )
    target = resolve_model(name, settings(text, tmp_path))
    assert (target.provider, target.model) == (provider, model)


@pytest.mark.parametrize(
    ("name", "message", "mend"),
    [
        ("strng", "unknown model 'strng'", "did you mean 'strong'?"),
        ("xyz", "unknown model 'xyz'", "use an alias (default, fast, strong) or `provider:model`"),
        ("opena:x", "model 'opena:x' names an unknown provider 'opena'", "did you mean 'openai'?"),
        ("openai:", "model 'openai:' names no model", "write `provider:model`"),
        ("", "unknown model ''", "use an alias (default, fast, strong) or `provider:model`"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str, mend: str) -> None:
    """An unknown name is refused with the nearest one, never sent to some provider."""
    with pytest.raises(ConfigError) as caught:
        resolve_model(name, DaemonSettings())
    assert (str(caught.value), caught.value.mend, caught.value.code) == (message, mend, "unknown_model")


@given(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "openai:x"]), max_size=4))
def test_aliases_end_or_are_refused(table: dict[str, str]) -> None:
    """Following aliases always comes to an end, and a circle is called a circle."""
    for name in table:
        chain = [name]
        while chain[-1] in table and len(chain) < 9:
            chain.append(table[chain[-1]])
        try:
            assert resolve_name(name, DaemonSettings(models=table)) == ("openai", "x")
            assert chain[-1] == "openai:x"
        except ConfigError as error:
            assert error.code == ("alias_cycle" if len(chain) == 9 else "unknown_model")


def test_an_entry_changes_only_the_keys_it_names(tmp_path: Path) -> None:
    """A built-in provider keeps its adapter and key when only its URL is set."""
    merged = providers(settings("providers: {anthropic: {base_url: 'http://127.0.0.1:1'}}\n", tmp_path))
    assert merged["anthropic"] == msgspec.structs.replace(
        BUILTIN_PROVIDERS["anthropic"], base_url="http://127.0.0.1:1"
    )
    assert merged["openai"] == BUILTIN_PROVIDERS["openai"]


def test_prices_are_the_models_or_the_rest(tmp_path: Path) -> None:
    """A price by name wins over `*`; without either the price is unknown, which is not free."""
    text = "providers: {openai: {prices: {a: {input: 1, output: 2, cache_read: 0.1}, '*': {input: 3, output: 4}}}}\n"
    found = settings(text, tmp_path)
    assert resolve_model("openai:a", found).price_cache_read_usd == 0.1
    assert resolve_model("openai:b", found).price_output_usd == 4
    assert resolve_model("openai:b", DaemonSettings()).price_output_usd is None


def test_scripts_are_found_beside_the_agent_then_in_the_working_directory(tmp_path: Path) -> None:
    """A script's path is relative to its agent; without such a file, to the session's directory."""
    agents, work = tmp_path / "agents", tmp_path / "work"
    for directory in (agents, work):
        directory.mkdir()
        (directory / "s.yml").write_text("")
    (work / "only.yml").write_text("")
    source = str(agents / "x.yml")

    def resolved(name: str) -> str:
        return resolve_model(name, DaemonSettings(), agent_source=source, cwd=str(work)).model

    assert resolved("scripted:s.yml") == str(agents / "s.yml")
    assert resolved("scripted:only.yml") == str(work / "only.yml")
    assert resolved(f"scripted:{work}/s.yml") == str(work / "s.yml")
    with pytest.raises(ConfigError, match=r"no script at .*agents/no\.yml, .*work/no\.yml") as caught:
        resolved("scripted:no.yml")
    assert caught.value.code == "no_script"


def test_a_directory_of_scripts_has_one_for_each_agent(tmp_path: Path) -> None:
    """One alias gives every agent the script of its name; an agent that has none is told the file that is missing."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "coder.yml").write_text("")
    found = DaemonSettings(models={"default": "scripted:scripts"})

    def resolved(agent: str) -> str:
        return resolve_model("default", found, agent=agent, agent_source="/built/in/x.yml", cwd=str(tmp_path)).model

    assert resolved("coder") == str(scripts / "coder.yml")
    with pytest.raises(ConfigError, match=r"no script for tester at .*/scripts/tester\.yml") as caught:
        resolved("tester")
    assert caught.value.code == "no_script"
    with pytest.raises(ConfigError, match="no script at"):
        resolved("")


# ---------------------------------------------------------------- keys


def with_key_file(file: Path) -> DaemonSettings:
    return DaemonSettings(providers={"openai": ProviderSettings(api_key_file=str(file))})


def test_keys_from_the_environment() -> None:
    """The provider's variable holds the key; without it the error says which to set."""
    assert api_key("anthropic", DaemonSettings(), {"ANTHROPIC_API_KEY": " k1\n"}) == "k1"
    assert api_key("scripted", DaemonSettings(), {}) == ""
    with pytest.raises(ProviderError, match="no API key for provider 'openai'") as caught:
        api_key("openai", DaemonSettings(), {"ANTHROPIC_API_KEY": "k1"})
    assert caught.value.code == "auth"
    assert "OPENAI_API_KEY" in caught.value.mend


def test_a_key_file_wins_and_must_be_private(tmp_path: Path) -> None:
    """A file that others may read is refused with the chmod that mends it; then it wins over the variable."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    env = {"OPENAI_API_KEY": "from-env"}
    for mode in (0o640, 0o604, 0o622):
        file.chmod(mode)
        with pytest.raises(ConfigError, match=rf"open to other users \(mode {mode:04o}\)") as caught:
            api_key("openai", with_key_file(file), env)
        assert caught.value.mend == f"chmod 600 {file}"
    file.chmod(0o600)
    assert api_key("openai", with_key_file(file), env) == "from-file"


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"two words", b"a\nb", b"\xff\xfe", "ключ".encode(), b"x" * (MAX_KEY_BYTES + 1)]
)
def test_what_is_no_key(tmp_path: Path, content: bytes) -> None:
    """Nothing that could not stand in a header is taken for a key, and its text is not in the error."""
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold one key") as caught:
        api_key("openai", with_key_file(file), {})
    assert "two words" not in str(caught.value) + caught.value.mend


def test_a_missing_key_file_and_a_fifo(tmp_path: Path) -> None:
    """Neither blocks, both are errors; the variable is not taken instead."""
    with pytest.raises(ConfigError, match="cannot read the key file: no such file"):
        api_key("openai", with_key_file(tmp_path / "no"), {"OPENAI_API_KEY": "k"})
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        api_key("openai", with_key_file(tmp_path / "fifo"), {})


def test_systemd_credentials(tmp_path: Path) -> None:
    """A credential named like the variable or the provider wins over the variable; systemd guards its mode."""
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "OPENAI_API_KEY": "from-env"}
    assert api_key("openai", DaemonSettings(), env) == "from-env"
    (tmp_path / "openai").write_text("by-provider")
    assert api_key("openai", DaemonSettings(), env) == "by-provider"
    (tmp_path / "OPENAI_API_KEY").write_text("by-variable")
    assert api_key("openai", DaemonSettings(), env) == "by-variable"


# ---------------------------------------------------------------- environment


def test_sessions_get_the_lists_and_nothing_else(tmp_path: Path) -> None:
    """Names and patterns pass, and what the agent asks for; the rest does not."""
    env = {"PATH": "/bin", "LC_TIME": "C", "AWS_SECRET": "s", "CI": "1", "OTTO_STATE_DIR": "/x"}
    assert session_env(env, DaemonSettings()) == {"LC_TIME": "C", "PATH": "/bin"}
    assert session_env(env, DaemonSettings(), extra=["CI", "NO_SUCH"]) == {"CI": "1", "LC_TIME": "C", "PATH": "/bin"}


def test_provider_keys_never_pass(tmp_path: Path) -> None:
    """Not even a list that allows everything hands a provider's key to a session, nor Otto's own variables."""
    text = "env: ['*']\nproviders: {mine: {adapter: openai, api_key_env: MINE}}\n"
    env = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "b", "MINE": "c", "OTTO_SESSION": "d", "OTHER": "e"}
    assert session_env(env, settings(text, tmp_path), extra=["MINE", "OPENAI_API_KEY"]) == {"OTHER": "e"}


def test_a_climbing_script_is_looked_for_beside_its_agent_only(tmp_path: Path) -> None:
    """What was judged to lie inside the project from the agent's place cannot be found outside from another."""
    agents, work = tmp_path / "repo" / ".otto" / "agents", tmp_path / "a" / "b"
    for directory in (agents, work):
        directory.mkdir(parents=True)
    (tmp_path / "s.yml").write_text("")
    with pytest.raises(ConfigError) as caught:
        resolve_model("scripted:../../s.yml", DaemonSettings(), agent_source=str(agents / "x.yml"), cwd=str(work))
    assert caught.value.code == "no_script"
    assert resolve_model("scripted:../../s.yml", DaemonSettings(), cwd=str(work)).model == str(tmp_path / "s.yml")


def test_a_file_that_may_not_be_seen_is_an_error(tmp_path: Path) -> None:
    """Only absence means defaults: a link to itself is a file that cannot be read."""
    (tmp_path / "otto.yml").symlink_to("otto.yml")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "otto.yml")


@pytest.mark.parametrize("path", ["~nobody-here/x.yml", "a" * 5000, "~"])
def test_odd_script_paths_are_missing_scripts(path: str) -> None:
    """An unknown user's home, a name too long and a directory are no scripts."""
    with pytest.raises(ConfigError) as caught:
        resolve_model(f"scripted:{path}", DaemonSettings(), cwd="/")
    assert caught.value.code == "no_script"


def test_what_no_environment_can_hold_is_dropped() -> None:
    """A NUL or an equals sign from a hostile client would make every exec in the session fail."""
    env = {"PATH": "/bin", "LC_A=B": "x", "LC_\0": "x", "LANG": "a\0b"}
    assert session_env(env, DaemonSettings()) == {"PATH": "/bin"}
    assert session_env({"": "x", "OK": "y"}, DaemonSettings(env=("*",))) == {"OK": "y"}


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("anthropic:claude-3-5-sonnet-20241022", 200_000),
        ("claude-sonnet-4-5-20250929", 200_000),
        ("claude-opus-4-6", 1_000_000),
        ("default", 1_000_000),
        ("gpt-4o-mini", 128_000),
        ("gpt-4.1", 1_000_000),
        ("gpt-4", 8_192),
        ("gpt-5-codex", 400_000),
        ("gpt-6-sol", 1_000_000),
        ("o4-mini", 200_000),
        ("openai:somebody-elses", None),
        ("local:gpt-4o", None),
        ("told:gpt-4o", 32_000),
    ],
)
def test_what_a_context_holds(tmp_path: Path, name: str, tokens: int | None) -> None:
    """Families that are known at their makers; elsewhere what the configuration says, or nothing."""
    url = "base_url: 'http://127.0.0.1:1/v1'"
    text = (
        f"providers: {{local: {{adapter: openai, {url}}}, told: {{adapter: openai, {url}, context_tokens: 32000}}}}"
    )
    assert resolve_model(name, settings(text, tmp_path)).context_tokens == tokens
