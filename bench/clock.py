"""Parts of a step, and the clock that measures each beside its ceiling (the question `doctor`)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from bench.machine import synchronise


@dataclass(frozen=True)
class Part:
    """ms: per image or copy, median; ceiling_ms: what it could be; ceiling: what that is."""

    name: str
    ms: float
    ceiling_ms: float
    ceiling: str


class Clock:
    """Medians over the repetitions, in ms per item."""

    def __init__(self, repeats: int, tick: Callable[[], None]) -> None:
        self.repeats, self.tick = repeats, tick

    def ms(self, work: Callable[[], object], items: int, device: torch.device) -> float:
        """The first time goes unmeasured: it pays for memory and start-up."""
        found = []
        for turn in range(self.repeats + 1):
            began = time.perf_counter()
            work()
            synchronise(device)
            if turn:
                found.append((time.perf_counter() - began) * 1e3 / items)
        return median(found)

    def part(
        self,
        name: str,
        work: Callable[[], object],
        limit: Callable[[], object],
        items: int,
        ceiling: str,
        device: torch.device,
    ) -> Part:
        """A part and its ceiling, one after the other."""
        ms, least = self.ms(work, items, device), self.ms(limit, items, device)
        for _ in range(self.repeats):
            self.tick()
        return Part(name, ms, least, ceiling)
