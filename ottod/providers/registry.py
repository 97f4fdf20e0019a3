"""The providers there are: an explicit table from adapter to constructor.

Importing this module imports no SDK. The zygote calls `preload` so that every worker finds the SDKs loaded; a
process that uses one adapter loads that one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ottod.protocol.specs import ModelTarget
from ottod.providers.base import Provider


def build_provider(target: ModelTarget, api_key: str = "") -> Provider:
    """The provider of a resolved model. Opens nothing. Raises ConfigError for a script that is wrong."""
    return _ADAPTERS[target.adapter](target, api_key)


def preload() -> None:
    """Imports what the adapters need, down to the modules that the SDKs would load in the first call."""
    for name in _PRELOADED:
        importlib.import_module(name)
    for name in _PRELOADED_IF_PRESENT:
        try:
            importlib.import_module(name)
        except ImportError:
            pass


def _scripted(target: ModelTarget, api_key: str) -> Provider:
    from ottod.providers.scripted import ScriptedProvider

    return ScriptedProvider(target)


def _anthropic(target: ModelTarget, api_key: str) -> Provider:
    from ottod.providers.anthropic import AnthropicProvider

    return AnthropicProvider(target, api_key)


def _openai(target: ModelTarget, api_key: str) -> Provider:
    from ottod.providers.openai import OpenAIProvider

    return OpenAIProvider(target, api_key)


_ADAPTERS: dict[str, Callable[[ModelTarget, str], Provider]] = {
    "scripted": _scripted,
    "anthropic": _anthropic,
    "openai": _openai,
}

_PRELOADED = (
    "ottod.providers.scripted",
    "ottod.providers.anthropic",
    "ottod.providers.openai",
    "ottod.providers.prices",
)
# Both SDKs load resources and their HTTP stack lazily. These are their inner modules, so an SDK may move one
# without notice: a name that is gone costs the first call some milliseconds, and a test notices.
_PRELOADED_IF_PRESENT = (
    "anthropic.resources.messages.messages",
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "genai_prices.data_snapshot",
    "h11",
    "httpcore2._async.http11",
    "httpcore2._async.http_proxy",
    "httpcore2._backends.anyio",
    "httpcore2._backends.auto",
    "openai.lib._client_auth",
    "openai.resources.chat.chat",
    "openai.resources.chat.completions.completions",
    "openai.resources.chat.completions.messages",
    "openai.resources.responses.input_items",
    "openai.resources.responses.input_tokens",
    "openai.resources.responses.responses",
    "truststore",
)
