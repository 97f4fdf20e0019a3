"""Questions from one session of a tree to another, from the asker's request to the end of the turn that answers.

Root holds a question as long as somebody waits for its answer, and nothing longer. The receiver's journal says what
was asked and answered: whoever was lost in between, the question is asked again with the same key, and answered by
what the journal has. So a question begins one turn, and its asker gets an answer or learns why there is none.

Before a question goes out it is looked at whether it could ever be answered: see `ottod.core.waits`. The same
question to a session whose agent is `cacheable`, which has had no turn since it answered it, is answered by what it
said, as long as it would find everything as it was (`surroundings`): it has nothing more to answer from.

Source: ADR 0023.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from ottod.core.resume import restore
from ottod.core.team import Member
from ottod.core.waits import Wait, Waits
from ottod.errors import Failure, OttoError, RefusedError
from ottod.protocol import journal as j
from ottod.protocol.worker import DeliverInput, WithdrawInput
from ottod.protocol.worker_requests import AgentAnswer, AnswerQuestion, AskAgent, RequestReply, TeamReply
from ottod.root.context import RootContext
from ottod.root.mail import COMMAND_TIMEOUT_S, SEND_WAIT_S, Mail, how_it_ended
from ottod.root.session_table import Session
from ottod.root.surroundings import Surroundings
from ottod.storage.journal_history import read_history

READ_ATTEMPTS = 3
READ_AGAIN_S = 0.2
"""Between two looks into the journal of a session that has ended: it may just be being compressed."""

MAX_REMEMBERED = 1000
"""Sessions whose newest answer is remembered."""

Outcome = AgentAnswer | Failure


class _Question:
    """One that somebody waits for. `state` is what the receiver would find, if its answer may be used again."""

    def __init__(self, key: str, asker: str, member: Member, text: str, state: str, future: asyncio.Future[Outcome]):
        self.key = key
        self.asker = asker
        self.member = member
        self.text = text
        self.state = state
        self.future = future


class _Answered(NamedTuple):
    """The newest question that a session has answered, by its turn `turn`, and what it would have found then."""

    question: str
    state: str
    turn: int
    answer: AgentAnswer


class Questions:
    """Of this root."""

    def __init__(self, context: RootContext, mail: Mail, waits: Waits, surroundings: Surroundings) -> None:
        self._c = context
        self._mail = mail
        self._waits = waits
        self._surroundings = surroundings
        self._open: dict[str, _Question] = {}
        self._answered: OrderedDict[str, _Answered] = OrderedDict()

    @property
    def open(self) -> int:
        """How many wait for their answers."""
        return len(self._open)

    # ------------------------------------------------------------ for who asks

    async def ask(self, asker: Session, body: AskAgent) -> RequestReply:
        """Returns with the answer. Raises RefusedError."""
        self._mail.check(body.question, body.key)
        key = f"{asker.id}/{body.key}"
        question = self._open.get(key)
        member = question.member if question is not None else self._mail.receiver(asker, body.to, tool="ask_agent")
        state = "" if question is not None else await self._state(member)
        if (known := self._known(member, body.question, state)) is not None:
            return RequestReply(id=0, team=TeamReply(said=known))
        # Meanwhile it may have been asked again with the same key.
        question = self._open.get(key)
        self.check_circle(Wait(asker=asker.id, targets=(member.session,)), key)
        if question is None:
            question = _Question(key, asker.id, member, body.question, state, self._c.loop.create_future())
            self._open[key] = question
            self._c.spawn(self._carry(question, asker, body.question))
        outcome = await asyncio.shield(question.future)
        if isinstance(outcome, Failure):
            raise RefusedError(outcome.message, code=outcome.code, mend=outcome.mend)
        return RequestReply(id=0, team=TeamReply(said=outcome))

    async def _state(self, member: Member) -> str:
        """What it would find, if its answers may be used again; else nothing."""
        receiver = self._c.table.get(member.session)
        plan = receiver.plan if receiver is not None else None
        if receiver is None or plan is None or not plan.spec.cacheable:
            return ""
        try:
            return await self._surroundings.state(plan.spec, plan.cwd, receiver)
        except OttoError:
            return ""  # Then it is asked.

    def _known(self, member: Member, text: str, state: str) -> AgentAnswer | None:
        """What it has said to this already, if that is still what it has to say."""
        known, receiver = self._answered.get(member.session), self._c.table.get(member.session)
        if known is None or receiver is None or not state:
            return None
        is_same = (known.question, known.state, known.turn) == (text, state, receiver.info.turn)
        return known.answer if is_same and self._c.table.is_a_models(receiver.info) else None

    async def _remember(self, question: _Question, answer: AgentAnswer, turn: int) -> None:
        """What was found does not count if it was changed in finding out."""
        if await self._state(question.member) == question.state:
            answer = replace(answer, reused_at_ns=time.time_ns())
            self._answered[answer.session] = _Answered(question.text, question.state, turn, answer)
            self._answered.move_to_end(answer.session)
            while len(self._answered) > MAX_REMEMBERED:
                self._answered.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """The conversation is not any more what its answers were given from."""
        self._answered.pop(session_id, None)

    def check_circle(self, wait: Wait, key: str) -> None:
        """Notes that a call waits from now on. Raises RefusedError if it would wait for ever."""
        circle = self._waits.circle(wait, below=self._below, is_live=self._is_live)
        if circle:
            names = [self._name(session) for session in circle]
            if len(names) < 3:
                raise RefusedError(f"{names[0]} would wait for itself", code="deadlock", mend="do not wait for it")
            told = f"{names[0]} would wait for {names[1]}, " + "".join(
                f"which waits for {name}, " for name in names[2:]
            )
            raise RefusedError(
                told + "and nobody would ever go on",
                code="deadlock",
                mend="use send_message, which does not wait, or end your turn with what you want to say",
            )
        self._waits.begin(key, wait)

    def over(self, key: str) -> None:
        """A call waits no more."""
        self._waits.end(key)

    def _below(self, session_id: str) -> Iterable[str]:
        session = self._c.table.get(session_id)
        return tuple(session.children) if session is not None else ()

    def _is_live(self, session_id: str) -> bool:
        session = self._c.table.get(session_id)
        return session is not None and not session.has_ended

    def _name(self, session_id: str) -> str:
        session = self._c.table.get(session_id)
        return (session.info.name or session_id) if session is not None else session_id

    async def _carry(self, question: _Question, asker: Session, text: str) -> None:
        deadline_s = self._c.loop.time() + SEND_WAIT_S
        message = DeliverInput(text=text, sender=asker.id, name=asker.info.name, key=question.key, asks=True)
        try:
            await self._mail.pace(asker, deadline_s)
            await self._mail.put(asker, question.member, message, deadline_s)
        except OttoError as error:
            self._settle(question, error.failure())
            return
        if not self._is_live(question.member.session):
            await self._read_answer(question)

    def withdraw(self, asker: Session, key: str) -> None:
        """Nobody waits for this answer any more."""
        question = self._open.get(f"{asker.id}/{key}")
        if question is not None:
            self._withdraw(question)

    def _withdraw(self, question: _Question) -> None:
        self._settle(question, Failure(code="withdrawn", message="the question was withdrawn"))
        self._c.spawn(self._tell_withdrawn(question))

    async def _tell_withdrawn(self, question: _Question) -> None:
        """If it cannot be told it has its turn, and its answer interests nobody."""
        receiver = self._c.table.get(question.member.session)
        if receiver is not None and not receiver.has_ended:
            await self._c.gate.command(receiver, WithdrawInput(key=question.key), timeout_s=COMMAND_TIMEOUT_S)

    # ------------------------------------------------------------ answers

    def answered(self, receiver: Session, body: AnswerQuestion) -> None:
        """A turn that a question began is over. One that nobody waits for is none of root's."""
        question = self._open.get(body.key)
        if question is not None and question.member.session == receiver.id:
            answer = self._answer(question, body)
            if question.state and body.turn and answer.outcome == "completed":
                self._c.spawn(self._remember(question, answer, body.turn))
            self._settle(question, answer)

    @staticmethod
    def _answer(question: _Question, said: AnswerQuestion | j.Asked) -> AgentAnswer:
        assert said.outcome
        return AgentAnswer(
            session=question.member.session,
            name=question.member.name,
            outcome=said.outcome,
            text=said.text,
            failure=said.failure,
        )

    def _settle(self, question: _Question, outcome: Outcome) -> None:
        if self._open.get(question.key) is question:
            del self._open[question.key]
            self._waits.end(question.key)
        if not question.future.done():
            question.future.set_result(outcome)

    # ------------------------------------------------------------ who is lost

    def worker_gone(self, session: Session) -> None:
        """Its calls wait no more; the next incarnation makes them again."""
        self._waits.drop(session.id)

    def ended(self, session: Session) -> None:
        """It asks nothing more, and answers nothing that is not in its journal by now."""
        self._waits.ended(session.id)
        self.forget(session.id)
        for question in list(self._open.values()):
            if question.asker == session.id:
                self._withdraw(question)
            elif question.member.session == session.id:
                self._c.spawn(self._read_answer(question))

    async def _read_answer(self, question: _Question) -> None:
        """What a session that has ended had answered, if it had; its last word may not have come."""
        member = question.member
        asked: j.Asked | None = None
        for attempt in range(READ_ATTEMPTS):
            try:
                asked = await self._c.in_thread(self._asked, member.session, question.key)
                break
            except OttoError:
                if attempt + 1 < READ_ATTEMPTS:
                    await asyncio.sleep(READ_AGAIN_S)
        if asked is not None and asked.outcome == "completed":
            self._settle(question, self._answer(question, asked))
            return
        how = how_it_ended(member, self._c.table.get(member.session))
        text = f"{member.name} ({member.session}) has ended without an answer: {how}"
        self._settle(question, Failure(code="session_ended", message=text, mend="start another one"))

    def _asked(self, session_id: str, key: str) -> j.Asked | None:
        """On a thread. Raises StorageError."""
        entries = read_history(self._c.sessions_dir / session_id).entries
        return next((asked for asked in restore(entries).asked if asked.key == key), None)
