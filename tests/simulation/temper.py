"""How a worker behaves, drawn by chance: most are decent, some crash, hang, dawdle or leave things behind."""

from __future__ import annotations

from typing import NamedTuple

from tests.simulation.world import World


class Temper(NamedTuple):
    """One worker's character. Times in seconds."""

    slow_start_s: float = 0.0
    dies_after_s: float | None = None
    hangs_after_s: float | None = None
    ignores_term: bool = False
    ignores_stop: bool = False
    is_mute: bool = False
    """Does not answer commands."""
    leaves_tools: bool = False
    stop_takes_s: float = 0.2
    turn_pieces: int = 6
    piece_s: float = 0.8
    burst: int = 4
    """The most deltas at once."""
    failure_share: float = 0.1
    child_share: float = 0.0


class Tempers:
    """Draws characters. `is_calm` gives only decent ones: the faults are over and everything must come to rest."""

    def __init__(self, world: World) -> None:
        self._random = world.random
        self.is_calm = False
        self.crash_share = self._random.choice((0.0, 0.1, 0.5))
        self.hang_share = self._random.choice((0.0, 0.0, 0.1))
        self.slow_share = self._random.choice((0.0, 0.05))
        self.child_share = self._random.choice((0.0, 0.5))
        self.burst = self._random.choice((2, 4, 40))

    def draw(self) -> Temper:
        random = self._random
        if self.is_calm:
            return Temper(child_share=0.0, failure_share=0.0, piece_s=0.1)
        return Temper(
            slow_start_s=random.uniform(0, 8) if random.random() < self.slow_share else 0.0,
            dies_after_s=random.uniform(0, 6) if random.random() < self.crash_share else None,
            hangs_after_s=random.uniform(0, 6) if random.random() < self.hang_share else None,
            ignores_term=random.random() < 0.1,
            ignores_stop=random.random() < 0.05,
            is_mute=random.random() < 0.03,
            leaves_tools=random.random() < 0.2,
            stop_takes_s=random.choice((0.05, 0.5, 5.0)),
            turn_pieces=random.choice((1, 4, 12)),
            piece_s=random.choice((0.1, 1.0, 3.0)),
            burst=self.burst,
            failure_share=random.choice((0.0, 0.3, 1.0)),
            child_share=self.child_share,
        )
