"""OpenAI and everything that speaks its protocols: the Responses API and Chat Completions, streamed.

`api: responses` is OpenAI's own; `api: chat` is what compatible local servers speak. Each has a module that builds
its requests and one class that puts its stream together; this one holds the client and translates its errors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, cast

import openai

from ottod.errors import ProviderError
from ottod.protocol.model import ModelEvent, ModelRequest, ResponseCompleted
from ottod.protocol.specs import ModelTarget
from ottod.providers.failures import Peer, malformed, no_key, status_failure
from ottod.providers.http_stream import CONNECT_TIMEOUT, HttpStream, StreamedResponse, lost_connection
from ottod.providers.openai_chat import ChatMessage, chat_request
from ottod.providers.openai_responses import ResponsesMessage, responses_request

BASE_URL = "https://api.openai.com/v1"


class OpenAIProvider:
    """One provider of the configuration. The HTTP client is made on first use, after the fork."""

    def __init__(self, target: ModelTarget, api_key: str) -> None:
        self._target = target
        self._peer = Peer(
            name=target.provider,
            base_url=target.base_url or BASE_URL,
            key_variable="OPENAI_API_KEY" if target.provider == "openai" else "",
            key=api_key,
        )
        self._client: openai.AsyncOpenAI | None = None

    @property
    def name(self) -> str:
        return self._target.provider

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Makes the call. Raises ProviderError."""
        if self._target.needs_key and not self._peer.key:
            raise no_key(self._peer)
        opening, message = self._begin(request)
        http = HttpStream(
            opening,
            peer=self._peer,
            timeout_s=request.timeout_s,
            idle_timeout_s=request.idle_timeout_s,
            sdk_error=openai.OpenAIError,
            translate=self._translated,
        )
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

    def _begin(
        self, request: ModelRequest
    ) -> tuple[AbstractAsyncContextManager[StreamedResponse], ResponsesMessage | ChatMessage]:
        """The call, not yet made, and what reads its answer."""
        # The arguments are checked by the API and by the contract suite, not by a TypedDict of the SDK's.
        create: Callable[..., Any]
        if self._target.api == "responses":
            create = self._sdk().responses.with_streaming_response.create
            body = responses_request(request, provider=self.name)
            message: ResponsesMessage | ChatMessage = ResponsesMessage(self._peer, request)
        else:
            create = self._sdk().chat.completions.with_streaming_response.create
            body = chat_request(request, provider=self.name, is_openai=not self._target.base_url)
            message = ChatMessage(self._peer, request)
        opening = cast(AbstractAsyncContextManager[StreamedResponse], create(**body, stream=True))
        return opening, message

    def _sdk(self) -> openai.AsyncOpenAI:
        if self._client is None:
            # An explicit key and base URL keep the SDK from looking for others in the environment.
            self._client = openai.AsyncOpenAI(
                api_key=self._peer.key or "none",
                base_url=self._peer.base_url,
                timeout=CONNECT_TIMEOUT,
                max_retries=0,
            )
        return self._client

    def _translated(self, error: openai.OpenAIError) -> ProviderError:
        match error:
            case openai.APIStatusError():
                body = error.body if isinstance(error.body, dict) else {}
                return status_failure(
                    self._peer,
                    error.status_code,
                    kind=error.code or error.type or "",
                    message=str(body.get("message") or error.message),
                    headers=error.response.headers,
                )
            case openai.APIConnectionError():
                return lost_connection(self._peer, error)
            case _:
                return malformed(self._peer, str(error))
