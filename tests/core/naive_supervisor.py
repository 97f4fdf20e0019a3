"""An oracle for supervisor nodes: a synchronous supervisor without delays, written down as plainly as OTP's manual.

It knows nothing of events, tasks or mailboxes: starting and stopping a child happens in the moment it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ottod.core.supervision_events import ChildSpec, ExitReason
from ottod.protocol.specs import Group

NS_PER_S = 1_000_000_000


@dataclass
class NaiveSupervisor:
    """`up` holds who lives; `order` who is a member. `did` collects what was done, `outcome` how it ended."""

    group: Group
    specs: dict[str, ChildSpec]
    fails: dict[str, int]
    order: list[str] = field(default_factory=list)
    up: set[str] = field(default_factory=set)
    restarts_ns: list[int] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    outcome: str = ""

    def ended(self, child: str, reason: ExitReason, now_ns: int) -> None:
        """A child that was up has ended by itself."""
        spec = self.specs[child]
        self.up.remove(child)
        if (
            reason != "withdrawn"
            and spec.restart != "temporary"
            and (spec.restart == "permanent" or reason == "error")
        ):
            self._restart(child, now_ns)
            return
        if reason == "withdrawn" or spec.restart == "temporary":
            self.order.remove(child)
        mode = self.group.auto_shutdown
        others = any(self.specs[c].significant for c in self.up)
        if spec.significant and (mode == "any_significant" or (mode == "all_significant" and not others)):
            self._stop_all("auto_shutdown")

    def stopped_for_good(self, child: str) -> None:
        if child in self.up:
            self._stop(child)
        if child in self.order:
            self.order.remove(child)

    def _restart(self, child: str, now_ns: int) -> None:
        while True:
            self.restarts_ns.append(now_ns)
            period_ns = round(self.group.period_s * NS_PER_S)
            if sum(at_ns >= now_ns - period_ns for at_ns in self.restarts_ns) > self.group.max_restarts:
                self._stop_all("gave_up")
                return
            together = [child]
            if self.group.strategy == "rest_for_one":
                together = self.order[self.order.index(child) :]
            elif self.group.strategy == "one_for_all":
                together = list(self.order)
            for other in reversed(together):
                if other in self.up:
                    self._stop(other)
                if other != child and self.specs[other].restart == "temporary":
                    self.order.remove(other)
                    together.remove(other)
            failed = next((other for other in together if not self._start(other)), None)
            if failed is None:
                return
            child = failed

    def _start(self, child: str) -> bool:
        if self.fails.get(child, 0) > 0:
            self.fails[child] -= 1
            self.did.append(f"!{child}")
            return False
        self.did.append(f"+{child}")
        self.up.add(child)
        return True

    def _stop(self, child: str) -> None:
        self.did.append(f"-{child}")
        self.up.remove(child)

    def _stop_all(self, outcome: str) -> None:
        for child in reversed(self.order):
            if child in self.up:
                self._stop(child)
        self.outcome = outcome
