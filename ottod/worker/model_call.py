"""One model call as the turn sees it: permitted, streamed to the watchers, repeated when that makes sense, priced.

Every attempt has a permit of its own. Root says with which of the session's models it is made, and how much output
there may be; the attempt is in the journal, by its permit, before it is made.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from ottod.core import fallback
from ottod.core.backoff import delay_s
from ottod.core.conduct import system_prompt
from ottod.core.project_notes import with_notes
from ottod.core.throttle import MAX_PAUSE_S
from ottod.errors import Failure, OttoError, ProviderError
from ottod.protocol.events import MAX_EVENT_TEXT_BYTES, ContentDelta, ModelRerouted, ModelRetried, UsageUpdated
from ottod.protocol.model import Message, ModelRequest, ModelResponse, ResponseCompleted, TextDelta, ThinkingDelta
from ottod.protocol.model import ToolSchema as Schema
from ottod.protocol.specs import AgentSpec, Backoff, ModelTarget
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import AskPermit, Permit, SettlePermit
from ottod.providers.base import Provider
from ottod.providers.estimate import bound_frame_tokens, bound_tokens, counted_usage, counts_input, estimated_usage
from ottod.providers.prices import cost_usd_micros, quote
from ottod.providers.registry import build_provider, is_loaded, preload
from ottod.worker import last_call
from ottod.worker.link import Link
from ottod.worker.permits import Permits
from ottod.worker.stand_ins import StandIns
from ottod.worker.text import cut, pieces

WHOLE_CHARS = MAX_EVENT_TEXT_BYTES // 4
"""A text of no more characters fits an event, whatever they are."""
RETRY_BACKOFF = Backoff(base_s=0.5, factor=2.0, max_s=30.0, jitter=0.25)
MIN_OUTPUT_TOKENS = 256
"""A call with room for less output than this is not worth making."""
REFUSED_CODES = frozenset(
    {"rate_limited", "overloaded", "auth", "bad_request", "context_too_long", "refused", "connection"}
)
"""Failures with which a provider says no before it begins: they cost nothing, if nothing of an answer had come."""

SHORTENED = Failure(code="budget", message="a budget left no room for the whole answer")

MAX_REASON_BYTES = 500
"""Of the reason why another model answers."""

OnBegun = Callable[[Permit, str], Awaitable[None]]
"""Called with the permit and the model's name before an attempt is made."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A response with its price, and the permit of the attempt that gave it."""

    response: ModelResponse
    permit: Permit
    target: ModelTarget
    latency_ms: int
    first_token_ms: int | None = None
    shortened: Failure | None = None
    """It was cut where a budget had no room for more."""


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a conversation, and what a provider counted for it."""

    messages: tuple[Message, ...]
    input_tokens: int


class ModelCaller:
    """Makes the session's model calls. A provider is built with the first call that needs it.

    `notes` are what the agent is told of its project, behind its own prompt.
    """

    def __init__(
        self,
        *,
        spec: AgentSpec,
        targets: tuple[ModelTarget, ...],
        api_keys: Mapping[str, str],
        schemas: tuple[Schema, ...],
        link: Link,
        permits: Permits,
        stand_ins: StandIns,
        notes: str = "",
        build: Callable[[ModelTarget, str], Provider] = build_provider,
    ) -> None:
        self._spec = spec
        self._system = with_notes(system_prompt(spec), notes)
        self._targets = targets
        self._api_keys = api_keys
        self._schemas = schemas
        self._link = link
        self._permits = permits
        self._stand_ins = stand_ins
        self._build = build
        self._providers: dict[int, Provider] = {}
        self._counted: dict[int, _Counted] = {}
        names = (spec.model, *spec.fallback_models)
        self._summary_target = names.index(spec.context.summary_model) if spec.context.summary_model in names else 0
        """Of the calls for summaries."""
        self._answering = _name(targets[0])
        """Who answers now, as was told last."""
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._asking: asyncio.Future[Permit] | None = None
        """The question whether an attempt may be made."""
        self._tried = -1
        """The last model that the present call has tried in vain."""
        self._why = ""
        """Why it was in vain."""
        self.total = Usage()

    def request(self, messages: tuple[Message, ...]) -> ModelRequest:
        """The request for a conversation, for the model that the agent names."""
        return ModelRequest(
            model=self._targets[0].model,
            messages=messages,
            system=self._system,
            tools=self._schemas,
            max_output_tokens=self._spec.max_output_tokens,
            temperature=self._spec.temperature,
            thinking_tokens=self._spec.thinking_tokens,
            timeout_s=self._targets[0].timeout_s,
            idle_timeout_s=self._targets[0].idle_timeout_s,
        )

    def last_request(self, messages: tuple[Message, ...], *, max_bytes: int) -> ModelRequest:
        """The request to hand back what there is, told in so many bytes."""
        return replace(
            self.request(last_call.last_messages(messages, max_bytes=max_bytes)),
            system=last_call.SYSTEM,
            tools=(),
            max_output_tokens=min(self._spec.max_output_tokens, last_call.MAX_OUTPUT_TOKENS),
            thinking_tokens=0,
        )

    @property
    def fixed_bytes(self) -> int:
        """What every request has beside the conversation: the system prompt and the tools."""
        tools = msgspec.json.encode(self._schemas) if self._schemas else b""
        return len(self._system.encode("utf-8", "replace")) + len(tools)

    async def call(
        self, request: ModelRequest, *, turn: int, step: int, on_begun: OnBegun, is_last: bool = False
    ) -> Answer:
        """Streams one response, or what stands in for it. `is_last`: it hands back partial work, and only models do.

        Raises: BudgetReached; RefusedError if root does not let the call be made; ProviderError once nothing is left
        to try.
        """
        place = _Place(turn=turn, step=step, on_begun=on_begun, is_last=is_last)
        resorts = tuple(r for r in self._spec.fallback if r == "model") if is_last else self._spec.fallback
        left = list(fallback.chain(resorts, models=len(self._targets)))
        if request.purpose == "summary":
            # What stands in for an answer is no summary.
            resorts, left = (), [fallback.Step(kind="model", target=self._summary_target)]
        error = ProviderError("no model was asked")
        self._tried, self._why, asked = -1, "", 0
        while left:
            resort = left.pop(0)
            match resort.kind:
                case "model":
                    if resort.target <= self._tried:
                        continue
                    try:
                        answer = await self._ask_model(request, resort.target, place, has_more=bool(left))
                    except ProviderError as failed:
                        if not fallback.falls_back(failed.failure()):
                            raise
                        error = failed
                    else:
                        if request.purpose == "answer" and not is_last:
                            self._stand_ins.keep(request, answer.response)
                        return answer
                case "cache":
                    earlier = await self._stand_ins.recall(request)
                    if earlier is not None:
                        return self._stand_in(earlier, "cache", error)
                case "rule":
                    return self._stand_in(self._stand_ins.rule(), "rule", error)
                case "human":
                    asked += 1
                    if await self._stand_ins.try_again(error.failure(), turn=turn, step=step, asked=asked):
                        left = list(fallback.chain(resorts, models=len(self._targets)))
                        self._tried = -1
        raise error

    async def _ask_model(self, request: ModelRequest, wanted: int, place: _Place, *, has_more: bool) -> Answer:
        """An answer of the wanted model, or of one that root names instead; tried as often as the provider's
        `max_retries` says. `has_more`: something else is left to try, so nobody waits for a breaker to close.

        Raises: as `call`.
        """
        attempts: Counter[int] = Counter()
        while True:
            used = wanted
            try:
                permit = await self._leave(request, wanted, place, attempts.total() + 1)
                used = permit.target
                return await self._attempt(request, permit, place)
            except ProviderError as error:
                failure = error.failure()
                attempts[used] += 1
                is_open = failure.code == "breaker_open"
                is_used_up = attempts[used] > self._targets[used].max_retries
                if has_more and (failure.retry_after_s or 0.0) > MAX_PAUSE_S:
                    is_used_up = True  # Nobody waits for so long while there is something else to try.
                if not failure.retryable or is_used_up or (is_open and has_more):
                    is_rerouted = is_open and fallback.may_reroute(self._spec.fallback)
                    self._tried = len(self._targets) - 1 if is_rerouted else used
                    self._why = failure.message
                    raise
                await self._wait(attempts[used], failure, self._targets[used])

    def _stand_in(self, response: ModelResponse, name: str, error: ProviderError) -> Answer:
        """An answer that nobody was paid for."""
        self._answers(name, error.message)
        permit = Permit(permit="", max_output_tokens=0)
        return Answer(response=response, permit=permit, target=self._targets[0], latency_ms=0)

    @property
    def asking(self) -> int:
        """1 while a human is asked whether to try again."""
        return self._stand_ins.asking

    def count(self, answer: Answer) -> None:
        """Adds a response to what was consumed, once it is in the journal, and says so."""
        if not answer.permit.permit:
            return
        usage = answer.response.usage
        self.total = self.total + usage
        self._tell(usage, answer.target, answer)
        self._permits.settle(
            SettlePermit(
                permit=answer.permit.permit,
                outcome="completed",
                target=answer.permit.target,
                usage=usage,
                latency_ms=answer.latency_ms,
                first_ms=answer.first_token_ms or 0,
            )
        )

    def restore(self, usages: Sequence[Usage]) -> None:
        """Takes over what earlier incarnations consumed, and says what that amounts to."""
        if usages:
            known = (usage if usage.usd_micros is not None else priced(self._targets[0], usage) for usage in usages)
            self.total = sum(known, start=Usage())
            # The last response may have been noted by a process that never came to tell of it.
            self._tell(Usage(), self._targets[0])

    def _tell(self, usage: Usage, target: ModelTarget, answer: Answer | None = None) -> None:
        self._link.emit(
            UsageUpdated(
                model=target.model,
                provider=target.provider,
                usage=usage,
                total=self.total,
                duration_ms=answer.latency_ms if answer is not None else 0,
                first_token_ms=answer.first_token_ms if answer is not None else None,
            )
        )

    # ------------------------------------------------------------ permits

    def pause(self) -> None:
        """From now on no attempt begins. One that stands in line leaves it: its turn could come at any time."""
        self._unpaused.clear()
        if self._asking is not None:
            self._asking.cancel()

    def unpause(self) -> None:
        """What was held back begins."""
        self._unpaused.set()

    async def _leave(self, request: ModelRequest, target: int, place: _Place, attempt: int) -> Permit:
        """Leave to make an attempt, once nobody keeps the session from it. Raises: as `Permits.ask`."""
        while True:
            await self._unpaused.wait()
            asking = asyncio.ensure_future(self._permits.ask(self._wanted(request, target, place, attempt)))
            self._asking = asking
            try:
                await asyncio.wait({asking})
            finally:
                self._asking = None
                asking.cancel()
            if not asking.cancelled():
                return asking.result()

    def _wanted(self, request: ModelRequest, target: int, place: _Place, attempt: int) -> AskPermit:
        bounds = [self._input_bound(index, request) for index in range(len(self._targets))]
        pairs = zip(self._targets, bounds, strict=True)
        return AskPermit(
            permit=self._permits.next_name(),
            turn=place.turn,
            step=place.step,
            attempt=attempt,
            target=target,
            input_tokens=estimated_usage(request, ()).input_tokens,
            input_bound_tokens=max(bounds),
            max_output_tokens=request.max_output_tokens,
            min_output_tokens=min(
                request.max_output_tokens, last_call.MIN_OUTPUT_TOKENS if place.is_last else MIN_OUTPUT_TOKENS
            ),
            quotes=tuple(quote(target, input_tokens=bound) for target, bound in pairs),
            is_last=place.is_last,
        )

    def _input_bound(self, index: int, request: ModelRequest) -> int:
        """What the input cannot exceed: what was counted last for the same beginning, and the bytes behind it."""
        is_framed = self._targets[index].adapter != "scripted"
        counted = self._counted.get(index)
        if (
            counted is not None
            and request.tools == self._schemas
            and _begins_with(request.messages, counted.messages)
        ):
            rest = request.messages[len(counted.messages) :]
            return counted.input_tokens + bound_tokens(rest, is_framed=is_framed)
        frame = bound_frame_tokens(request, is_framed=is_framed)
        return frame + bound_tokens(request.messages, is_framed=is_framed)

    async def _attempt(self, request: ModelRequest, permit: Permit, place: _Place) -> Answer:
        """One attempt, and what became of it told to root; of an answer it is told by `count`."""
        target = self._targets[permit.target]
        told = SettlePermit(permit=permit.permit, outcome="unused", target=permit.target)
        began_s = time.monotonic()
        streamed = _Progress()
        try:
            if request.purpose == "answer":
                self._answers(_name(target), permit.reason or self._why)
            await place.on_begun(permit, target.model)
            made = replace(
                request,
                model=target.model,
                max_output_tokens=permit.max_output_tokens,
                timeout_s=target.timeout_s,
                idle_timeout_s=target.idle_timeout_s,
            )
            told = replace(told, outcome="unknown")
            began_s = time.monotonic()
            try:
                response = await self._stream(permit.target, made, f"{place.turn}.{place.step}", streamed)
            except ProviderError as error:
                has_begun = streamed.has_begun or error.has_begun
                outcome = "refused" if error.code in REFUSED_CODES and not has_begun else "unknown"
                told = replace(told, outcome=outcome, code=error.code, retry_after_s=error.retry_after_s)
                raise
        except BaseException as error:
            if isinstance(error, OttoError) and not told.code:
                told = replace(told, code=error.code)
            first_ms = streamed.first_ms(began_s)
            self._permits.settle(replace(told, latency_ms=_ms_since(began_s), first_ms=first_ms))
            raise
        usage = response.usage
        is_counted = target.adapter == "scripted" or counts_input(usage)
        if target.adapter != "scripted":
            usage = counted_usage(usage, made, response.blocks)
        usage = priced(target, usage)
        total_input = usage.total_tokens - usage.output_tokens
        if is_counted and not permit.is_last and request.purpose == "answer":
            self._counted[permit.target] = _Counted(messages=request.messages, input_tokens=total_input)
        is_shortened = response.stop == "max_tokens" and permit.max_output_tokens < request.max_output_tokens
        return Answer(
            response=replace(response, usage=usage),
            permit=permit,
            target=target,
            latency_ms=_ms_since(began_s),
            first_token_ms=streamed.first_ms(began_s),
            shortened=SHORTENED if is_shortened else None,
        )

    def _answers(self, name: str, reason: str) -> None:
        """Says who answers, if it is somebody else than before."""
        if name != self._answering:
            text = cut(reason or "it is asked again", MAX_REASON_BYTES)[0]
            self._link.emit(ModelRerouted(from_model=self._answering, to_model=name, reason=text))
            self._answering = name

    async def _wait(self, attempt: int, failure: Failure, target: ModelTarget) -> None:
        asked_s = min(failure.retry_after_s or 0.0, MAX_PAUSE_S)
        seconds = delay_s(RETRY_BACKOFF, attempt, random=random.random(), at_least_s=asked_s)
        event = ModelRetried(model=target.model, attempt=attempt, delay_ms=int(seconds * 1000), failure=failure)
        self._link.emit(event)
        await asyncio.sleep(seconds)

    # ------------------------------------------------------------ the stream

    async def _stream(self, index: int, request: ModelRequest, item: str, progress: _Progress) -> ModelResponse:
        provider = self._providers.get(index)
        if provider is None:
            target = self._targets[index]
            if not is_loaded(target.adapter):
                await asyncio.to_thread(preload, (target.adapter,))
            provider = self._providers[index] = self._build(target, self._api_keys.get(target.provider, ""))
        link = self._link
        emit = link.emit
        said, thought = link.redactor.stream(), link.redactor.stream()
        async with aclosing(provider.stream(request)) as events:
            async for event in events:
                if not progress.has_begun:
                    progress.begin()
                if request.purpose == "summary" and type(event) is not ResponseCompleted:
                    pass  # Nobody watches it being written: it is told when it is whole.
                elif type(event) is TextDelta:
                    text = said.feed(event.text)
                    if not text:
                        pass  # It is held back until it is known that it is no secret.
                    elif len(text) <= WHOLE_CHARS:
                        emit(ContentDelta(stream="text", text=text, item=item))
                    else:
                        for piece in pieces(text):
                            emit(ContentDelta(stream="text", text=piece, item=item))
                elif type(event) is ThinkingDelta:
                    for piece in pieces(thought.feed(event.text)):
                        emit(ContentDelta(stream="reasoning", text=piece, item=item))
                elif type(event) is ResponseCompleted:
                    for piece in pieces(thought.rest()):
                        emit(ContentDelta(stream="reasoning", text=piece, item=item))
                    for piece in pieces(said.rest()):
                        emit(ContentDelta(stream="text", text=piece, item=item))
                    # The conversation has what the watchers have, and the journal: nobody gets the secret back.
                    return link.redacted(event.response)
                if link.outbox.is_full:
                    # Root owes too many acknowledgements: stop reading the model's stream until it has caught up.
                    await link.room()
        raise ProviderError("the stream ended without a response", code="cut", retryable=True)

    async def aclose(self) -> None:
        """Closes connections."""
        await self._stand_ins.aclose()
        for provider in self._providers.values():
            await provider.aclose()


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where in its session a call is made, and who is told before an attempt."""

    turn: int
    step: int
    on_begun: OnBegun
    is_last: bool


class _Progress:
    """How far a stream has come."""

    def __init__(self) -> None:
        self._first_s = 0.0

    @property
    def has_begun(self) -> bool:
        return self._first_s > 0

    def begin(self) -> None:
        self._first_s = time.monotonic()

    def first_ms(self, began_s: float) -> int:
        """How long it took until the answer began; 0 if it has not."""
        return max(1, int((self._first_s - began_s) * 1000)) if self.has_begun else 0


def _name(target: ModelTarget) -> str:
    return f"{target.provider}:{target.model}"


def _begins_with(messages: tuple[Message, ...], beginning: tuple[Message, ...]) -> bool:
    """Whether a conversation is the same one, gone on with: its messages are kept, not made anew."""
    same = len(beginning)
    return same <= len(messages) and all(messages[i] is beginning[i] for i in range(same))


def _ms_since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1000)


def priced(target: ModelTarget, usage: Usage) -> Usage:
    """One call's consumption with its price."""
    return replace(usage, usd_micros=cost_usd_micros(target, usage), calls=1)
