"""From the model name an agent writes to the provider, adapter and model that answer.

A name is an alias (`default`), `provider:model`, or a model name alone, whose provider is the one that lists it, or
else guessed by its beginning (`claude-…`, `gpt-…`). Aliases may name aliases; a circle is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ottod.errors import ConfigError
from ottod.protocol.specs import ModelTarget
from ottod.settings.nearest import nearest, suggestion
from ottod.settings.sections import DaemonSettings, Prices, ProviderSettings

if TYPE_CHECKING:
    from ottod.settings.yaml_source import Source

SCRIPTED_CONCURRENT = 10_000
"""Scripts cost nobody anything: as many at once as there can be sessions."""

SCRIPT_SUFFIX = ".yml"
"""Of the scripts in a directory, each called as its agent."""

BUILTIN_PROVIDERS: dict[str, ProviderSettings] = {
    "scripted": ProviderSettings(adapter="scripted", needs_key=False, max_concurrent=SCRIPTED_CONCURRENT),
    "anthropic": ProviderSettings(adapter="anthropic", api_key_env="ANTHROPIC_API_KEY"),
    "openai": ProviderSettings(adapter="openai", api_key_env="OPENAI_API_KEY"),
}

BUILTIN_ALIASES = {
    "default": "anthropic:claude-sonnet-5-5",
    "fast": "anthropic:claude-haiku-5-5",
    "strong": "anthropic:claude-opus-5-5",
}

_GUESSES = (
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"(gpt|chatgpt|codex)-|o[1-9](-|\Z)"), "openai"),
)

_CONTEXT_TOKENS = (
    (re.compile(r"claude-(?:2|instant|v1)"), 100_000),
    (re.compile(r"claude-(?:3|(?:opus|sonnet|haiku)-(?:3|4(?:-[0-5])?(?:-\d{8}|-latest|@.*)?\Z))"), 200_000),
    (re.compile(r"claude-"), 1_000_000),
    (re.compile(r"gpt-3"), 16_385),
    (re.compile(r"gpt-4\.1"), 1_000_000),
    (re.compile(r"(?:chatgpt-|gpt-)4o|gpt-4-turbo|gpt-oss"), 128_000),
    (re.compile(r"gpt-4"), 8_192),
    (re.compile(r"gpt-5|codex-"), 400_000),
    (re.compile(r"gpt-"), 1_000_000),
    (re.compile(r"o[1-9](?:-|\Z)"), 200_000),
)
"""By family, the smaller where members differ: too small a number shortens early, too large a one too late."""


def providers(settings: DaemonSettings) -> dict[str, ProviderSettings]:
    """The built-in providers with the configured ones laid over them, key by key."""
    merged = dict(BUILTIN_PROVIDERS)
    blank = ProviderSettings()
    for name, given in settings.providers.items():
        below = BUILTIN_PROVIDERS.get(name, blank)
        if given.adapter not in (None, below.adapter):
            below = blank
        fields = {
            field: getattr(given if getattr(given, field) != getattr(blank, field) else below, field)
            for field in ProviderSettings.__struct_fields__
        }
        if given.api_key_file:
            fields["api_key_env"] = given.api_key_env
        merged[name] = ProviderSettings(**fields)
    return merged


def aliases(settings: DaemonSettings) -> dict[str, str]:
    """The built-in aliases with the configured ones over them."""
    return {**BUILTIN_ALIASES, **settings.models}


def resolve_model(
    name: str, settings: DaemonSettings, *, agent: str = "", agent_source: str = "", cwd: str = ""
) -> ModelTarget:
    """The model that `name` means to the agent of that name.

    `agent_source` is the file of the agent that asks, and `cwd` the session's working directory: the path of a
    script is looked for beside the former, then in the latter. A directory has a script for each agent.
    Raises: ConfigError with code `unknown_model`, `alias_cycle` or `no_script`.
    """
    provider_name, model = resolve_name(name, settings)
    provider = providers(settings)[provider_name]
    adapter = provider.adapter
    if adapter is None:
        raise _no_adapter(provider_name)
    if adapter == "scripted":
        model = _script(model, agent=agent, agent_source=agent_source, cwd=cwd)
    price = _price(provider.prices, model)
    return ModelTarget(
        provider=provider_name,
        adapter=adapter,
        model=model,
        api=provider.api,
        base_url=provider.base_url,
        needs_key=needs_key(provider),
        timeout_s=provider.timeout_s,
        idle_timeout_s=provider.idle_timeout_s,
        max_retries=provider.max_retries,
        context_tokens=provider.context_tokens or known_context_tokens(provider, model),
        price_input_usd=price.input if price else None,
        price_output_usd=price.output if price else None,
        price_cache_read_usd=price.cache_read if price else None,
        price_cache_write_usd=price.cache_write if price else None,
    )


def known_context_tokens(provider: ProviderSettings, model: str) -> int | None:
    """What the model's context holds at its maker's API, if its family is known. Other servers decide themselves."""
    if provider.base_url:
        return None
    return next((tokens for pattern, tokens in _CONTEXT_TOKENS if pattern.match(model)), None)


def configured_models(settings: DaemonSettings) -> set[tuple[str, str]]:
    """Provider and model of every model that the configuration names: in lists, prices and aliases."""
    found = {
        (name, model)
        for name, provider in providers(settings).items()
        for model in (*provider.models, *provider.prices)
        if model != "*"
    }
    for alias in aliases(settings):
        try:
            found.add(resolve_name(alias, settings))
        except ConfigError:
            pass  # Nothing answers to it, and whoever uses it is told.
    return found


def needs_key(provider: ProviderSettings) -> bool:
    """Whether a provider's calls carry a key."""
    return provider.adapter != "scripted" if provider.needs_key is None else provider.needs_key


