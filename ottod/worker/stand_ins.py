"""What stands in for a model that does not answer and is no model: an earlier answer, a rule, a human's word.

An earlier answer is one to an identical request, kept by root for agents that ask for that. Identical means all that
the model would be given; names that providers make up for tool calls are counted instead of read, because no two
conversations share them.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec

from ottod.errors import UNDECODABLE, Failure, OttoError
from ottod.protocol.model import ModelRequest, ModelResponse, Text
from ottod.protocol.specs import AgentSpec
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import MAX_ANSWER_BYTES, KeepAnswer, RecallAnswer
from ottod.worker.approvals import Approvals
from ottod.worker.link import Link

KEEP_TIMEOUT_S = 2.0
"""How long the end of a session waits for root to keep its last answer."""
FREE = Usage(usd_micros=0)
"""What a stand-in costs."""

_answers: msgspec.msgpack.Decoder[ModelResponse] = msgspec.msgpack.Decoder(ModelResponse)


class StandIns:
    """One session's."""

    def __init__(self, spec: AgentSpec, link: Link, approvals: Approvals) -> None:
        self._spec = spec
        self._link = link
        self._approvals = approvals
        self._keeping: set[asyncio.Task[None]] = set()
        self.asking = 0
        """1 while a human is asked."""

    async def recall(self, request: ModelRequest) -> ModelResponse | None:
        """An earlier answer to an identical request, if there is one."""
        try:
            reply = await self._link.hear(RecallAnswer(digest=request_digest(request)))
            answer = _answers.decode(reply.answer) if reply.answer else None
        except (OttoError, *UNDECODABLE):
            return None  # No answer is found; why does not matter to whoever looks for one.
        return None if answer is None else msgspec.structs.replace(answer, usage=FREE)

    def keep(self, request: ModelRequest, response: ModelResponse) -> None:
        """Keeps an answer for later, if the agent wants that and it is worth it. Nobody waits for that."""
        if "cache" not in self._spec.fallback or response.stop not in ("end", "tool_calls"):
            return
        answer = msgspec.msgpack.encode(response)
        if len(answer) <= MAX_ANSWER_BYTES:
            task = asyncio.get_running_loop().create_task(self._keep(request_digest(request), answer))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    async def _keep(self, digest: str, answer: bytes) -> None:
        try:
            await self._link.hear(KeepAnswer(digest=digest, answer=answer))
        except OttoError:
            pass  # One answer less to fall back on.

    async def aclose(self) -> None:
        """Waits a little for answers that are being kept."""
        if self._keeping:
            await asyncio.wait(self._keeping, timeout=KEEP_TIMEOUT_S)
        for task in self._keeping:
            task.cancel()

    def rule(self) -> ModelResponse:
        """What the agent's file says that the agent says."""
        blocks = (Text(text=self._spec.fallback_answer),)
        return ModelResponse(blocks=blocks, stop="end", usage=FREE, model="rule")

    async def try_again(self, failure: Failure, *, turn: int, step: int, asked: int) -> bool:
        """Asks a human whether to try again; nobody is asked in a headless session. Raises StorageError."""
        self.asking = 1
        try:
            return await self._approvals.another_try(failure, turn=turn, step=step, asked=asked)
        finally:
            self.asking = 0


def request_digest(request: ModelRequest) -> str:
    """What the model would be given, in hex: deadlines and made-up names do not count."""
    bare = msgspec.structs.replace(request, timeout_s=0.0, idle_timeout_s=0.0)
    known: dict[str, str] = {}
    data = _without_names(msgspec.to_builtins(bare), known)
    return hashlib.sha256(msgspec.json.encode(data, order="deterministic")).hexdigest()


def _without_names(data: Any, known: dict[str, str]) -> Any:
    if isinstance(data, dict):
        return {
            key: known.setdefault(value, f"#{len(known)}")
            if key == "call" and isinstance(value, str)
            else _without_names(value, known)
            for key, value in data.items()
            if key not in ("signature", "opaque")
        }
    return [_without_names(item, known) for item in data] if isinstance(data, list | tuple) else data
