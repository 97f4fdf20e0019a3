"""Messages between the sessions of a tree: from a worker's request to the receiver's journal.

Root keeps none of them. A message is on its way as long as the request that brought it is open; it has arrived when
the receiver's worker has it in its journal. Whoever dies in between, the request is made again with the same key, and
the receiver knows the keys that it has accepted. So a message arrives once, or its sender is told why it did not.

What is held back costs only its sender. The messages of one sender to one receiver go one after the other, apart from
all others'; a receiver takes so many of one sender and no more (`worker.inbox`), and a sender so many a minute. Who
comes to such a bound waits, for `SEND_WAIT_S` at most.

Source: ADR 0023.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from ottod.core.claims import Claim
from ottod.core.permission import Call, decide
from ottod.core.rate_limit import TokenBucket
from ottod.core.resume import restore
from ottod.core.team import PARENT, Member, role_of
from ottod.errors import OttoError, RefusedError
from ottod.ids import PREFIX
from ottod.protocol.policy import Authority
from ottod.protocol.worker import DeliverInput
from ottod.protocol.worker_requests import MAX_MESSAGE_TEXT_BYTES, Delivery, RequestReply, SendMessage, TeamReply
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.root.teams import Teams
from ottod.storage.journal_history import read_history

SEND_WAIT_S = 30.0
"""The longest that a message waits: for its sender's rate, for room, or for a receiver that has no process now."""
COMMAND_TIMEOUT_S = 10.0
FIRST_AGAIN_S = 0.05
MAX_AGAIN_S = 1.0
"""Between two attempts to deliver: from the first to the second, and at most."""
MESSAGES_PER_MINUTE = 120
MESSAGES_AT_ONCE = 20
"""Of one sender; a message to many counts as one."""
MAX_KEY_CHARS = 1000
PASSING = frozenset({"not_ready", "no_answer", "inbox_full", "session_ended"})
"""Failures of a delivery that may be over soon; whether a session has ended, the table knows."""


