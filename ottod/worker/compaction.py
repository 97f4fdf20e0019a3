"""Keeps a session's conversation within its model's context: a summary takes the place of its older messages.

The summary is a model call like any other: permitted, paid for, and in the journal before anything follows from it,
as one entry that also says what it replaces. An incarnation that is lost before that entry makes the call again; one
that is lost behind it has the shorter conversation. Where no summary can be had, old tool results lose their texts.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib

from msgspec.structs import replace

from ottod.core.context import (
    GROWTH_SHARE,
    SUMMARY_ORDER,
    ContextMeter,
    Measure,
    cut_at,
    elided,
    shortened,
    usable_tokens,
)
from ottod.core.turn import Shortened, TurnMachine, text_of
from ottod.errors import OttoError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.events import ItemCompleted, ItemStarted, LogWarning
from ottod.protocol.model import Message, UserMessage
from ottod.protocol.specs import AgentSpec
from ottod.protocol.worker_requests import Permit
from ottod.worker.artifacts import Artifacts
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.model_call import Answer, ModelCaller
from ottod.worker.slices import last_words
from ottod.worker.text import cut

SUM_UP_S = 60.0
"""For the summary at the end of a time slice."""
KEEP_S = 1.0
"""At a session's end, for the artifacts of its summaries to be taken by root."""

KEY_DIGEST_CHARS = 16
"""Of a summary's digest, in the key by which root knows its artifact."""


