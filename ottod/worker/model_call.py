"""One model call as the turn sees it: streamed to the watchers, repeated when that makes sense, priced."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from ottod.core.backoff import delay_s
from ottod.errors import Failure, ProviderError
from ottod.protocol.events import MAX_EVENT_TEXT_BYTES, ContentDelta, ModelRetried, UsageUpdated
from ottod.protocol.model import Message, ModelRequest, ModelResponse, ResponseCompleted, TextDelta, ThinkingDelta
from ottod.protocol.model import ToolSchema as Schema
from ottod.protocol.specs import AgentSpec, Backoff, ModelTarget
from ottod.protocol.usage import Usage
from ottod.providers.base import Provider
from ottod.providers.prices import cost_usd_micros
from ottod.providers.registry import build_provider
from ottod.worker.link import Link
from ottod.worker.text import pieces

WHOLE_CHARS = MAX_EVENT_TEXT_BYTES // 4
"""A text of no more characters fits an event, whatever they are."""
RETRY_BACKOFF = Backoff(base_s=0.5, factor=2.0, max_s=30.0, jitter=0.25)


class ModelCaller:
    """Makes the session's model calls. The provider is built with the first one."""

    def __init__(
        self,
        *,
        spec: AgentSpec,
        target: ModelTarget,
        api_key: str,
        schemas: tuple[Schema, ...],
        link: Link,
        build: Callable[[ModelTarget, str], Provider] = build_provider,
    ) -> None:
        self._spec = spec
        self._target = target
        self._api_key = api_key
        self._schemas = schemas
        self._link = link
        self._build = build
        self._provider: Provider | None = None
        self.total = Usage()

    def request(self, messages: tuple[Message, ...]) -> ModelRequest:
        """The request for a conversation."""
        return ModelRequest(
            model=self._target.model,
            messages=messages,
            system=self._spec.system_prompt,
            tools=self._schemas,
            max_output_tokens=self._spec.max_output_tokens,
            temperature=self._spec.temperature,
            thinking_tokens=self._spec.thinking_tokens,
            timeout_s=self._target.timeout_s,
            idle_timeout_s=self._target.idle_timeout_s,
        )

    async def call(self, request: ModelRequest, *, item: str) -> ModelResponse:
        """Streams one response. Raises ProviderError once retrying is pointless or used up."""
        attempt = 1
        while True:
            try:
                return await self._stream(request, item)
            except ProviderError as error:
                failure = error.failure()
                if not failure.retryable or attempt > self._target.max_retries:
                    raise
                await self._wait(attempt, failure)
                attempt += 1

    def count(self, response: ModelResponse) -> None:
        """Adds a response to what was consumed, once it is in the journal, and says so."""
        usage = priced(self._target, response.usage)
        self.total = self.total + usage
        self._tell(usage)

    def restore(self, usages: Sequence[Usage]) -> None:
        """Takes over what earlier incarnations consumed, and says what that amounts to."""
        if usages:
            self.total = sum((priced(self._target, usage) for usage in usages), start=Usage())
            # The last response may have been noted by a process that never came to tell of it.
            self._tell(Usage())

    def _tell(self, usage: Usage) -> None:
        self._link.emit(
            UsageUpdated(model=self._target.model, provider=self._target.provider, usage=usage, total=self.total)
        )

    async def _wait(self, attempt: int, failure: Failure) -> None:
        seconds = delay_s(RETRY_BACKOFF, attempt, random=random.random(), at_least_s=failure.retry_after_s or 0.0)
        event = ModelRetried(model=self._target.model, attempt=attempt, delay_ms=int(seconds * 1000), failure=failure)
        self._link.emit(event)
        await asyncio.sleep(seconds)

    async def _stream(self, request: ModelRequest, item: str) -> ModelResponse:
        if self._provider is None:
            self._provider = self._build(self._target, self._api_key)
        link = self._link
        emit = link.emit
        async with aclosing(self._provider.stream(request)) as events:
            async for event in events:
                if type(event) is TextDelta:
                    text = event.text
                    if len(text) <= WHOLE_CHARS:
                        emit(ContentDelta(stream="text", text=text, item=item))
                    else:
                        for piece in pieces(text):
                            emit(ContentDelta(stream="text", text=piece, item=item))
                elif type(event) is ThinkingDelta:
                    for piece in pieces(event.text):
                        emit(ContentDelta(stream="reasoning", text=piece, item=item))
                elif type(event) is ResponseCompleted:
                    return event.response
                if link.outbox.is_full:
                    # Root owes too many acknowledgements: stop reading the model's stream until it has caught up.
                    await link.room()
        raise ProviderError("the stream ended without a response", code="cut", retryable=True)

    async def aclose(self) -> None:
        if self._provider is not None:
            await self._provider.aclose()


def priced(target: ModelTarget, usage: Usage) -> Usage:
    """One call's consumption with its price."""
    return replace(usage, usd_micros=cost_usd_micros(target, usage), calls=1)
