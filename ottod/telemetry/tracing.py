"""A session's spans, made of the events that it emits, and sent over OTLP/HTTP.

    invoke_agent        a turn; `invoke_workflow` for a workflow
    ├─ chat             a model call that answered
    └─ execute_tool     a tool call; a child session's turns are below the call that started it

What is traced is told by events anyway, and secrets have been taken out of them; nothing of what was said becomes an
attribute. An incarnation's turns link to those of the one before.

OpenTelemetry is imported when a session with traces begins, by its own process, and only then: it is an extra, costs
some 15 MiB, and has a thread. The thread is made with the first span, when the process is confined. Sending neither
blocks the loop nor the end of the session for longer than its bound; what cannot be sent by then is dropped.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from ottod import __version__
from ottod.core.trace_ids import parse_traceparent, span_id, trace_id, traceparent
from ottod.protocol import events as ev
from ottod.protocol.birth import Birth, Tracing
from ottod.telemetry import conventions as names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

MODULES = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace.export")
MAX_QUEUED_SPANS = 2048
"""That wait to be sent; more are dropped."""
SEND_EVERY_MS = 1000
MAX_OPEN_TOOLS = 1024
MAX_MESSAGE_CHARS = 500


class SessionTracer:
    """One incarnation's. `observe` hears of every event that it emits, in order."""

    def __init__(self, birth: Birth, tracing: Tracing) -> None:
        self._birth = birth
        self._tracing = tracing
        above = parse_traceparent(birth.traceparent)
        self.trace = above[0] if above is not None else trace_id(birth.session)
        self._above = above[1] if above is not None else 0
        self._provider: TracerProvider | None = None
        self._ids: Any = None
        self._tracer: Any = None
        self._turn: Any = None
        self._tools: dict[str, Any] = {}
        self._closing: asyncio.Future[None] | None = None

    @staticmethod
    def load() -> str:
        """Imports what is needed, which takes a while: for a thread. Why it cannot be had; empty if it can."""
        try:
            for module in MODULES:
                importlib.import_module(module)
        except ImportError as error:
            return f"traces need the extra `otel` (pip install 'otto-daemon[otel]'): {error}"
        return ""

    def traceparent_of(self, key: str) -> str:
        """What a child of the tool call with this key is under."""
        return traceparent(self.trace, span_id(key))

    # ------------------------------------------------------------ events

    def observe(self, event: ev.Event) -> None:
        """Opens and closes spans."""
        match event:
            case ev.TurnStarted():
                self.begin_turn(event.turn)
            case ev.ToolStarted():
                self._begin_tool(event)
            case ev.ToolCompleted() | ev.ToolFailed():
                self._end_tool(event)
            case ev.UsageUpdated() if event.usage.calls:
                self._chat(event)
            case ev.ModelRetried():
                self._retried(event)
            case ev.TurnCompleted():
                self._end_turn("", "")
            case ev.TurnFailed():
                self._end_turn(event.failure.code, event.failure.message)
            case ev.TurnCancelled():
                self._end_turn("cancelled", event.reason)
            case _:
                pass

    def _turn_id(self, incarnation: int, turn: int) -> int:
        return span_id(self._birth.session, incarnation, turn)

    def begin_turn(self, turn: int) -> None:
        """A turn begins, or one that an earlier incarnation began goes on."""
        from opentelemetry import trace as api

        birth = self._birth
        is_workflow = birth.spec.kind == "workflow"
        operation = names.INVOKE_WORKFLOW if is_workflow else names.INVOKE_AGENT
        attributes = {
            names.OPERATION_NAME: operation,
            names.WORKFLOW_NAME if is_workflow else names.AGENT_NAME: birth.spec.name,
            names.CONVERSATION_ID: birth.session,
            names.PROVIDER_NAME: birth.models[0].provider if birth.models else "none",
            names.REQUEST_MODEL: model_name(birth.models[0].model) if birth.models else "none",
            names.OTTO_TURN: turn,
            names.OTTO_INCARNATION: birth.incarnation,
        }
        links: Any = ()
        if birth.incarnation > 1:
            earlier = self._context(self._turn_id(birth.incarnation - 1, turn))
            links = (api.Link(earlier, {names.OTTO_INCARNATION: birth.incarnation - 1}),)
        self._turn = self._start(
            f"{operation} {birth.spec.name}",
            self._turn_id(birth.incarnation, turn),
            parent=self._above,
            attributes=attributes,
            links=links,
        )

    def _chat(self, event: ev.UsageUpdated) -> None:
        from opentelemetry.trace import SpanKind

        usage, now_ns = event.usage, time.time_ns()
        model = model_name(event.model)
        attributes: dict[str, Any] = {
            names.OPERATION_NAME: names.CHAT,
            names.PROVIDER_NAME: event.provider,
            names.REQUEST_MODEL: model,
            names.CONVERSATION_ID: self._birth.session,
            names.INPUT_TOKENS: usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
            names.OUTPUT_TOKENS: usage.output_tokens,
            names.CACHE_READ_TOKENS: usage.cache_read_tokens,
            names.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
        }
        if event.first_token_ms is not None:
            attributes[names.FIRST_CHUNK_S] = event.first_token_ms / 1e3
        span = self._start(
            f"{names.CHAT} {model}",
            0,
            parent=self._open_turn(),
            attributes=attributes,
            kind=SpanKind.CLIENT,
            start_ns=now_ns - event.duration_ms * 1_000_000,
        )
        span.end(now_ns)

    def _begin_tool(self, event: ev.ToolStarted) -> None:
        attributes = {
            names.OPERATION_NAME: names.EXECUTE_TOOL,
            names.TOOL_NAME: event.tool,
            names.TOOL_CALL_ID: event.call,
            names.CONVERSATION_ID: self._birth.session,
        }
        # The key by which the call itself is known, so that a child can be put below it.
        key = f"{self._birth.session}/{event.turn}/{event.step}/{event.call}"
        span = self._start(
            f"{names.EXECUTE_TOOL} {event.tool}", span_id(key), parent=self._open_turn(), attributes=attributes
        )
        if len(self._tools) < MAX_OPEN_TOOLS:
            self._tools[event.call] = span

    def _end_tool(self, event: ev.ToolCompleted | ev.ToolFailed) -> None:
        span = self._tools.pop(event.call, None)
        if span is None:
            return
        if isinstance(event, ev.ToolFailed):
            _fail(span, event.failure.code, event.failure.message)
        span.end()

    def _retried(self, event: ev.ModelRetried) -> None:
        if self._turn is not None:
            self._turn.add_event(
                names.RETRIED_EVENT,
                {
                    names.ERROR_TYPE: event.failure.code,
                    names.REQUEST_MODEL: model_name(event.model),
                    names.OTTO_ATTEMPT: event.attempt,
                },
            )

    def _end_turn(self, code: str, message: str) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            if code:
                _fail(turn, code, message)
            turn.end()

    # ------------------------------------------------------------ spans

    def _open_turn(self) -> int:
        return self._turn.get_span_context().span_id if self._turn is not None else self._above

    def _context(self, span: int) -> Any:
        from opentelemetry.trace import SpanContext, TraceFlags

        return SpanContext(self.trace, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    def _start(
        self,
        name: str,
        span: int,
        *,
        parent: int,
        attributes: dict[str, Any],
        links: Any = (),
        kind: Any = None,
        start_ns: int | None = None,
    ) -> Any:
        from opentelemetry import trace as api
        from opentelemetry.context import Context

        if self._tracer is None:
            self._open()
        context = Context()
        if parent:
            context = api.set_span_in_context(api.NonRecordingSpan(self._context(parent)), context)
        self._ids.next_span = span
        return self._tracer.start_span(
            name,
            context=context,
            kind=kind if kind is not None else api.SpanKind.INTERNAL,
            attributes=attributes,
            links=links,
            start_time=start_ns,
        )

    def _open(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

        trace = self.trace

        class Ids(RandomIdGenerator):
            """Ids as they follow from the session; a span that nobody has to find again gets any."""

            next_span = 0

            def generate_trace_id(self) -> int:
                return trace

            def generate_span_id(self) -> int:
                wanted, self.next_span = self.next_span, 0
                return wanted or super().generate_span_id()

        # An exporter that cannot send says so on standard error, again and again.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._ids = Ids()
        exporter = OTLPSpanExporter(
            endpoint=self._tracing.endpoint, headers=self._tracing.headers, timeout=self._tracing.timeout_s
        )
        self._provider = TracerProvider(
            resource=Resource({names.SERVICE_NAME: "otto", names.SERVICE_VERSION: __version__}),
            # All of a trace or nothing of it, in every process: the trace's id decides.
            sampler=TraceIdRatioBased(self._tracing.sample_ratio),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=SEND_EVERY_MS,
                export_timeout_millis=self._tracing.timeout_s * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("otto", __version__)

    # ------------------------------------------------------------ the end

    def close_soon(self) -> None:
        """Ends what is open and begins to send the rest, on a thread of its own."""
        if self._closing is not None or self._provider is None:
            return
        for span in self._tools.values():
            span.end()
        self._end_turn("suspended", "the incarnation ended before its turn did")
        loop = asyncio.get_running_loop()
        self._closing = loop.create_future()
        # Not the loop's pool: its threads are waited for, whatever they wait for themselves.
        threading.Thread(target=self._send_rest, args=(loop, self._closing), daemon=True).start()

    def _send_rest(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
        assert self._provider is not None
        self._provider.shutdown()
        try:
            loop.call_soon_threadsafe(done.set_result, None)
        except RuntimeError:
            pass  # The loop did not wait so long.

    async def closed(self) -> None:
        """Returns when everything has been sent, or the bound has passed."""
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=self._tracing.timeout_s)


def model_name(model: str) -> str:
    """A model as traces name it: not by a path."""
    return "script" if model.startswith("/") else model


def _fail(span: Any, code: str, message: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute(names.ERROR_TYPE, code)
    span.set_status(Status(StatusCode.ERROR, message[:MAX_MESSAGE_CHARS]))