class Compactor:
    """One session's. The machine's conversation is what it shortens."""

    def __init__(
        self,
        *,
        spec: AgentSpec,
        window_tokens: int | None,
        meter: ContextMeter,
        machine: TurnMachine,
        journal: JournalWriter,
        link: Link,
        models: ModelCaller,
        artifacts: Artifacts,
        session: str,
    ) -> None:
        self._spec = spec
        self._usable_tokens = usable_tokens(window_tokens, spec.max_output_tokens) if window_tokens else None
        self.meter = meter
        self._machine = machine
        self._journal = journal
        self._link = link
        self._models = models
        self._artifacts = artifacts
        self._session = session
        self._keeping: set[asyncio.Task[None]] = set()
        self._not_before_tokens = 0
        """A conversation that could not be made much smaller is left alone until it has grown."""

    async def fit(self, *, turn: int, step: int) -> None:
        """Shortens the conversation if it has passed its threshold. Raises StorageError."""
        if self._usable_tokens is None:
            return
        context = self._spec.context
        tokens = self.meter.tokens(self._machine.messages)
        if tokens > max(context.compact_at * self._usable_tokens, self._not_before_tokens):
            await self.shorten(turn=turn, step=step)

    async def shorten(self, *, turn: int, step: int, is_urgent: bool = False) -> bool:
        """Makes the conversation smaller, and says whether it could. `is_urgent`: the provider has refused it.

        Raises StorageError.
        """
        messages = self._machine.messages
        prefixes = self.meter.prefixes(messages)
        usable = self._usable_tokens or prefixes[-1]
        self._not_before_tokens = int(prefixes[-1] + GROWTH_SHARE * usable)
        context = self._spec.context
        at = cut_at(messages, prefixes, keep_tokens=int(context.keep_recent * usable))
        if at is not None and await self._replace(messages, prefixes, at, turn=turn, step=step):
            return True
        return await self._elide(messages, prefixes, at if not is_urgent else at or len(messages), turn, step)

    async def sum_up(self, messages: tuple[Message, ...]) -> str:
        """What the whole conversation came to, for an incarnation that begins with nothing else: a summary that is
        noted and kept as any other, or, if there is none, what the model said last. Raises StorageError."""
        machine, text = self._machine, ""
        prefixes = self.meter.prefixes(messages)
        try:
            async with asyncio.timeout(SUM_UP_S):
                text = await self._replace(
                    messages, prefixes, len(messages), turn=machine.turn, step=machine.step_number
                )
        except TimeoutError:
            self._tell_none(f"it took longer than {SUM_UP_S:g} s")
        return text or await last_words(messages)

    async def _replace(
        self, messages: tuple[Message, ...], prefixes: list[int], at: int, *, turn: int, step: int
    ) -> str:
        """The summary that stands there now; empty if there is none."""
        self._link.emit(ItemStarted(item=f"{turn}.{step}c", kind="compaction"))
        try:
            answer = await self._ask((*messages[:at], UserMessage(text=SUMMARY_ORDER)), turn, step)
        except StorageError:
            raise
        except OttoError as error:
            self._tell_none(error.message)
            return ""
        text = text_of(answer.response).strip()
        if not text or answer.response.stop == "refusal":
            self._models.count(answer)
            self._tell_none("the model gave none")
            return ""
        await self._note(messages, prefixes, at, answer, text, turn=turn, step=step)
        return text

    async def _ask(self, messages: tuple[Message, ...], turn: int, step: int) -> Answer:
        request = replace(self._models.request(messages), purpose="summary")
        return await self._models.call(
            request, turn=turn, step=step, on_begun=functools.partial(self._begun, turn, step)
        )

    async def _begun(self, turn: int, step: int, permit: Permit, model: str) -> None:
        """Notes an attempt before it is made. Raises StorageError."""
        entry = j.SummaryCalled(turn=turn, step=step, model=model, permit=permit.permit, target=permit.target)
        await self._journal.put([entry])

    def _tell_none(self, why: str) -> None:
        self._link.emit(LogWarning(message=f"the conversation could not be summarised: {why}", code="no_summary"))

    async def _elide(
        self, messages: tuple[Message, ...], prefixes: list[int], at: int | None, turn: int, step: int
    ) -> bool:
        if at is None or elided(messages, at) == messages:
            return False
        await self._note(messages, prefixes, at, None, "", turn=turn, step=step)
        return True

    async def _note(
        self,
        messages: tuple[Message, ...],
        prefixes: list[int],
        at: int,
        answer: Answer | None,
        text: str,
        *,
        turn: int,
        step: int,
    ) -> None:
        """The journal, the machine and the watchers, in one step of the loop; then the disk."""
        before = prefixes[-1]
        after = self.meter.tokens_of_shorter(messages, shortened(messages, (), at, text)[0])
        entry = j.ConversationShortened(
            turn=turn,
            step=step,
            at=at,
            summary=text,
            model=answer.response.model if answer is not None else "",
            permit=answer.permit.permit if answer is not None else "",
            usage=answer.response.usage if answer is not None else None,
            tokens_before=before,
            tokens_after=after,
        )
        self._journal.note(entry)
        self._machine.step(Shortened(at=at, summary=text))
        self.meter.begin_at(Measure(count=len(self._machine.messages), tokens=after))
        self._not_before_tokens = int(after + GROWTH_SHARE * (self._usable_tokens or before))
        if answer is not None:
            self._models.count(answer)
            self._keep(text, turn=turn, step=step)
        told, was_cut = cut(text)
        data = {"messages": at, "tokens_before": before, "tokens_after": after, "is_summary": bool(text)}
        self._link.emit(
            ItemCompleted(item=f"{turn}.{step}c", kind="compaction", text=told, truncated=was_cut, data=data)
        )
        await self._journal.put(())

    def _keep(self, text: str, *, turn: int, step: int) -> None:
        """The summary becomes an artifact, for people and for other agents. The session does not wait for that: what
        it goes on from is in its journal."""
        # A step may need two: one when it had grown, one when the provider found it too long, or its slice was over.
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:KEY_DIGEST_CHARS]
        key = f"{self._session}/{turn}/{step}/summary/{digest}"
        task = asyncio.create_task(self._keep_artifact(text, key))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep_artifact(self, text: str, key: str) -> None:
        try:
            await self._artifacts.write(text.encode(), name=f"summary-{self._session}.md", kind="summary", key=key)
        except OttoError as error:
            self._link.emit(LogWarning(message=f"the summary is no artifact: {error.message}", code="no_artifact"))

    async def aclose(self) -> None:
        """Waits a moment for artifacts that are on their way."""
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=KEEP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
