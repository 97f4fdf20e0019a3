"""The scripted provider: a deterministic model that reads its lines from a file, and fails where the file says so.

It needs no network and no key. Demonstrations, tests and benchmarks run on it, so its faults are real ones: a
crash kills the process that plays it, a leak allocates, a spin blocks the loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from ottod.errors import ProviderError
from ottod.protocol.model import (
    Block,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    ResponseCompleted,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegun,
)
from ottod.protocol.specs import ModelTarget
from ottod.protocol.usage import Usage
from ottod.providers.estimate import estimated_usage
from ottod.providers.failures import Peer, cut, malformed, status_failure, too_slow
from ottod.settings.script import (
    Measured,
    NoAlternativeError,
    Reply,
    Scene,
    choose,
    crash_order,
    fill,
    load_script,
    scene,
    values_for,
)

YIELD_EVERY_EVENTS = 64
"""A stream without delays lets other tasks run this often."""


class ScriptedProvider:
    """Plays the script at `target.model`. Raises ConfigError if it is wrong."""

    def __init__(self, target: ModelTarget) -> None:
        self._target = target
        self._path = Path(target.model)
        self._script = load_script(self._path)
        self._peer = Peer(name=target.provider, base_url=str(self._path), key_variable="")
        self._attempts: dict[int, int] = {}
        self._leaked: list[bytearray] = []

    @property
    def name(self) -> str:
        return self._target.provider

    async def aclose(self) -> None:
        """There is nothing to close."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Plays the turn that belongs to the request. Raises ProviderError."""
        now = scene(request)
        attempt = self._attempts.get(now.step, 0)
        if not now.is_summary:
            self._attempts[now.step] = attempt + 1
        try:
            reply = choose(self._script, now, attempt)
        except NoAlternativeError as error:
            raise ProviderError(f"{self.name}: {self._path.name}: {error}", code="bad_request") from error
        clock = _Clock(self._peer, request)
        if reply is None:
            reply = Reply(text=f"The script {self._path.name} has ended: it has no turn {now.step + 1}.")
        if reply.stream is not None:
            # One generator, not one inside another: measured emission should measure little of itself.
            said: tuple[Block, ...] = (Text(text=f"Streamed {reply.stream.events} events."),)
            return _measured(reply.stream, clock, self._response(request, now, reply, said))
        return self._play(request, now, reply, clock)

    async def _play(
        self, request: ModelRequest, now: Scene, reply: Reply, clock: _Clock
    ) -> AsyncGenerator[ModelEvent, None]:
        armed = bool(reply.faults()) and not self._has_struck(reply)
        chunks = self._chunks(reply, now)
        strike_at = min(reply.after_chunks if reply.cut is None else reply.cut, len(chunks))
        delay_s = (self._script.delay_ms if reply.delay_ms is None else reply.delay_ms) / 1000
        for i, chunk in enumerate(chunks):
            if armed and i == strike_at:
                await self._strike(reply, clock)
            if i and delay_s:
                await clock.wait(delay_s)
            elif i % YIELD_EVERY_EVENTS == 0:
                await asyncio.sleep(0)
            yield chunk
        if armed and strike_at == len(chunks):
            await self._strike(reply, clock)
        blocks = _blocks(reply, now, self.name, malformed=armed and reply.malformed)
        for block in blocks:
            if isinstance(block, ToolCall):
                yield ToolCallBegun(call=block.call, tool=block.tool)
        yield ResponseCompleted(response=self._response(request, now, reply, blocks))

    def _chunks(self, reply: Reply, now: Scene) -> list[ModelEvent]:
        """The deltas in order: reasoning, then text, in pieces of `chunk` characters."""
        size = reply.chunk or self._script.chunk
        values = values_for(reply, now)
        reasoning, text = fill(reply.reasoning, values), fill(reply.text, values)
        thinking = [ThinkingDelta(text=reasoning[i : i + size]) for i in range(0, len(reasoning), size)]
        return [*thinking, *(TextDelta(text=text[i : i + size]) for i in range(0, len(text), size))]

    def _has_struck(self, reply: Reply) -> bool:
        """Whether the fault's marker says that it happened before; leaves the marker if not."""
        if not reply.marker:
            return False
        try:
            (self._path.parent / reply.marker).touch(exist_ok=False)
        except FileExistsError:
            return True
        except OSError as error:
            why = f"{self.name}: cannot write marker {reply.marker}: {error.strerror}"
            raise ProviderError(why, code="bad_request", mend="name a writable path in the script") from error
        return False

    async def _strike(self, reply: Reply, clock: _Clock) -> None:
        """The fault happens. Returns if the turn goes on after it."""
        if reply.error is not None:
            raise self._refusal(reply)
        if reply.cut is not None:
            raise cut(self._peer, "as scripted")
        if reply.malformed and not reply.tools:
            raise malformed(self._peer, "as scripted")
        if reply.stall is not None:
            await clock.wait(reply.stall)
        elif reply.spin is not None:
            end_ns = time.monotonic_ns() + int(reply.spin * 1e9)
            while time.monotonic_ns() < end_ns:
                pass
        elif reply.leak_bytes is not None:
            # Written, not only reserved: a leak that no page backs kills nobody.
            self._leaked.append(bytearray(b"\xa5") * reply.leak_bytes)
        elif reply.crash:
            _crash(reply.crash)

    def _refusal(self, reply: Reply) -> ProviderError:
        assert reply.error is not None
        if not reply.error.status:
            why = f"{self.name}: cannot connect ({self._path.name}): {reply.error.message or 'as scripted'}"
            return ProviderError(why, code="connection", retryable=True)
        after_s = reply.error.retry_after_s
        return status_failure(
            self._peer,
            reply.error.status,
            message=reply.error.message or "as scripted",
            headers={} if after_s is None else {"retry-after": str(after_s)},
        )

    def _response(self, request: ModelRequest, now: Scene, reply: Reply, blocks: tuple[Block, ...]) -> ModelResponse:
        return ModelResponse(
            blocks=blocks,
            stop=reply.stop or ("tool_calls" if reply.tools else "end"),
            usage=scripted_usage(request, reply, blocks),
            model=request.model,
            response=f"scripted-{now.step + 1}",
        )


