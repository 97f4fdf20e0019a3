"""What workers ask of root, each answered by the part of root that owns it."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from msgspec.structs import replace

from ottod.errors import Failure, OttoError
from ottod.protocol.events import BreakerStateChanged
from ottod.protocol.worker_requests import (
    AnswerQuestion,
    AskAgent,
    AskPermit,
    AwaitAgents,
    FetchArtifact,
    FindArtifacts,
    FindChild,
    FindDecisions,
    FindDelivered,
    KeepAnswer,
    ListAgents,
    LogDecisions,
    NoteDelivery,
    RecallAnswer,
    RecallResearch,
    RequestReply,
    SendMessage,
    SettlePermit,
    SpawnChild,
    StopChild,
    TeamReply,
    WithdrawCall,
    WorkerRequest,
    WorkerRequestBody,
    WriteArtifact,
)
from ottod.root.answers import Answers
from ottod.root.artifacts import Artifacts
from ottod.root.awaits import Awaits
from ottod.root.children import Children
from ottod.root.context import RootContext
from ottod.root.decisions import Decisions
from ottod.root.mail import Mail
from ottod.root.permits import Permits
from ottod.root.questions import Questions
from ottod.root.research import Research
from ottod.root.session_table import Incarnation, Session
from ottod.root.teams import Teams


class WorkerRequests:
    """Serves the requests of all workers. The gate bounds how many each may have open."""

    def __init__(
        self,
        context: RootContext,
        *,
        children: Children,
        artifacts: Artifacts,
        decisions: Decisions,
        research: Research,
        permits: Permits,
        teams: Teams,
        mail: Mail,
        questions: Questions,
        awaits: Awaits,
        news: Callable[[Session], tuple[BreakerStateChanged, ...]],
    ) -> None:
        """`news` gives what the session has to tell of breakers; it goes with the next reply."""
        self._c = context
        self._news = news
        self._children = children
        self._artifacts = artifacts
        self._decisions = decisions
        self._research = research
        self._permits = permits
        self._teams = teams
        self._mail = mail
        self._questions = questions
        self._awaits = awaits
        self._answers = Answers(context)

    def requested(self, session: Session, incarnation: Incarnation, request: WorkerRequest) -> None:
        """One request of a worker."""
        self._c.spawn(self._serve(session, incarnation, request))

    async def _serve(self, session: Session, incarnation: Incarnation, request: WorkerRequest) -> None:
        try:
            reply = await self._answer(session, incarnation, request.body)
        except OttoError as error:
            reply = RequestReply(id=0, failure=error.failure())
        except Exception as error:
            failure = Failure(code="internal", message=f"the request failed: {error!r}"[:500])
            self._c.gate.answer(incarnation, RequestReply(id=request.id, failure=failure))
            raise
        self._c.gate.answer(incarnation, replace(reply, id=request.id, moves=self._news(session)))

    async def _answer(self, session: Session, incarnation: Incarnation, body: WorkerRequestBody) -> RequestReply:
        match body:
            case SpawnChild():
                child = await self._children.spawn(session, body)
                chosen = TeamReply(chosen=child.info.agent)
                return RequestReply(id=0, child=child.id, name=child.info.name, team=chosen)
            case FindChild():
                child = await self._children.find(session, body)
                return RequestReply(id=0, child=child.id, name=child.info.name)
            case RecallResearch():
                return await self._research.recall(session, body)
            case StopChild():
                return RequestReply(id=0, child=self._children.stop(session, body).id)
            case SendMessage():
                return await self._mail.send(session, body)
            case AskAgent():
                return await self._questions.ask(session, body)
            case AnswerQuestion():
                self._questions.answered(session, body)
                return RequestReply(id=0)
            case AwaitAgents():
                return await self._awaits.wait(session, body)
            case WithdrawCall():
                self._questions.withdraw(session, body.key)
                self._awaits.withdraw(session, body.key)
                return RequestReply(id=0)
            case ListAgents():
                return RequestReply(id=0, team=TeamReply(agents=self._teams.cards(session)))
            case WriteArtifact() | FetchArtifact() | FindArtifacts() | NoteDelivery() | FindDelivered():
                return await self._artifacts.serve(session, 0, body)
            case LogDecisions() | FindDecisions():
                return await self._decisions.serve(session, body)
            case AskPermit():
                return await self._permits.ask(session, incarnation, body)
            case SettlePermit():
                return await self._permits.settle(session, body)
            case RecallAnswer():
                return RequestReply(id=0, answer=await self._answers.recall(session, body.digest))
            case KeepAnswer():
                await self._answers.keep(session, body.digest, body.answer)
                return RequestReply(id=0)
            case _:
                assert_never(body)
