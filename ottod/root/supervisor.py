"""What can be done to sessions: start, speak to, wait for, stop, unpark, remove.

The parts behind it: `births` (how a worker comes into the world), `burials` (how it leaves), `groups` (what becomes
of its session: the supervision engine), `stops`, `steering` (what running ones are told), `lineage` (what goes on
from their pasts), `learning` (from what runs have left), `definitions` (what they were started with), `children`
(that workers ask for), `permits` (for model calls) and `providers` (what these may bear), `approvals` (what they wait
for leave to do), `artifacts` and `decisions` (what they leave for each other), `adoption` (what an earlier root left
behind) and `watch`. Everything that may block (files, the database, walks through /proc) happens on threads; the loop
routes.
"""

from __future__ import annotations

import asyncio
import signal
from collections import OrderedDict
from collections.abc import Sequence

from msgspec.structs import replace

from ottod.core.waits import Waits
from ottod.errors import OttoError, RefusedError
from ottod.protocol.cause import CauseKind
from ottod.protocol.policy import Authority
from ottod.protocol.requests import StartSession
from ottod.protocol.results import SessionStartedResult, StopResult
from ottod.protocol.worker import CommandBody, DeliverInput
from ottod.root.adoption import Adoption, Inheritance
from ottod.root.approvals import Approvals
from ottod.root.artifacts import Artifacts
from ottod.root.audit import Entry, audit_entries
from ottod.root.awaits import Awaits
from ottod.root.births import Births
from ottod.root.burials import Burials
from ottod.root.children import Children
from ottod.root.context import RootContext
from ottod.root.creations import Creations
from ottod.root.decisions import Decisions
from ottod.root.definitions import NOTHING_KEPT, Definitions
from ottod.root.explanations import Explanations
from ottod.root.grants import Grants
from ottod.root.groups import Groups
from ottod.root.heritage import Heritage
from ottod.root.learning import Learning
from ottod.root.lineage import Lineage, how_to_go_on
from ottod.root.mail import Mail
from ottod.root.permits import Permits
from ottod.root.provider_gate import ProviderGate
from ottod.root.questions import Questions
from ottod.root.reaper import Reaper
from ottod.root.research import Research
from ottod.root.resolve import Resolver
from ottod.root.rulings import all_authorities
from ottod.root.session_table import Session
from ottod.root.steering import Steering
from ottod.root.stops import Stops
from ottod.root.surroundings import Surroundings
from ottod.root.teams import Teams
from ottod.root.watch import Watch
from ottod.root.worker_requests import WorkerRequests
from ottod.storage.artifacts import ArtifactStore

COMMAND_TIMEOUT_S = 10.0
ARTIFACTS_DIR = "artifacts"
"""Beside the directory of the sessions."""
REMEMBERED_KEYS = 10_000
SETTLE_TIMEOUT_S = 5.0
"""How long births that are under way may take to be completed before root leaves its sessions alone."""


