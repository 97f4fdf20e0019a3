"""The Anthropic Messages API, streamed.

Requests are built in `anthropic_request`, streams are put together in `anthropic_stream`; this module holds the
client and translates its errors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import cast

import anthropic

from ottod.errors import ProviderError
from ottod.protocol.model import ModelEvent, ModelRequest, ResponseCompleted
from ottod.protocol.specs import ModelTarget
from ottod.providers.anthropic_request import messages_request
from ottod.providers.anthropic_stream import AnthropicMessage
from ottod.providers.failures import Peer, malformed, no_key, status_failure
from ottod.providers.http_stream import CONNECT_TIMEOUT, HttpStream, StreamedResponse, lost_connection

BASE_URL = "https://api.anthropic.com"


class AnthropicProvider:
    """One provider of the configuration. The HTTP client is made on first use, after the fork."""

    def __init__(self, target: ModelTarget, api_key: str) -> None:
        self._target = target
        self._peer = Peer(
            name=target.provider,
            base_url=target.base_url or BASE_URL,
            key_variable="ANTHROPIC_API_KEY" if target.provider == "anthropic" else "",
            key=api_key,
        )
        self._client: anthropic.AsyncAnthropic | None = None

    @property
    def name(self) -> str:
        return self._target.provider

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Makes the call. Raises ProviderError."""
        if self._target.needs_key and not self._peer.key:
            raise no_key(self._peer)
        arguments = messages_request(request, provider=self.name)
        # The arguments are checked by the API and by the contract suite, not by a TypedDict of the SDK's.
        create = cast(
            Callable[..., AbstractAsyncContextManager[StreamedResponse]],
            self._sdk().messages.with_streaming_response.create,
        )
        http = HttpStream(
            create(**arguments, stream=True),
            peer=self._peer,
            timeout_s=request.timeout_s,
            idle_timeout_s=request.idle_timeout_s,
            sdk_error=anthropic.AnthropicError,
            translate=self._translated,
        )
        message = AnthropicMessage(self._peer)
        async with aclosing(http.events()) as events:
            async for event in events:
                for delta in message.take(event.data):
                    yield delta
                if message.drain_s is not None:
                    http.complete(message.drain_s)
        yield ResponseCompleted(response=message.response())

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _sdk(self) -> anthropic.AsyncAnthropic:
        if self._client is None:
            # An explicit key and base URL keep the SDK from looking for others in the environment and in files.
            self._client = anthropic.AsyncAnthropic(
                api_key=self._peer.key or "none",
                base_url=self._peer.base_url,
                timeout=CONNECT_TIMEOUT,
                max_retries=0,
                open_telemetry={"traces": False, "propagation": False},
            )
        return self._client

    def _translated(self, error: anthropic.AnthropicError) -> ProviderError:
        match error:
            case anthropic.APIStatusError():
                return status_failure(
                    self._peer,
                    error.status_code,
                    kind=error.type or "",
                    message=error.api_message or error.message,
                    headers=error.response.headers,
                )
            case anthropic.APIConnectionError():
                return lost_connection(self._peer, error)
            case _:
                return malformed(self._peer, str(error))
