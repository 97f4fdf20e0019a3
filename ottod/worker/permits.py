"""Leave to make model calls: asked of root before each attempt, told root of after it.

Root reserves what the attempt may cost before it says yes. What became of it is told as soon as it is known, and
again by the next incarnation for everything that a lost one had left open: from the journal, which has the permit of
each attempt that was begun and the usage of each that was answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain, repeat

from ottod.core.resume import Attempt
from ottod.errors import OttoError, ProviderError, RefusedError
from ottod.protocol.events import LogWarning
from ottod.protocol.usage import Usage
from ottod.protocol.worker_requests import AskPermit, BudgetRefusal, Permit, RequestReply, SettlePermit
from ottod.worker.link import Link

SETTLE_TIMEOUT_S = 5.0
"""How long a session that ends waits for root to hear what its last calls cost."""


TELL_WAIT_S = (10.0, 50.0, 240.0, 600.0)
"""A call that waits for its turn says so after so long, and again each time that so much more has passed."""


class BudgetReached(OttoError):
    """No call fits into the budget any more."""

    code = "budget"

    def __init__(self, message: str, refusal: BudgetRefusal, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.refusal = refusal


class Permits:
    """One incarnation's permits."""

    def __init__(
        self, link: Link, *, session: str, incarnation: int, tell_wait_s: Sequence[float] = TELL_WAIT_S
    ) -> None:
        self._link = link
        self._tell_wait_s = tell_wait_s
        # A session may go on from another one's journal, which has that one's permits.
        self._prefix = f"{session}/{incarnation}"
        self._asked = 0
        self._settling: set[asyncio.Task[None]] = set()

    def next_name(self) -> str:
        """A name for an attempt, never used before in this session."""
        self._asked += 1
        return f"{self._prefix}/{self._asked}"

    async def ask(self, wanted: AskPermit) -> Permit:
        """Waits until root lets the attempt be made.

        Raises: BudgetReached, RefusedError; ProviderError if it is not worth making now.
        """
        try:
            reply = await self._wait(wanted)
        except asyncio.CancelledError:
            # It may have been granted all the same.
            self.settle(SettlePermit(permit=wanted.permit, outcome="unused"))
            raise
        self._tell(reply)
        failure = reply.failure
        if reply.permit is not None:
            return reply.permit
        if failure is None:
            raise RefusedError("the daemon gave neither a permit nor a reason", code="internal")
        if reply.refusal is not None:
            raise BudgetReached(failure.message, reply.refusal, mend=failure.mend)
        if failure.retryable:
            raise ProviderError(
                failure.message,
                code=failure.code,
                retryable=True,
                retry_after_s=failure.retry_after_s,
                mend=failure.mend,
            )
        raise RefusedError(failure.message, code=failure.code, mend=failure.mend)

    async def _wait(self, wanted: AskPermit) -> RequestReply:
        """Root's answer, however long it takes; a long wait is told, ever less often."""
        asking = asyncio.ensure_future(self._link.hear(wanted))
        waited_s = 0.0
        try:
            for pause_s in chain(self._tell_wait_s, repeat(self._tell_wait_s[-1])):
                done, _ = await asyncio.wait({asking}, timeout=pause_s)
                if done:
                    break
                waited_s += pause_s
                text = f"a model call has waited for its turn for {waited_s:.0f} s; see `ottoctl providers`"
                self._link.emit(LogWarning(message=text, code="gate_wait"))
            return asking.result()
        finally:
            asking.cancel()

    def _tell(self, reply: RequestReply) -> None:
        """What root has for the session to tell."""
        for warning in reply.warnings:
            self._link.emit(warning)
        for move in reply.moves:
            self._link.emit(move)

    def settle(self, settlement: SettlePermit) -> None:
        """Tells root what became of an attempt, over root's death if need be."""
        task = asyncio.get_running_loop().create_task(self._settle(settlement))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, settlement: SettlePermit) -> None:
        try:
            reply = await self._link.hear(settlement)
        except OttoError:
            return  # Too many wait already. The next incarnation, or root at the session's end, settles it.
        self._tell(reply)

    def settle_past(self, permits: Sequence[str], attempts: Sequence[Attempt]) -> None:
        """Tells what became of the attempts that earlier incarnations left open."""
        known = {attempt.permit: attempt for attempt in attempts}
        for permit in permits:
            self.settle(_told(permit, known.get(permit)))

    async def settled(self) -> None:
        """Returns when root has heard everything, or does not listen."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=SETTLE_TIMEOUT_S)


def _told(permit: str, attempt: Attempt | None) -> SettlePermit:
    """What the journal says of a permit. A call whose permit is not in it was never made."""
    if attempt is None:
        return SettlePermit(permit=permit, outcome="unused")
    if attempt.usage is None:
        return SettlePermit(permit=permit, outcome="unknown", target=attempt.target, code="lost")
    usage: Usage = attempt.usage
    return SettlePermit(permit=permit, outcome="completed", target=attempt.target, usage=usage)
