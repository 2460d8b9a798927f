"""The same numbers for parts of the images: by view, sex, age band and source of the shards.

A small group has wide intervals: read them before the values.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serve.bootstrap import bootstrap
from serve.confusion import count
from serve.intervals import Estimate, auroc, wilson
from serve.judged import Judged

BY = ("view", "sex", "age", "source")
AGE_BANDS = ((0, 17), (18, 39), (40, 59), (60, 79), (80, 120))  # years, both ends in
MAX_GROUPS = 12


@dataclass(frozen=True)
class GroupClass:
    """One label against the rest in one group; Wilson's and DeLong's intervals."""

    label: str
    positives: int
    negatives: int
    recall: Estimate | None
    specificity: Estimate | None
    auroc: Estimate | None


@dataclass(frozen=True)
class Group:
    """mean_auroc: over the labels that have one in this group, with the bootstrap's interval."""

    value: str
    images: int
    patients: int | None
    accuracy: Estimate | None
    mean_auroc: Estimate | None
    classes: tuple[GroupClass, ...]


@dataclass(frozen=True)
class Subgroups:
    """by: one of BY; groups: largest first, ages in their order; unknown: images without it;
    smaller: images in groups beyond the MAX_GROUPS largest."""

    by: str
    groups: tuple[Group, ...]
    unknown: int
    smaller: int


def subgroups(judged: Judged, replicates: int = 0, seed: int = 0) -> tuple[Subgroups, ...]:
    """For each of BY that is known and takes at least two values. replicates, seed: of the
    bootstrap behind the intervals of the mean AUROC; 0: no intervals."""
    found = []
    for by in BY:
        values = [group_of(by, value) for value in judged.meta.get(by, ())]
        counts = Counter(value for value in values if value is not None)
        if len(counts) < 2:
            continue
        largest = [value for value, _ in counts.most_common(MAX_GROUPS)]
        names = [_band(*ends) for ends in AGE_BANDS if _band(*ends) in largest]
        groups = tuple(
            _group(part, value, replicates, seed)
            for value, part in _parts(judged, values, names or largest)
        )
        shown = sum(group.images for group in groups)
        unknown = values.count(None)
        found.append(Subgroups(by, groups, unknown, len(values) - unknown - shown))
    return tuple(found)


def group_of(by: str, value: str | None) -> str | None:
    """The group of a value: itself, or the age's band; None when it is not known."""
    if by != "age" or value is None:
        return value
    try:
        years = int(float(value.rstrip("Yy")))
    except (ValueError, OverflowError):
        return None
    return next((_band(low, high) for low, high in AGE_BANDS if low <= years <= high), None)


def _band(low: int, high: int) -> str:
    return f"{low}-{high}" if high < AGE_BANDS[-1][1] else f"{low} and over"


def _parts(
    judged: Judged, values: list[str | None], chosen: list[str]
) -> Iterator[tuple[str, Judged]]:
    for value in chosen:
        yield value, judged.take(np.array([one == value for one in values]))


def _group(part: Judged, value: str, replicates: int, seed: int) -> Group:
    classes = []
    for i, label in enumerate(part.labels):
        positive, scores, called = part.known(i)
        counts = count(positive, called)
        kinds = (int(positive.sum()), int((~positive).sum()))
        area = auroc(scores, positive)
        classes.append(GroupClass(label, *kinds, counts.recall, counts.specificity, area))
    return Group(
        value=value,
        images=len(part.keys),
        patients=count_patients(part.patients),
        accuracy=wilson(int(part.correct.sum()), len(part.keys)) if part.one_class else None,
        mean_auroc=bootstrap(part, replicates, seed).mean["auroc"],
        classes=tuple(classes),
    )


def count_patients(patients: Sequence[str | None] | None) -> int | None:
    """How many patients images are of; None where it is not known of each image."""
    if patients is None or None in patients:
        return None
    return len(set(patients))