class Lane:
    """The messages of one sender to one receiver, one after the other. It is there as long as one is on its way."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.users = 0
        """Messages that have it or wait for it: between two of them nobody may hold the lock."""


class Mail:
    """Of this root. `authorities` gives what binds a session."""

    def __init__(
        self, context: RootContext, teams: Teams, *, authorities: Callable[[Session], Sequence[Authority]]
    ) -> None:
        self._c = context
        self._teams = teams
        self._authorities = authorities
        self._rates: dict[str, TokenBucket] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Messages on their way."""
        return self._waiting

    @property
    def lanes(self) -> int:
        """Pairs of a sender and a receiver with messages on their way."""
        return len(self._lanes)

    async def send(self, sender: Session, body: SendMessage) -> RequestReply:
        """Delivers a message. To one it arrives or fails; of many each has its own fate. Raises OttoError."""
        deadline_s = self._c.loop.time() + SEND_WAIT_S
        self.check(body.text, body.key)
        if body.role:
            members = self._teams.of(sender).others(body.role, than=sender.id)
        else:
            members = [self.receiver(sender, body.to, tool="send_message")]
        await self.pace(sender, deadline_s)
        message = DeliverInput(
            text=body.text, sender=sender.id, steer=True, name=sender.info.name, key=f"{sender.id}/{body.key}"
        )
        if not body.role:
            return _told((await self.put(sender, members[0], message, deadline_s),))
        deliveries = await asyncio.gather(*(self._try(sender, each, message, deadline_s) for each in members))
        return _told(tuple(deliveries))

    async def _try(self, sender: Session, member: Member, message: DeliverInput, deadline_s: float) -> Delivery:
        try:
            return await self.put(sender, member, message, deadline_s)
        except OttoError as error:
            return Delivery(session=member.session, name=member.name, failure=error.failure())

    # ------------------------------------------------------------ before a message leaves

    @staticmethod
    def check(text: str, key: str) -> None:
        """Raises RefusedError for what is no message."""
        if len(text.encode("utf-8", "replace")) > MAX_MESSAGE_TEXT_BYTES:
            raise RefusedError(
                f"a message has {MAX_MESSAGE_TEXT_BYTES} bytes at most",
                code="too_large",
                mend="write it to a file or an artifact, and name that",
            )
        if not key or len(key) > MAX_KEY_CHARS:
            raise RefusedError("a message needs a key of its own", code="bad_arguments")

    def receiver(self, sender: Session, to: str, *, tool: str) -> Member:
        """Who is meant, if the sender may speak to that one. Raises RefusedError."""
        member = self._teams.of(sender).find(to, asker=sender.id)
        if to != PARENT and not to.startswith(PREFIX) and role_of(to) != member.role:
            self._check_alias(sender, member, to, tool)
        return member

    def _check_alias(self, sender: Session, member: Member, to: str, tool: str) -> None:
        """The worker has judged the call by a name that does not say whose it is; the role is known only here."""
        claim = Claim(kind="none", subject="target", object=member.name, forms=(member.role,))
        call = Call(tool=tool, run_mode=sender.info.run_mode, claims=(claim,))
        verdict = decide(call, self._authorities(sender))
        if verdict.effect != "allow":
            why = f": {verdict.reason}" if verdict.reason else ""
            raise RefusedError(
                f"a rule stands before {tool} to {to}, which runs {member.role}{why}",
                code="denied",
                mend=f"address it as {member.session}, if the rule leaves that open",
            )

    async def pace(self, sender: Session, deadline_s: float) -> None:
        """Returns when the sender may send one more. Raises RefusedError if that is not before the deadline."""
        now_ns = time.monotonic_ns()
        bucket = self._rates.get(sender.id)
        if bucket is None:
            bucket = TokenBucket(per_minute=MESSAGES_PER_MINUTE, burst=MESSAGES_AT_ONCE, now_ns=now_ns)
            self._rates[sender.id] = bucket
        wait_s = (bucket.due_ns(1, now_ns=now_ns) - now_ns) / 1e9
        if self._c.loop.time() + wait_s > deadline_s:
            self._c.instruments.message("rate_limited")
            raise RefusedError(
                f"{sender.info.name} has sent {MESSAGES_PER_MINUTE} messages within a minute",
                code="rate_limited",
                mend="say more in fewer messages",
            )
        bucket.take(1, now_ns=now_ns)
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    # ------------------------------------------------------------ on its way

    async def put(self, sender: Session, member: Member, message: DeliverInput, deadline_s: float) -> Delivery:
        """Returns when the message is in the receiver's journal. Raises RefusedError when it will not be."""
        started_s = self._c.loop.time()
        lane = self._lanes.setdefault((member.session, sender.id), Lane())
        lane.users += 1
        self._waiting += 1
        try:
            async with lane.turn:
                await self._deliver(member, message, deadline_s)
        except RefusedError as error:
            self._c.instruments.message("inbox_full" if error.code == "inbox_full" else "failed")
            raise
        finally:
            self._waiting -= 1
            lane.users -= 1
            if not lane.users:
                del self._lanes[member.session, sender.id]
        self._c.instruments.message("delivered")
        waited_ms = int((self._c.loop.time() - started_s) * 1000)
        return Delivery(session=member.session, name=member.name, waited_ms=waited_ms)

    async def _deliver(self, member: Member, message: DeliverInput, deadline_s: float) -> None:
        again_s = FIRST_AGAIN_S
        while True:
            receiver = self._c.table.get(member.session)
            if receiver is None or receiver.has_ended:
                await self._to_the_dead(member, receiver, message.key)
                return
            if receiver.info.state == "parked":
                raise RefusedError(f"{member.name} is parked: {receiver.info.reason}", code="session_parked")
            failure = await self._c.gate.command(receiver, message, timeout_s=COMMAND_TIMEOUT_S)
            if failure is None:
                return
            if failure.code not in PASSING or self._c.loop.time() + again_s > deadline_s:
                raise RefusedError(f"{member.name}: {failure.message}", code=failure.code, mend=failure.mend)
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, MAX_AGAIN_S)

    async def _to_the_dead(self, member: Member, receiver: Session | None, key: str) -> None:
        """Raises RefusedError, unless the message had arrived before the end: its sender was lost and asks again."""
        try:
            if await self._c.in_thread(self._was_heard, member.session, key):
                return
        except OttoError:
            pass  # Without its journal nobody can say so.
        raise RefusedError(
            f"{member.name} ({member.session}) has ended: {how_it_ended(member, receiver)}",
            code="session_ended",
            mend="start another one",
        )

    def _was_heard(self, session_id: str, key: str) -> bool:
        """On a thread: whether the journal of a session that has ended has this message. Raises StorageError."""
        return key in restore(read_history(self._c.sessions_dir / session_id).entries).heard

    def ended(self, session: Session) -> None:
        """It sends nothing more."""
        self._rates.pop(session.id, None)


def _told(deliveries: tuple[Delivery, ...]) -> RequestReply:
    return RequestReply(id=0, team=TeamReply(deliveries=deliveries))


def how_it_ended(member: Member, session: Session | None) -> str:
    """`completed`, or the cause and what is known of it."""
    cause = session.info.cause if session is not None else member.cause
    if cause is None:
        return "nobody knows how"
    return f"{cause}: {cause.message}" if cause.message else str(cause)
