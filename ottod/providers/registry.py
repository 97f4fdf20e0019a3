"""The providers there are: an explicit table from adapter to constructor.

Importing this module imports no SDK. The zygote calls `preload` so that workers find loaded what they are likely to
need; a process that uses another adapter loads that one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable

from ottod.protocol.specs import ModelTarget
from ottod.providers.base import Provider


def build_provider(target: ModelTarget, api_key: str = "") -> Provider:
    """The provider of a resolved model. Opens nothing. Raises ConfigError for a script that is wrong."""
    return _ADAPTERS[target.adapter](target, api_key)


def preload(adapters: Iterable[str]) -> None:
    """Imports what these adapters need, down to the modules that their SDKs would load in the first call. Blocks."""
    for adapter in adapters:
        for name in _MODULES[adapter]:
            importlib.import_module(name)
        for name in _INNER_MODULES.get(adapter, ()):
            try:
                importlib.import_module(name)
            except ImportError:
                pass


def is_loaded(adapter: str) -> bool:
    """Whether a provider of this adapter can be built without an import that takes long."""
    return all(name in sys.modules for name in _MODULES[adapter])


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

_MODULES: dict[str, tuple[str, ...]] = {
    "scripted": ("ottod.providers.scripted",),
    "anthropic": ("ottod.providers.anthropic", "ottod.providers.prices"),
    "openai": ("ottod.providers.openai", "ottod.providers.prices"),
}
ADAPTERS = tuple(_MODULES)

# Both SDKs load resources and their HTTP stack lazily. These are their inner modules, so an SDK may move one
# without notice: a name that is gone costs the first call some milliseconds, and a test notices.
_HTTP = (
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "genai_prices.data_snapshot",
    "h11",
    "httpcore2._async.http11",
    "httpcore2._async.http_proxy",
    "httpcore2._backends.anyio",
    "httpcore2._backends.auto",
    "truststore",
)
_INNER_MODULES: dict[str, tuple[str, ...]] = {
    "anthropic": (*_HTTP, "anthropic.resources.messages.messages"),
    "openai": (
        *_HTTP,
        "openai.lib._client_auth",
        "openai.resources.chat.chat",
        "openai.resources.chat.completions.completions",
        "openai.resources.chat.completions.messages",
        "openai.resources.responses.input_items",
        "openai.resources.responses.input_tokens",
        "openai.resources.responses.responses",
    ),
}
