"""What a failed workflow undoes: the compensations of its completed steps, last completed first, one at a time.

Each is tried as often as it says, and the next has its turn also where one could not be done. One that has been done
is never begun again.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ottod.core.backoff import delay_s
from ottod.core.workflow_orders import Compensate, StopStep, WorkflowOrder
from ottod.protocol.journal import CompensationEnded
from ottod.protocol.specs import Backoff
from ottod.protocol.workflows import Compensation

NS_PER_S = 1_000_000_000
BACKOFF = Backoff()


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A completed step that can be undone."""

    path: str
    compensation: Compensation
    iteration: int = 0


class Saga:
    """The completed steps of one workflow, and their undoing once that has begun."""

    def __init__(self) -> None:
        self.done: list[Done] = []
        self.undone: list[str] = []
        """Paths that have been undone, or were tried to the last."""
        self.failed: list[str] = []
        self.is_begun = False
        self.has_undone = False
        """A session has begun to undo something."""
        self.attempt = 0
        self.state: Literal["due", "resting", "running", "stopping"] = "due"
        self.due_ns: int | None = None

    @property
    def current(self) -> Done | None:
        """What is undone now or next; None before it has begun and when all is done."""
        return self.done[-1] if self.is_begun and self.done else None

    @property
    def is_busy(self) -> bool:
        """Whether a session undoes something now."""
        return self.current is not None and self.state in ("running", "stopping")

    def add(self, path: str, compensation: Compensation | None, *, iteration: int = 0) -> None:
        """A step has completed."""
        if compensation is not None:
            self.done.append(Done(path=path, compensation=compensation, iteration=iteration))

    def go_on(self, now_ns: int) -> list[WorkflowOrder]:
        """The next one, if it is due and none is under way."""
        done = self.current
        if done is None or self.state != "due":
            return []
        self.attempt += 1
        self.state = "running"
        timeout_s = done.compensation.timeout_s
        self.due_ns = None if timeout_s is None else now_ns + round(timeout_s * NS_PER_S)
        return [self._order(done)]

    def lapse(self, now_ns: int) -> list[WorkflowOrder]:
        """Time has passed."""
        done = self.current
        if done is None or self.due_ns is None or now_ns < self.due_ns:
            return []
        self.due_ns = None
        if self.state == "resting":
            self.state = "due"
        elif self.state == "running":
            return self.stop("it took too long")
        return []

    def put_off(self) -> None:
        """The workflow goes on after all, before anything was undone."""
        self.is_begun, self.state, self.attempt, self.due_ns = False, "due", 0, None

    def stop(self, reason: str) -> list[WorkflowOrder]:
        """Stops the session that undoes something now, if there is one."""
        done = self.current
        if done is None or self.state != "running":
            return []
        self.state, self.due_ns = "stopping", None
        return [StopStep(path=done.path, attempt=self.attempt, reason=reason, undo=True)]

    def ended(self, entry: CompensationEnded, *, now_ns: int, goes_on: bool) -> None:
        """An attempt is over. Unless the saga `goes_on`, one that failed stays to be undone."""
        done = self.current
        if done is None or done.path != entry.path or self.attempt != entry.attempt or not self.is_busy:
            return
        self.due_ns = None
        if entry.outcome == "completed":
            self._next(done.path)
        elif not goes_on:
            self.state = "due"
        elif self.attempt >= done.compensation.attempts:
            self.failed.append(done.path)
            self._next(done.path)
        else:
            self.state = "resting"
            delay_ns = round(delay_s(BACKOFF, self.attempt, random=entry.jitter) * NS_PER_S)
            self.due_ns = now_ns + delay_ns

    def _order(self, done: Done) -> Compensate:
        return Compensate(
            path=done.path, attempt=self.attempt, compensation=done.compensation, iteration=done.iteration
        )

    def _next(self, path: str) -> None:
        self.undone.append(path)
        self.done.pop()
        self.state, self.attempt = "due", 0

    def outstanding(self) -> list[WorkflowOrder]:
        """What was ordered and is not over."""
        done = self.current
        if done is None or not self.is_busy:
            return []
        orders: list[WorkflowOrder] = [self._order(done)]
        if self.state == "stopping":
            orders.append(StopStep(path=done.path, attempt=self.attempt, reason="it is not wanted", undo=True))
        return orders
