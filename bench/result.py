"""A question's answer: our rate and the peer's, measured in turns; as text and as a JSON line."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.machine import this_machine, versions
from shards.console import progress
from train.settings import commit

Side = Callable[[], int]  # does the work once, and returns how many images that were


@dataclass(frozen=True)
class Rates:
    """The rate of each repetition in images per second, in order."""

    img_s: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.img_s)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest repetition."""
        return min(self.img_s), max(self.img_s)


@dataclass(frozen=True)
class Result:
    """what: the work that both sides do; images: of one repetition; others: more sides of the same
    run, by name, each with our rate over theirs; extra: further figures."""

    name: str
    what: str
    peer_name: str
    ours: Rates
    peer: Rates
    images: int
    synthetic: bool
    quick: bool
    others: Mapping[str, Rates] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the JSON line; `ratio` is that of the two rates as they stand there."""
        ours, peer = round(self.ours.median, 3), round(self.peer.median, 3)
        return {
            "name": self.name,
            "what": self.what,
            "unit": "img/s",
            "ours": ours,
            "peer": peer,
            "peer_name": self.peer_name,
            "ratio": ours / peer,
            "spread": {"ours": rounded(self.ours.spread), "peer": rounded(self.peer.spread)},
            "n": len(self.ours.img_s),
            "images": self.images,
            "others": {name: self._other(rates) for name, rates in self.others.items()},
            **self.extra,
            "machine": asdict(this_machine()),
            "versions": versions(),
            "commit": commit(),
            "synthetic": self.synthetic,
            "quick": self.quick,
        }

    def _other(self, rates: Rates) -> dict[str, Any]:
        ratio = self.ours.median / rates.median
        return {"img_s": round(rates.median, 3), "spread": rounded(rates.spread), "ratio": ratio}


def rounded(values: tuple[float, ...]) -> list[float]:
    """Rates as the JSON line shows them."""
    return [round(value, 3) for value in values]


def interleave(
    label: str,
    sides: Mapping[str, Side],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    clear: Callable[[], object] = int,
) -> dict[str, Rates]:
    """Run the sides in turns, so that a machine's slow minute strikes all of them. clear: away with
    what the side before wrote, unmeasured.

    Every other turn goes backwards: what a side leaves to the machine does not always strike the
    same neighbour. One turn goes ahead unmeasured: it fills the page cache and pays for imports and
    start-up. What a side wrote is on the disk before the next begins, which does not pay for it.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    with progress(label, (repeats + 1) * len(sides)) as advance:
        for turn in range(repeats + 1):
            for name, work in order[:: -1 if turn % 2 else 1]:
                clear()
                os.sync()
                began = clock()
                images = work()
                rate = images / (clock() - began)
                if turn:
                    measured[name].append(rate)
                advance(1, f"{name} {rate:.0f} img/s")
    return {name: Rates(tuple(rates)) for name, rates in measured.items()}


def print_result(result: Result) -> None:
    """The answer in words on standard output, and as its last line the JSON."""
    line = result.to_dict()
    print(f"{result.name}: {result.what}")
    sides = {"ours": result.ours, result.peer_name: result.peer, **result.others}
    for who, rates in sides.items():
        low, high = rates.spread
        ratio = (
            "" if who.startswith("ours") else f"; ours is {result.ours.median / rates.median:.2f}x"
        )
        print(f"  {rates.median:9.1f} img/s ({low:.1f} to {high:.1f})  {who}{ratio}")
    for name, value in result.extra.items():
        print(f"  {name}: {value}")
    kind = "synthetic radiographs" if result.synthetic else "images"
    print(
        f"  ratio {line['ratio']:.2f}, n = {line['n']}, {result.images} {kind} each; "
        f"{this_machine()}; commit {line['commit']}{'; --quick' if result.quick else ''}"
    )
    print(json.dumps(line))