def check_aliases(settings: DaemonSettings, source: Source) -> list[ConfigError]:
    """Aliases that lead nowhere and providers without an adapter, placed in the daemon's file."""
    errors = []
    for name, provider in settings.providers.items():
        if provider.adapter is None and name not in BUILTIN_PROVIDERS:
            reason = _no_adapter(name)
            errors.append(source.error(reason.message, ("providers", name), key=True, mend=reason.mend))
    for name in settings.models:
        try:
            resolve_name(name, settings)
        except ConfigError as error:
            errors.append(source.error(error.message, ("models", name), mend=error.mend, code=error.code))
    return sorted(errors, key=lambda e: (e.line, e.column))


def resolve_name(name: str, settings: DaemonSettings) -> tuple[str, str]:
    """The provider's name and the model (or script) that a name means; looks for no script.

    Raises: ConfigError with code `unknown_model` or `alias_cycle`.
    """
    known, table = providers(settings), aliases(settings)
    seen = [name]
    while name in table:
        name = table[name]
        if name in seen:
            circle = " → ".join([*seen, name])
            mend = "point one of them to `provider:model`"
            raise _coded(f"model aliases form a circle: {circle}", mend, "alias_cycle")
        seen.append(name)
    provider, colon, model = name.partition(":")
    if colon:
        if provider in known and model:
            return provider, model
        if not model:
            raise _coded(f"model {name!r} names no model", "write `provider:model`", "unknown_model")
        mend = suggestion(provider, known)
        raise _coded(f"model {name!r} names an unknown provider {provider!r}", mend, "unknown_model")
    for listed_by, listing in known.items():
        if name in listing.models:
            return listed_by, name
    for pattern, guess in _GUESSES:
        if pattern.match(name):
            return guess, name
    listed = {m for p in known.values() for m in p.models}
    close = nearest(name, {*table, *listed})
    mend = f"did you mean {close!r}?" if close else f"use an alias ({', '.join(sorted(table))}) or `provider:model`"
    raise _coded(f"unknown model {name!r}", mend, "unknown_model")


def _script(model: str, *, agent: str, agent_source: str, cwd: str) -> str:
    """The absolute path of a script; in a directory, of the agent's."""
    path = Path(os.path.expanduser(model))
    beside = [Path(agent_source).parent] if agent_source.startswith("/") else []
    # A path that climbs is judged by where the agent's file is, and may mean nothing anywhere else.
    within = [Path(cwd)] if cwd and not (beside and ".." in path.parts) else []
    candidates = [base / path for base in [*beside, *within]] or [path]
    for candidate in candidates:
        if agent and os.path.isdir(candidate):
            candidate /= f"{agent}{SCRIPT_SUFFIX}"
            if not os.path.isfile(candidate):
                raise _coded(
                    f"no script for {agent} at {os.path.realpath(candidate)}",
                    "write one, by the agent's name",
                    "no_script",
                )
        if os.path.isfile(candidate):
            return str(candidate.resolve())
    tried = ", ".join(dict.fromkeys(os.path.realpath(c) for c in candidates))
    raise _coded(f"no script at {tried}", "check the path after `scripted:`", "no_script")


def _price(prices: dict[str, Prices], model: str) -> Prices | None:
    return prices.get(model) or prices.get("*")


def _no_adapter(provider: str) -> ConfigError:
    return _coded(
        f"provider {provider!r} has no adapter", "add `adapter: openai`, `anthropic` or `scripted`", "bad_config"
    )


def _coded(message: str, mend: str, code: str) -> ConfigError:
    error = ConfigError(message, mend=mend)
    error.code = code
    return error
