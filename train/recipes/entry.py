"""A recipe as `python -m train list` shows it: its function, source, data, cost, result."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from train.config import Stage, TrainConfig
from train.phases import total_epochs

# Images of train and val by label ("": the other labels), as the commands of the recipes' data
# give them from the published sets. Cohen's set (covid-chestxray) grew from week to week.
Counts = tuple[dict[str, int], dict[str, int]]
_COUNTS: dict[str, Counts] = {
    "chestxray14": ({"": 78_488}, {"": 11_212}),
    "covid-radiography": (
        {"Normal": 1025, "Viral Pneumonia": 1028, "COVID-19": 117},
        {"Normal": 256, "Viral Pneumonia": 257, "COVID-19": 29},
    ),
    "joint15": ({"": 1914}, {"": 638}),
    "soares": ({"": 270}, {"": 30}),
    "covid-xray-5k": ({"COVID-19": 76, "": 1800}, {"COVID-19": 8, "": 200}),
}


@dataclass(frozen=True)
class Recipe:
    """source: the paper; data: the commands that make the shards; expect: the paper's result;
    counts: images of train and val by label, where they are not the usual split's."""

    build: Callable[[], TrainConfig]
    source: str
    data: str
    expect: str
    counts: Counts | None = None

    @property
    def what(self) -> str:
        """The first paragraph of the function's docstring, on one line."""
        text = inspect.getdoc(getattr(self.build, "func", self.build)) or ""
        return " ".join(text.split("\n\n")[0].split())

    @property
    def cost(self) -> str:
        """How many images, with their copies, go through the network when nothing stops early."""
        stages = self.build().stages
        unknown = sorted({stage.dataset for stage in stages} - set(_COUNTS))
        if unknown or self.build().recipe == "demo":
            epochs = sum(total_epochs(stage.phases) for stage in stages)
            return f"{epochs} epochs over your {', '.join(stage.dataset for stage in stages)}"
        train = sum(passes(stage, 0, self.counts) for stage in stages)
        val = sum(passes(stage, 1, self.counts) for stage in stages)
        return f"{_count(train)} images trained and {_count(val)} validated, at most"


def passes(stage: Stage, split: int, counts: Counts | None = None) -> int:
    """Images with copies over all epochs of a stage; split: 0 train, 1 val."""
    factors = {item.label: item.expansion.factor for item in stage.expansions}
    factors |= {item.label: item.copies for item in stage.variations}
    if split == 1 and not stage.expand_validation:
        factors = {}
    of_split = (counts or _COUNTS[stage.dataset])[split]
    images = sum(count * factors.get(label, 1) for label, count in of_split.items())
    return images * total_epochs(stage.phases)


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"
