"""What a session's turns need: its model, its tools and what confines them, and the driver that uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ottod.core.conduct import Conduct
from ottod.core.context import ContextMeter
from ottod.core.resume import Restored
from ottod.core.turn import TurnMachine
from ottod.isolation.beneath import BeneathFiles
from ottod.isolation.running import finished
from ottod.isolation.web import PinnedWeb
from ottod.protocol.birth import Birth
from ottod.protocol.events import LogWarning
from ottod.settings.tool_names import source_of
from ottod.tools.base import Tool
from ottod.tools.registry import tools_by_name
from ottod.tools.source import open_all
from ottod.worker.approvals import Approvals
from ottod.worker.artifacts import Artifacts
from ottod.worker.background import Background
from ottod.worker.children import Children
from ottod.worker.compaction import Compactor
from ottod.worker.decisions import Decisions
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.judge import Judge, own_authorities
from ottod.worker.link import Link
from ottod.worker.model_call import ModelCaller
from ottod.worker.notes import project_notes
from ottod.worker.permits import Permits
from ottod.worker.preview import Preview
from ottod.worker.sandbox import are_confined, confine_worker, programs_for
from ottod.worker.slices import TimeSlice
from ottod.worker.sources import notices, sources_for
from ottod.worker.stand_ins import StandIns
from ottod.worker.team import Team
from ottod.worker.tool_call import ToolRunner
from ottod.worker.tool_threads import ToolThreads
from ottod.worker.turns import TurnDriver


class Equipment:
    """Built with the first turn: a session that is never asked anything needs none of it."""

    def __init__(self, driver: TurnDriver, models: ModelCaller, compactor: Compactor, outfit: Outfit) -> None:
        self.driver = driver
        self._compactor = compactor
        self._models = models
        self._outfit = outfit
        self._is_closed = False

    @classmethod
    async def build(
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
        checkpoint: Callable[[str], Awaitable[int]],
        on_step: Callable[[], None],
        on_slice: Callable[[], None] = lambda: None,
    ) -> Equipment:
        """Blocks for milliseconds, and confines this process for good; then waits for the sources of tools.

        Raises OttoError if something is missing. Whatever was started is gone when it raises, or is cancelled.
        """
        spec = birth.spec
        notes = await project_notes(birth, link, journal, restored)
        outfit = Outfit(birth, link, journal=journal, restored=restored)
        approvals.judge = outfit.judge
        try:
            tools = await outfit.open(spec.tools)
        except BaseException:
            await finished(outfit.aclose())
            raise
        approvals.preview = Preview(tools, outfit.files, in_thread=outfit.threads.run)
        stand_ins = StandIns(spec, link, approvals)
        models = ModelCaller(
            spec=spec,
            targets=birth.models,
            api_keys=birth.api_keys,
            schemas=tuple(t.schema() for t in tools.values()),
            link=link,
            permits=permits,
            stand_ins=stand_ins,
            notes=notes,
        )
        models.restore(restored.usages)
        artifacts = Artifacts(link, session_dir=birth.session_dir)
        runner = ToolRunner(
            spec=spec,
            tools=tools,
            files=outfit.files,
            programs=outfit.programs,
            sessions=children,
            team=Team(link, children),
            artifacts=artifacts,
            decisions=Decisions(link),
            processes=outfit.background,
            checkpoint=checkpoint,
            web=PinnedWeb(spec.http, objection=outfit.judge.host_objection),
            session=birth.session,
            link=link,
            on_begin=outfit.judge.enter,
            threads=outfit.threads,
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
        return cls(driver, models, compactor, outfit)

    def watch_launcher(self, on_lost: Callable[[], None]) -> None:
        """Calls `on_lost` if the session's launcher dies before `aclose`."""
        self._outfit.programs.watch_launcher(on_lost)

    def watch_threads(self, on_stuck: Callable[[int], None]) -> None:
        """Calls `on_stuck` with their number if too many threads of tools do not come back."""
        self._outfit.threads.on_stuck = on_stuck

    async def aclose(self) -> None:
        """Gives everything back. A second call changes nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._outfit.programs.unwatch_launcher()
            await self._compactor.aclose()
            await self._models.aclose()
            await self._outfit.aclose()


class Outfit:
    """What the tools need: files, programs, background processes, and the sources of tools that are not built in.

    Made, it has confined this process. Blocks for milliseconds. Raises OttoError.
    """

    def __init__(self, birth: Birth, link: Link, *, journal: JournalWriter, restored: Restored) -> None:
        spec = birth.spec
        self._tools: dict[str, Tool[Any]] = {}
        self.judge = Judge(
            authorities=birth.authorities or own_authorities(spec, cwd=birth.cwd, private_dirs=birth.private_dirs),
            tools=self._tools,
            cwd=birth.cwd,
            run_mode=birth.run_mode,
            is_confined=are_confined(birth),
        )
        self.files = BeneathFiles(
            birth.cwd,
            hidden=birth.private_dirs,
            granted=spec.isolation.write_paths,
            objection=self.judge.objection,
        )
        self.programs = programs_for(birth, link.redactor)
        self.threads = ToolThreads()
        weakness = confine_worker(birth)
        if weakness:
            link.emit(LogWarning(message=weakness, code="unconfined"))
        self.background = Background(self.programs, journal, restored.processes, redactor=link.redactor)
        self._notice = notices(link)
        self._sources = sources_for(birth, self.programs, self._notice)

    async def open(self, names: Sequence[str]) -> dict[str, Tool[Any]]:
        """The session's tools by name, built-in ones first. Raises ConfigError."""
        self._tools.update(tools_by_name(name for name in names if not source_of(name)))
        self._tools.update(await open_all(self._sources, notice=self._notice))
        return self._tools

    async def aclose(self) -> None:
        """Ends all that runs."""
        await asyncio.gather(*(source.aclose() for source in self._sources), self.background.aclose())
        self.threads.close()
        await asyncio.to_thread(self.programs.close)
