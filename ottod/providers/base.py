"""The contract of a model provider: a canonical request in, a stream of canonical events out.

A provider never retries (retries belong to the caller), never starts a task that outlives `stream`, and raises
only `ProviderError`. The last event of a stream that does not raise is `ResponseCompleted`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ottod.protocol.model import ModelEvent, ModelRequest


class Provider(Protocol):
    """One connection to one provider, made inside the worker after the fork."""

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Makes the call. Closing the generator closes the connection: iterate inside `contextlib.aclosing`.

        Raises: ProviderError, with `retryable` and perhaps `retry_after_s`.
        """
        ...

    async def aclose(self) -> None:
        """Closes connections."""
        ...