class Supervisor:
    """All sessions of this root."""

    def __init__(
        self,
        context: RootContext,
        *,
        resolver: Resolver,
        reaper: Reaper,
        worker_endpoint: str,
        private_dirs: tuple[str, ...],
    ) -> None:
        self._c = context
        self.artifacts = Artifacts(context, ArtifactStore(context.sessions_dir.parent / ARTIFACTS_DIR))
        self.decisions = Decisions(context)
        surroundings = Surroundings(context, self.artifacts, self.decisions)
        self.research = Research(context, resolver, surroundings)
        self.definitions = Definitions(context)
        self._burials = Burials(context, self.artifacts, self.decisions)
        self._births = Births(context, resolver=resolver, worker_endpoint=worker_endpoint, private_dirs=private_dirs)
        self._births.on_worker_exit = self._burials.worker_exited
        self._creations = Creations(context, resolver=resolver, births=self._births)
        self._groups = Groups(context, self._births, self._burials)
        self._creations.on_joined = self._groups.join
        self._stops = Stops(context, self._groups)
        self._children = Children(context, self._creations, self._groups)
        self._children.begin_stop = lambda session, reason: self._stops.begin_for(session, reason, "cancelled")
        self.teams = Teams(context)
        self._private_dirs = private_dirs
        self.mail = Mail(context, self.teams, authorities=self._authorities)
        waits = Waits()
        self.questions = Questions(context, self.mail, waits, surroundings)
        self.awaits = Awaits(context, self.teams, self.questions)
        self._children.waits = waits
        self.permits = Permits(context)
        self.providers = ProviderGate(context)
        self.permits.admission = self.providers
        context.gate.on_request = WorkerRequests(
            context,
            children=self._children,
            artifacts=self.artifacts,
            decisions=self.decisions,
            research=self.research,
            permits=self.permits,
            teams=self.teams,
            mail=self.mail,
            questions=self.questions,
            awaits=self.awaits,
            news=self.providers.news,
        ).requested
        self._burials.on_worker_gone = self._worker_gone
        self._burials.on_ended = self._session_ended
        self._births.open_permits = self.permits.open_names
        self._groups.on_created = self._session_created
        self._creations.admit = self.teams.admit
        self._creations.on_refused = self._session_refused
        self.permits.budgets.clocks.on_time_up = lambda session, why: self._stops.begin_for(session, why, "budget")
        self.permits.budgets.clocks.tell_time_up = self._stops.tell_time_up
        self._adoption = Adoption(
            context,
            births=self._births,
            burials=self._burials,
            groups=self._groups,
            stops=self._stops,
            reaper=reaper,
        )
        self._watch = Watch(context)
        self.grants = Grants(context)
        self.approvals = Approvals(context, self.grants)
        self.approvals.on_budget_granted = self.permits.budgets.extend
        self._births.grants_of = self.grants.of
        self.explanations = Explanations(context, resolver=resolver, reaper=reaper, private_dirs=private_dirs)
        self.steering = Steering(context, self.order)
        self.lineage = Lineage(
            context,
            start=self.start,
            unpark=self.unpark,
            unpause=lambda session: self.steering.set_pause(session, paused=False),
            say=lambda session, text: self.send_input(session, text, "user"),
        )
        self.learning = Learning(
            context,
            resolver,
            self.artifacts,
            start=lambda request, origin: self.start(request, looks_back_on=origin),
            plan_of=self.lineage.plan,
        )
        self._keys: OrderedDict[str, asyncio.Future[SessionStartedResult]] = OrderedDict()
        context.gate.on_lost = self._worker_unfit
        context.gate.on_entries = self._note_decisions
        context.gate.on_ready = self._worker_ready

    @property
    def started(self) -> int:
        """Sessions started since root's birth."""
        return self._creations.started

    # ------------------------------------------------------------ starting

    async def start(
        self, request: StartSession, heritage: Heritage | None = None, *, looks_back_on: Session | None = None
    ) -> SessionStartedResult:
        """Creates a session and lets its worker be born. Answers once the session is durable.

        With a `heritage` it goes on from another one's past; one that `looks_back_on` a run is to learn from it.
        Raises: OttoError with the code that says why not.
        """
        if not request.key:
            return await self._create(request, heritage, looks_back_on)
        known = self._keys.get(request.key)
        if known is not None:
            return replace(await asyncio.shield(known), existing=True)
        future: asyncio.Future[SessionStartedResult] = self._c.loop.create_future()
        self._keys[request.key] = future
        while len(self._keys) > REMEMBERED_KEYS:
            self._keys.popitem(last=False)
        try:
            result = await self._earlier(request.key) or await self._create(request, heritage, looks_back_on)
        except BaseException as error:
            self._keys.pop(request.key, None)
            future.set_exception(error if isinstance(error, OttoError) else RefusedError("the start was abandoned"))
            future.exception()
            raise
        future.set_result(result)
        return result

    async def _earlier(self, key: str) -> SessionStartedResult | None:
        """What an earlier root started with this key."""
        known = await self._c.database.session_by_key(key)
        found = await self._c.database.session_by_prefix(known, limit=1) if known else []
        if not found:
            return None
        return SessionStartedResult(session=found[0].session, from_offset=found[0].first_offset, existing=True)

    async def _create(
        self, request: StartSession, heritage: Heritage | None, looks_back_on: Session | None
    ) -> SessionStartedResult:
        kept = await self.definitions.meant(request) if heritage is None else NOTHING_KEPT
        parent = self._c.table.get(request.parent) if request.parent else None
        if request.parent and parent is None:
            raise RefusedError(
                f"{request.parent} has ended", code="session_ended", mend="name a live session as parent"
            )
        if parent is not None:
            if parent.info.run_mode == "headless":
                # Nobody is asked below a session where nobody is asked.
                request = replace(request, run_mode="headless")
            session = await self._children.start(request, parent, kept=kept, is_named=bool(request.name))
        else:
            session = await self._creations.create(
                request, heritage=heritage, kept=kept, is_named=bool(request.name), looks_back_on=looks_back_on
            )
        self._c.instruments.session_started()
        return SessionStartedResult(session=session.id, from_offset=session.info.first_offset)

    def _worker_ready(self, session: Session, is_adopted: bool) -> None:
        if not session.is_stopping and session.stop_ladder is None:
            session.cancel_timers()
        self._groups.ready(session)
        if is_adopted:
            self._stops.adopted(session)
            self._c.spawn(self._children.remind(session))
        self.grants.worker_ready(session, is_adopted=is_adopted)
        if any(pending.answer is not None for pending in session.info.approvals):
            self._c.spawn(self.approvals.deliver_kept(session))

    # ------------------------------------------------------------ news of sessions

    def _authorities(self, session: Session) -> tuple[Authority, ...]:
        plan = session.plan
        if plan is None:
            return ()
        return all_authorities(
            plan.spec,
            self._c.settings.permissions,
            cwd=plan.cwd,
            private_dirs=self._private_dirs,
            inherited=plan.inherited,
        )

    def _session_created(self, session: Session) -> None:
        self.permits.budgets.opened(session)
        self.teams.joined(session)

    def _session_refused(self, session: Session) -> None:
        self._groups.left(session)
        self.permits.budgets.left(session)
        self.teams.left(session)

    def _worker_gone(self, session: Session) -> None:
        self.permits.worker_gone(session)
        self.questions.worker_gone(session)
        self.awaits.worker_gone(session)

    def _session_ended(self, session: Session) -> None:
        self.permits.ended(session)
        self.mail.ended(session)
        self.questions.ended(session)
        self.teams.ended(session)
        self.research.ended(session)
        self.learning.ended(session)

    def _note_decisions(self, session: Session, first_seq: int, entries: Sequence[Entry]) -> None:
        for entry in audit_entries(session.info, first_seq, entries):
            self._c.database.put_audit_nowait(entry)

    # ------------------------------------------------------------ input

    async def send_input(self, session: Session, text: str, sender: str, *, steer: bool = False) -> None:
        """Delivers a message to a live session. Raises RefusedError."""
        await self.order(session, DeliverInput(text=text, sender=sender, steer=steer))

    async def order(self, session: Session, body: CommandBody, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Tells a live session's worker something, and waits until it has obeyed. Raises RefusedError."""
        self._check_hears(session)
        await self._until_ready(session)
        self._check_hears(session)
        failure = await self._c.gate.command(session, body, timeout_s=timeout_s)
        if failure is not None:
            raise RefusedError(failure.message, code=failure.code, mend=failure.mend)

    @staticmethod
    def _check_hears(session: Session) -> None:
        if session.has_ended or session.is_stopping:
            raise RefusedError(
                f"{session.id} has ended or is stopping and hears nothing more",
                code="session_ended",
                mend=how_to_go_on(session),
            )
        if session.info.state == "parked":
            raise RefusedError(
                f"{session.id} is parked: {session.info.reason}",
                code="session_parked",
                mend=f"ottoctl session unpark {session.id}",
            )

    async def _until_ready(self, session: Session) -> None:
        deadline_s = self._c.loop.time() + self._c.settings.sessions.start_timeout_s
        while session.info.state in ("starting", "restarting") and self._c.loop.time() < deadline_s:
            await asyncio.sleep(0.01)

    async def wait(self, session: Session, *, idle: bool) -> None:
        """Returns when the session has ended or is parked, or, with `idle`, when it waits for input."""
        await session.until_ended(self._c.loop, or_idle=idle, or_parked=True)

    # ------------------------------------------------------------ stopping

    async def stop(
        self, session: Session, *, grace_s: float | None, reason: str, cause: CauseKind = "cancelled"
    ) -> StopResult:
        """Stops a session and all below it and gives the proof. A second stop joins the first, and may hurry it."""
        return await self._stops.stop(session, grace_s=grace_s, reason=reason, cause=cause)

    def _worker_unfit(self, session: Session, why: str) -> None:
        incarnation = session.incarnation
        if incarnation is not None and incarnation.end_intent is None:
            incarnation.end_intent = "crashed"
            incarnation.end_reason = why
            incarnation.send_signal(signal.SIGKILL)

    async def stop_all(self, *, grace_s: float) -> None:
        """Ends every session with cause `daemon_stop`; nothing new starts from here on."""
        self._creations.is_closed = True
        tops = [s for s in self._c.table.live if s.is_top]
        await asyncio.gather(
            *(self.stop(s, grace_s=grace_s, reason="the daemon stops", cause="daemon_stop") for s in tops)
        )
        await self._c.wait_for_tasks(timeout_s=SETTLE_TIMEOUT_S)

    async def leave_alone(self) -> int:
        """Root goes and its sessions stay: completes what is half done; gives how many are left to the next root."""
        self._creations.is_closed = True
        deadline_s = self._c.loop.time() + SETTLE_TIMEOUT_S
        while any(s.is_unsettled for s in self._c.table.live) and self._c.loop.time() < deadline_s:
            await asyncio.sleep(0.01)
        self._watch.close()
        self.permits.close()
        await self._c.wait_for_tasks(timeout_s=SETTLE_TIMEOUT_S)
        return self._c.table.live_count

    async def unpark(self, session: Session) -> None:
        """Gives a parked session a fresh allowance and its next incarnation. Raises RefusedError."""
        if session.info.state != "parked":
            raise RefusedError(
                f"{session.id} is {session.info.state}, not parked", code="not_parked", mend="see `ottoctl ps`"
            )
        self._groups.unpark(session)

    def close(self) -> None:
        self._watch.close()
        self.permits.close()
        self.providers.close()

    # ------------------------------------------------------------ the past

    async def take_over(self) -> int:
        """Adopts, ends or begins again what an earlier root left behind."""
        await self.grants.load()
        adopted = await self._adoption.take_over()
        await self.teams.restore()
        await self.permits.restore()
        await self.providers.restore()
        return adopted

    async def listening(self) -> Inheritance:
        """The worker socket is there: adopted workers are expected, and the rest of the past is put in order."""
        self._adoption.listening()
        return await self._adoption.settle()

    async def prune(self) -> int:
        """Forgets ended sessions beyond those that are to be retained, and what is left of others; their number."""
        await self._burials.sweep()
        return await self._burials.prune()

    async def remove(self, session: Session) -> None:
        """Forgets an ended session and deletes its files. Raises RefusedError while it lives."""
        if not session.has_ended:
            raise RefusedError(
                f"{session.id} has not ended", code="session_live", mend=f"ottoctl stop {session.id} first"
            )
        await self._burials.forget(session.id)
