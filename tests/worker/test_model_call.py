"""What becomes of one model call: what it is told to have cost, how long it waits, and what holds it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import pytest

from ottod.core.redaction import Redactor
from ottod.core.throttle import MAX_PAUSE_S
from ottod.errors import ProviderError
from ottod.protocol.events import Event, ModelRetried
from ottod.protocol.model import (
    ModelEvent,
    ModelRequest,
    ModelResponse,
    ResponseCompleted,
    Text,
    TextDelta,
    UserMessage,
)
from ottod.protocol.specs import AgentSpec, ModelTarget
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import AskPermit, Permit, SettlePermit
from ottod.worker.model_call import Answer, ModelCaller

DEADLINE_S = 60.0
MODELS = tuple(ModelTarget(provider="p", adapter="openai", model=f"m{n}", price_input_usd=1.0) for n in range(2))
ASKED = (UserMessage(text="x" * 400),)


class Line:
    """A link to a root that hears everything."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.redactor = Redactor()
        self.outbox = self
        self.is_full = False

    def emit(self, event: Event) -> None:
        self.told.append(event)

    def redacted(self, value: Any) -> Any:
        return value


class Desk:
    """Root's permits: given at once, or when `open` says so."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[AskPermit] = []
        self.told: list[SettlePermit] = []

    def next_name(self) -> str:
        return f"1-{len(self.asked) + 1}"

    async def ask(self, wanted: AskPermit) -> Permit:
        self.asked.append(wanted)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.settle(SettlePermit(permit=wanted.permit, outcome="unused"))
            raise
        return Permit(permit=wanted.permit, target=wanted.target, max_output_tokens=wanted.max_output_tokens)

    def settle(self, settlement: SettlePermit) -> None:
        self.told.append(settlement)


class Model:
    """Does what it is told, once for each call: fails, or answers with a usage."""

    def __init__(self, *plays: ProviderError | Usage) -> None:
        self.plays = list(plays)
        self.calls = 0

    @property
    def name(self) -> str:
        return "p"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.calls += 1
        play = self.plays.pop(0)
        if isinstance(play, ProviderError):
            raise play
        yield TextDelta(text="hello")
        yield ResponseCompleted(response=ModelResponse(blocks=(Text(text="hello"),), stop="end", usage=play))

    async def aclose(self) -> None:
        pass


class Rig:
    """A caller between a fake root and fake models."""

    def __init__(self, *models: Model) -> None:
        self.line, self.desk, self.models = Line(), Desk(), models
        self.caller = ModelCaller(
            spec=AgentSpec(name="a", model="p:m0", fallback_models=tuple(f"p:m{n}" for n in range(1, len(models)))),
            targets=MODELS[: len(models)],
            api_keys={},
            schemas=(),
            link=cast(Any, self.line),
            permits=cast(Any, self.desk),
            stand_ins=cast(Any, Silent()),
            build=lambda target, key: models[int(target.model[1:])],
        )

    async def call(self) -> Answer:
        async def begun(permit: Permit, model: str) -> None:
            pass

        return await self.caller.call(self.caller.request(ASKED), turn=1, step=1, on_begun=begun)


class Silent:
    """Keeps no answer."""

    def keep(self, request: ModelRequest, response: ModelResponse) -> None:
        pass


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work()

    asyncio.run(main())


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("code", "has_begun", "outcome"),
    [
        ("overloaded", False, "refused"),
        ("overloaded", True, "unknown"),
        ("rate_limited", True, "unknown"),
        ("connection", False, "refused"),
        ("cut", False, "unknown"),
    ],
)
def test_only_what_was_refused_before_it_began_is_free(code: str, has_begun: bool, outcome: str) -> None:
    """A provider that fails within its answer has worked, though nobody has seen a word of it."""

    async def work() -> None:
        error = ProviderError("no", code=code, has_begun=has_begun)
        rig = Rig(Model(error))
        with pytest.raises(ProviderError):
            await rig.call()
        assert [told.outcome for told in rig.desk.told] == [outcome]

    run(work)


@pytest.mark.parametrize("usage", [Usage(), Usage(input_tokens=-9, output_tokens=-9), Usage(input_tokens=0)])
def test_a_provider_that_counts_nothing_is_counted(usage: Usage) -> None:
    """At least its texts are, and what they cost."""

    async def work() -> None:
        rig = Rig(Model(usage))
        answer = await rig.call()
        counted = answer.response.usage
        assert (counted.input_tokens, counted.output_tokens) == (100, 2) and counted.calls == 1
        rig.caller.count(answer)
        assert rig.desk.told[-1].usage == counted

    run(work)


def test_a_reservation_is_built_on_what_was_counted_and_on_no_estimate() -> None:
    """Four characters may be four tokens: without a count the bytes bound the input, or what was counted before."""

    async def work() -> None:
        usages = (Usage(), Usage(output_tokens=2), Usage(input_tokens=300), Usage(), Usage(cache_read_tokens=50))
        rig = Rig(Model(*usages, Usage()))
        for _ in range(len(usages) + 1):
            await rig.call()
        bounds = [asked.input_bound_tokens for asked in rig.desk.asked]
        assert bounds[0] >= 400 and bounds[1:] == [bounds[0], bounds[0], 300, 300, 50]

    run(work)


def test_nobody_is_believed_who_asks_for_years_of_patience() -> None:
    """A Retry-After beyond measure is waited for as long as any other pause lasts at most."""

    async def work() -> None:
        rig = Rig(Model(ProviderError("no", code="rate_limited", retryable=True, retry_after_s=3e7)))
        calling = asyncio.ensure_future(rig.call())
        await until(lambda: rig.line.told)
        (retried,) = rig.line.told
        assert isinstance(retried, ModelRetried) and retried.delay_ms <= MAX_PAUSE_S * 1000 * 1.25
        calling.cancel()
        await asyncio.wait({calling})

    run(work)


def test_another_model_is_asked_at_once_when_the_first_wants_hours() -> None:
    """Its retries would only be refused as well."""

    async def work() -> None:
        first = Model(ProviderError("no", code="rate_limited", retryable=True, retry_after_s=7200.0))
        rig = Rig(first, Model(Usage(input_tokens=1, output_tokens=1)))
        answer = await rig.call()
        assert (answer.target.model, first.calls) == ("m1", 1)

    run(work)


def test_a_paused_session_leaves_the_line_and_comes_back() -> None:
    """Its place is given back unused, and nothing begins before it goes on."""

    async def work() -> None:
        rig = Rig(Model(Usage(input_tokens=1, output_tokens=1)))
        rig.desk.open.clear()
        calling = asyncio.ensure_future(rig.call())
        await until(lambda: rig.desk.asked)
        rig.caller.pause()
        await until(lambda: rig.desk.told)
        rig.desk.open.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert [told.outcome for told in rig.desk.told] == ["unused"] and len(rig.desk.asked) == 1
        rig.caller.unpause()
        assert (await calling).response.usage.output_tokens == 1
        assert [asked.permit for asked in rig.desk.asked] == ["1-1", "1-2"]

    run(work)


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_call_that_is_cancelled_in_line_is_over(is_paused: bool) -> None:
    """Also while it is held back by a pause."""

    async def work() -> None:
        rig = Rig(Model())
        rig.desk.open.clear()
        calling = asyncio.ensure_future(rig.call())
        await until(lambda: rig.desk.asked)
        if is_paused:
            rig.caller.pause()
            await until(lambda: rig.desk.told)
        calling.cancel()
        await asyncio.wait({calling})
        assert calling.cancelled()
        await until(lambda: rig.desk.told)
        assert [told.outcome for told in rig.desk.told] == ["unused"]

    run(work)