class _Clock:
    """The deadlines of one call."""

    def __init__(self, peer: Peer, request: ModelRequest) -> None:
        self._peer = peer
        self._idle_timeout_s = request.idle_timeout_s
        self._timeout_s = request.timeout_s
        self._deadline_ns = time.monotonic_ns() + int(request.timeout_s * 1e9)

    async def wait(self, seconds: float) -> None:
        """Silence of that length, or as much of it as the deadlines allow. Raises ProviderError."""
        left_s = max(0.0, (self._deadline_ns - time.monotonic_ns()) / 1e9)
        allowed_s = min(left_s, self._idle_timeout_s)
        await asyncio.sleep(min(seconds, allowed_s))
        if seconds > allowed_s:
            idle = self._idle_timeout_s <= left_s
            raise too_slow(self._peer, timeout_s=self._idle_timeout_s if idle else self._timeout_s, idle=idle)

    def check(self) -> None:
        """Raises ProviderError when the whole call has taken too long."""
        if time.monotonic_ns() > self._deadline_ns:
            raise too_slow(self._peer, timeout_s=self._timeout_s, idle=False)


async def _measured(spec: Measured, clock: _Clock, response: ModelResponse) -> AsyncGenerator[ModelEvent, None]:
    """Deltas `<scheduled ns> <actual ns> <i>`, padded with spaces; both times are CLOCK_MONOTONIC.

    The schedule is fixed at the start. An emitter that falls behind emits without pause until it has caught up, so
    that latency against the schedule shows the delay instead of hiding it.
    """
    start_ns = time.monotonic_ns()
    interval_ns = 1e9 / spec.rate_hz if spec.rate_hz else 0.0
    for i in range(spec.events):
        now_ns = time.monotonic_ns()
        scheduled_ns = start_ns + int(i * interval_ns) if interval_ns else now_ns
        if i % YIELD_EVERY_EVENTS == YIELD_EVERY_EVENTS - 1:
            clock.check()
            await asyncio.sleep(0)
            now_ns = time.monotonic_ns()
        while now_ns < scheduled_ns:
            # Loops count in milliseconds and may wake early; nothing leaves before its time.
            await asyncio.sleep(-(-(scheduled_ns - now_ns) // 1_000_000) / 1000)
            now_ns = time.monotonic_ns()
        yield TextDelta(text=f"{scheduled_ns} {now_ns} {i}".ljust(spec.text_bytes))
    yield ResponseCompleted(response=response)


def _blocks(reply: Reply, now: Scene, provider: str, *, malformed: bool) -> tuple[Block, ...]:
    """The whole response. Malformed arguments are the first half of what they should have been."""
    values = values_for(reply, now)
    blocks: list[Block] = []
    if reply.reasoning:
        blocks.append(Thinking(text=fill(reply.reasoning, values), provider=provider))
    if reply.text:
        blocks.append(Text(text=fill(reply.text, values)))
    for i, call in enumerate(reply.tools):
        arguments = fill(call.arguments, values)
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        if malformed:
            text = text[: max(1, len(text) // 2)]
        call_id = call.call or f"call_{now.step + 1}_{i + 1}"
        blocks.append(ToolCall(call=call_id, tool=call.name, arguments=text))
    return tuple(blocks)


def scripted_usage(request: ModelRequest, reply: Reply, blocks: tuple[Block, ...]) -> Usage:
    """What the script says was consumed, or an estimate from the texts."""
    if reply.usage is None:
        return estimated_usage(request, blocks)
    return Usage(calls=1, **msgspec.structs.asdict(reply.usage))


def _crash(order: str) -> None:
    """Ends this process as ordered, at once."""
    name, status = crash_order(order)
    if not name:
        os._exit(status)
    os.kill(os.getpid(), signal.Signals[name])
