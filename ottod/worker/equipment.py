"""What a session's turns need: its model, its tools and what confines them, and the driver that uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ottod.core.conduct import Conduct
from ottod.core.context import ContextMeter
from ottod.core.resume import Restored
from ottod.core.turn import TurnMachine
from ottod.isolation.beneath import BeneathFiles
from ottod.isolation.programs import ConfinedPrograms
from ottod.isolation.web import PinnedWeb
from ottod.protocol.events import LogWarning
from ottod.protocol.worker import Birth
from ottod.tools.registry import tools_by_name
from ottod.worker.approvals import Approvals
from ottod.worker.artifacts import Artifacts
from ottod.worker.children import Children
from ottod.worker.compaction import Compactor
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.judge import Judge, own_authorities
from ottod.worker.link import Link
from ottod.worker.model_call import ModelCaller
from ottod.worker.permits import Permits
from ottod.worker.sandbox import are_confined, confine_worker, programs_for
from ottod.worker.slices import TimeSlice
from ottod.worker.tool_call import ToolRunner
from ottod.worker.turns import TurnDriver


class Equipment:
    """Built with the first turn: a session that is never asked anything needs none of it."""

    def __init__(
        self, driver: TurnDriver, models: ModelCaller, compactor: Compactor, programs: ConfinedPrograms
    ) -> None:
        self.driver = driver
        self._compactor = compactor
        self._models = models
        self._programs = programs
        self._is_closed = False

    @classmethod
    def build(
        cls,
        birth: Birth,
        link: Link,
        *,
        journal: JournalWriter,
        children: Children,
        approvals: Approvals,
        permits: Permits,
        inbox: Inbox,
        restored: Restored,
        on_step: Callable[[], None],
        on_slice: Callable[[], None] = lambda: None,
    ) -> Equipment:
        """Blocks for milliseconds, and confines this process for good. Raises OttoError if something is missing."""
        spec = birth.spec
        tools = tools_by_name(spec.tools)
        judge = Judge(
            authorities=birth.authorities or own_authorities(spec, cwd=birth.cwd, private_dirs=birth.private_dirs),
            tools=tools,
            cwd=birth.cwd,
            run_mode=birth.run_mode,
            is_confined=are_confined(birth),
        )
        approvals.judge = judge
        files = BeneathFiles(
            birth.cwd,
            hidden=birth.private_dirs,
            granted=spec.isolation.write_paths,
            objection=judge.objection,
        )
        programs = programs_for(birth)
        weakness = confine_worker(birth)
        if weakness:
            link.emit(LogWarning(message=weakness, code="unconfined"))
        models = ModelCaller(
            spec=spec,
            targets=birth.models,
            api_keys=birth.api_keys,
            schemas=tuple(t.schema() for t in tools.values()),
            link=link,
            permits=permits,
        )
        models.restore(restored.usages)
        artifacts = Artifacts(link, session_dir=birth.session_dir)
        runner = ToolRunner(
            spec=spec,
            tools=tools,
            files=files,
            programs=programs,
            sessions=children,
            artifacts=artifacts,
            web=PinnedWeb(spec.http),
            session=birth.session,
            link=link,
            on_begin=judge.enter,
        )
        conduct = Conduct(
            spec,
            is_malformed=lambda call: not runner.is_runnable(call),
            harmless=frozenset(name for name, tool in tools.items() if tool.permissions <= {"read"}),
        )
        machine = TurnMachine(
            max_steps=spec.limits.max_steps,
            max_parallel=spec.limits.max_parallel_tools,
            messages=restored.messages,
            turn=restored.turn,
            marks=restored.marks,
            conduct=conduct,
        )
        compactor = Compactor(
            spec=spec,
            window_tokens=birth.models[0].context_tokens,
            meter=ContextMeter(fixed_bytes=models.fixed_bytes, measures=restored.measures),
            machine=machine,
            models=models,
            artifacts=artifacts,
            session=birth.session,
            journal=journal,
            link=link,
        )
        driver = TurnDriver(
            session=birth.session,
            machine=machine,
            models=models,
            tools=runner,
            compactor=compactor,
            approvals=approvals,
            inbox=inbox,
            journal=journal,
            link=link,
            on_step=on_step,
            time_slice=TimeSlice(spec.time_slice_s, summarise=compactor.sum_up),
            on_slice=on_slice,
            on_budget="stop" if birth.run_mode == "headless" else spec.on_budget,
        )
        return cls(driver, models, compactor, programs)

    def watch_launcher(self, on_lost: Callable[[], None]) -> None:
        """Calls `on_lost` if the session's launcher dies before `aclose`."""
        self._programs.watch_launcher(on_lost)

    async def aclose(self) -> None:
        """Gives everything back. A second call changes nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._programs.unwatch_launcher()
            await self._compactor.aclose()
            await self._models.aclose()
            await asyncio.to_thread(self._programs.close)
