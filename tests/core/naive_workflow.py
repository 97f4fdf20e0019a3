"""An oracle for workflows: it keeps no states of places, but looks through the whole tree after every event, and
derives what must run, who must be asked and what is over from a few plain facts: who has begun, and how it ended.

It knows no orders and no journal, and nothing is undone here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ottod.core.workflow_condition import holds
from ottod.protocol.journal import ArtifactFacts
from ottod.protocol.workflows import ResolvedWorkflow, Step
from ottod.settings.workflow_tree import graph_needs

NS_PER_S = 1_000_000_000
OVER = frozenset({"completed", "failed", "skipped", "cancelled"})


class NaiveWorkflow:
    """`running`, `stopping` and `asking` hold paths; `end` is the outcome, once there is one."""

    def __init__(self, workflow: ResolvedWorkflow) -> None:
        spec = workflow.spec
        self.concurrency = spec.concurrency
        self.top = Step(
            id="top", mode=spec.mode, steps=spec.steps, on_failure=spec.on_failure, quorum=spec.quorum,
            max_iterations=spec.max_iterations, until=spec.until, on_exhausted=spec.on_exhausted,
            timeout_s=spec.timeout_s,
        )  # fmt: skip
        self.now_ns = 0
        self.facts: dict[str, ArtifactFacts] = {}
        self.running: set[str] = set()
        self.stopping: set[str] = set()
        self.asking: set[str] = set()
        self.over: dict[str, str] = {}
        """How steps and blocks have ended, by path."""
        self.verdicts: dict[str, str] = {}
        """What blocks will end as."""
        self.rounds: dict[str, int] = {}
        """Blocks that have begun; of loops, their iteration."""
        self.turned: set[str] = set()
        """Whose turn has come."""
        self.tries: dict[str, int] = {}
        self.due_ns: dict[str, int] = {}
        """Of a step that runs or a block that has begun, when it has taken too long."""
        self.rest_ns: dict[str, int] = {}
        """Of a step that failed, when it may be tried again."""
        self.late: set[str] = set()
        self.unwanted: set[str] = set()
        self.has_leave: set[str] = set()
        self.is_cancelled = False
        self.is_paused = False
        self._has_changed = False

    @property
    def end(self) -> str:
        return "" if "" not in self.over else "cancelled" if self.is_cancelled else self.over[""]

    # ------------------------------------------------------------ what happens

    def begin(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self._begin_block("", self.top)
        self._settle()

    def ended(
        self,
        path: str,
        outcome: str,
        now_ns: int,
        *,
        is_final: bool,
        facts: Mapping[str, Any],
        is_stopped: bool = False,
    ) -> None:
        self._pass(now_ns)
        for name, fields in facts.items():
            self.facts[name] = ArtifactFacts(name=name, version=1, fields=fields)
        step = dict(self._steps("", self.top))[path]
        self.running.discard(path)
        self.stopping.discard(path)
        self.due_ns.pop(path, None)
        is_late = path in self.late
        self.late.discard(path)
        retry = step.retry
        if outcome == "completed":
            self.over[path] = "completed"
        elif path in self.unwanted:
            self.over[path] = "cancelled"
        else:
            tried = self.tries[path]
            if is_final and not is_late:
                another = bool(retry.fallback_agent) and not is_stopped
                tried = max(tried, retry.attempts - 1) if another else retry.attempts
            self.tries[path] = tried
            if tried >= retry.attempts:
                self.over[path] = "failed"
            else:
                delay_s = min(retry.backoff.max_s, retry.backoff.base_s * retry.backoff.factor ** (tried - 1))
                self.rest_ns[path] = self.now_ns + round(delay_s * NS_PER_S)
        self._settle()

    def answered(self, path: str, now_ns: int, *, is_granted: bool) -> None:
        self._pass(now_ns)
        if path in self.asking:
            self.asking.discard(path)
            if is_granted:
                self.has_leave.add(path)
                node = dict(self._nodes("", self.top))[path]
                if node.mode is not None:
                    self._begin_block(path, node)
            else:
                self.over[path] = "failed"
        self._settle()

    def cancel(self, now_ns: int) -> None:
        self._pass(now_ns)
        self.is_cancelled = True
        self._settle()

    def fail(self, now_ns: int) -> None:
        self._pass(now_ns)
        if not self.is_cancelled:
            self.verdicts.setdefault("", "failed")
        self._settle()

    def pause(self, now_ns: int, *, paused: bool) -> None:
        self._pass(now_ns)
        self.is_paused = paused
        self._settle()

    def awoke(self, now_ns: int) -> None:
        self._pass(now_ns)
        self._settle()

    # ------------------------------------------------------------ time

    def _pass(self, now_ns: int) -> None:
        self.now_ns = max(self.now_ns, now_ns)
        self._lapse("", self.top, is_wanted=not self.is_cancelled)

    def _lapse(self, path: str, block: Step, *, is_wanted: bool) -> None:
        if path in self.over or path not in self.rounds:
            return
        is_wanted = is_wanted and path not in self.verdicts
        if is_wanted and self.due_ns.get(path, self.now_ns + 1) <= self.now_ns:
            self.verdicts[path] = "failed"
            is_wanted = False
        for place, node in self._places(path, block):
            if node.mode is not None:
                self._lapse(place, node, is_wanted=is_wanted)
            elif place in self.running and not is_wanted:
                self._unwant(place)
            elif place in self.running - self.stopping and self.due_ns.get(place, self.now_ns + 1) <= self.now_ns:
                self.late.add(place)
                self.stopping.add(place)

    # ------------------------------------------------------------ the whole tree, again and again

    def _settle(self) -> None:
        self._has_changed = True
        while self._has_changed:
            self._has_changed = False
            self._look("", self.top, is_wanted=not self.is_cancelled)
        if not self.is_paused and not self.is_cancelled:
            self._begin_steps()

    def _look(self, path: str, node: Step, *, is_wanted: bool) -> str:
        """What a place is now: `waiting` for its turn, `busy`, or how it ended. What nobody wants ends."""
        if path in self.over:
            return self.over[path]
        if node.mode is None and path in self.running:
            if not is_wanted:
                self._unwant(path)
            return "busy"
        if node.mode is not None and path in self.rounds:
            return self._look_into(path, node, is_wanted=is_wanted)
        if not is_wanted:
            self.over[path] = "cancelled" if self.tries.get(path) else "skipped"
            self.asking.discard(path)
            self._has_changed = True
            return self.over[path]
        return "busy" if path in self.turned else "waiting"

    def _unwant(self, path: str) -> None:
        self.unwanted.add(path)
        self.stopping.add(path)
        self.late.discard(path)

    def _look_into(self, path: str, block: Step, *, is_wanted: bool) -> str:
        is_open = is_wanted and path not in self.verdicts
        found = [
            (place, node, self._look(place, node, is_wanted=is_open)) for place, node in self._places(path, block)
        ]
        if not is_open:
            if all(state in OVER for _, _, state in found):
                self.over[path] = self.verdicts.get(path, "cancelled")
                self._has_changed = True
                return self.over[path]
            return "busy"
        verdict = _verdict(block, [(node, state) for _, node, state in found])
        if verdict == "completed" and block.mode == "loop":
            verdict = self._iterated(path, block)
        elif not verdict:
            self._give_turns(block, found)
        if verdict:
            self.verdicts[path] = verdict
            self._has_changed = True
        return "busy"

    def _iterated(self, path: str, loop: Step) -> str:
        if loop.until is not None and holds(loop.until, facts=self.facts, ends={}):
            return "completed"
        if self.rounds[path] >= (loop.max_iterations or 1):
            return "completed" if loop.until is None or loop.on_exhausted == "continue" else "failed"
        places = list(self._places(path, loop))
        if all(self._look(place, node, is_wanted=False) in OVER for place, node in places):
            self.rounds[path] += 1
            self._has_changed = True
        return ""

    def _give_turns(self, block: Step, found: list[tuple[str, Step, str]]) -> None:
        states = {node.id: (node, state) for _, node, state in found}
        waiting = [(place, node) for place, node, state in found if state == "waiting"]
        if block.mode == "graph":
            needs = graph_needs(block.steps)
            for place, node in waiting:
                needed = [states[name] for name in needs[node.id]]
                if any(state in OVER and not _is_given(other, state) for other, state in needed):
                    self.over[place] = "skipped"
                    self._has_changed = True
                elif all(state in OVER for _, state in needed):
                    self._give_turn(place, node)
        elif block.mode == "parallel":
            for place, node in waiting:
                self._give_turn(place, node)
        elif waiting and not any(state == "busy" for _, _, state in found):
            self._give_turn(*waiting[0])

    def _give_turn(self, path: str, node: Step) -> None:
        self._has_changed = True
        if node.when is not None and not holds(node.when, facts=self.facts, ends={}):
            self.over[path] = "skipped"
            return
        self.turned.add(path)
        if node.approval is not None:
            self.asking.add(path)
            return
        self.has_leave.add(path)
        if node.mode is not None:
            self._begin_block(path, node)

    def _begin_block(self, path: str, block: Step) -> None:
        self.rounds[path] = 1
        if block.timeout_s is not None:
            self.due_ns[path] = self.now_ns + round(block.timeout_s * NS_PER_S)

    # ------------------------------------------------------------ room

    def _begin_steps(self) -> None:
        """What was written first begins first, as long as there is room in everything around it."""
        for path, step in self._steps("", self.top):
            rests = self.rest_ns.get(path, 0) > self.now_ns
            if path not in self.has_leave or path in self.over or path in self.running or rests:
                continue
            around = [(b, n) for b, n in self._blocks("", self.top) if path.startswith(self._prefix(b, n))]
            if all(self._busy_in(b, n) < min(n.concurrency or self.concurrency, self.concurrency) for b, n in around):
                self.running.add(path)
                self.tries[path] = self.tries.get(path, 0) + 1
                if step.timeout_s is not None:
                    self.due_ns[path] = self.now_ns + round(step.timeout_s * NS_PER_S)

    def _busy_in(self, path: str, block: Step) -> int:
        return sum(place.startswith(self._prefix(path, block)) for place in self.running)

    def agent_of(self, path: str) -> str:
        """Who makes the attempt that runs."""
        step = dict(self._steps("", self.top))[path]
        retry = step.retry
        is_last = retry.attempts > 1 and self.tries[path] >= retry.attempts
        return retry.fallback_agent if is_last and retry.fallback_agent else step.agent

    # ------------------------------------------------------------ paths

    def _prefix(self, path: str, block: Step) -> str:
        count = f"[{self.rounds[path]}]" if block.mode == "loop" else ""
        return f"{path}{count}/" if path or count else ""

    def _places(self, path: str, block: Step) -> Iterator[tuple[str, Step]]:
        return ((self._prefix(path, block) + node.id, node) for node in block.steps)

    def _nodes(self, path: str, block: Step) -> Iterator[tuple[str, Step]]:
        """All places that there are now, as they are written."""
        if path in self.rounds:
            for place, node in self._places(path, block):
                yield place, node
                yield from self._nodes(place, node)

    def _steps(self, path: str, block: Step) -> Iterator[tuple[str, Step]]:
        return ((place, node) for place, node in self._nodes(path, block) if node.mode is None)

    def _blocks(self, path: str, block: Step) -> Iterator[tuple[str, Step]]:
        yield path, block
        yield from ((place, node) for place, node in self._nodes(path, block) if place in self.rounds)


def _is_bad(node: Step, state: str) -> bool:
    return state in ("failed", "cancelled") and not node.optional


def _is_given(node: Step, state: str) -> bool:
    return state == "completed" or (state == "failed" and node.optional)


def _verdict(block: Step, found: list[tuple[Step, str]]) -> str:
    left = sum(state not in OVER for _, state in found)
    if block.on_failure in ("quorum", "first_success"):
        needed = 1 if block.on_failure == "first_success" else block.quorum or len(found) // 2 + 1
        done = sum(state == "completed" for _, state in found)
        return "completed" if done >= needed else "failed" if done + left < needed else ""
    bad = any(_is_bad(node, state) for node, state in found)
    if block.on_failure == "fail_fast" and bad:
        return "failed"
    return "" if left else "failed" if bad else "completed"
