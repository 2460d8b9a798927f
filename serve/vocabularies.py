"""The truth of an image for a label, where a data set's labels may be others than a network's.

Labels are matched by name, as they are called after any renaming. serve/README.md has a table of
the cases (subset, superset, overlap, several labels per image, masked).
"""

from collections.abc import Sequence

import numpy as np

from shards.console import UserError, first_few
from shards.labels import NO, UNKNOWN, YES, Vocabulary


def truth_of(network: Vocabulary, given: Vocabulary, values: np.ndarray) -> np.ndarray:
    """The truth of each image for each label of a network.

    given, values: a data set's labels, and what it says of them, (N, D) int8. Returns (N, L) int8.
    A label that both have is as the data set says. A label that the data set lacks is NO where the
    network's labels exclude each other and the image has another of them, else UNKNOWN.
    """
    values = _completed(given, values)
    truth = np.full((len(values), len(network)), UNKNOWN, np.int8)
    shared = [name for name in network.names if name in given.names]
    truth[:, [network.index(n) for n in shared]] = values[:, [given.index(n) for n in shared]]
    if network.exclusive:
        lacking = [network.index(name) for name in network.names if name not in given.names]
        has_one = (truth == YES).any(axis=1, keepdims=True)
        truth[:, lacking] = np.where(has_one, NO, UNKNOWN)
    return truth


def _completed(given: Vocabulary, values: np.ndarray) -> np.ndarray:
    """Of labels that exclude each other, an image that has one has no other."""
    if not given.exclusive:
        return values
    has_one = (values == YES).sum(axis=1, keepdims=True) == 1
    return np.where(has_one & (values == UNKNOWN), NO, values)


def refuse_several(given: Vocabulary, values: np.ndarray, keys: Sequence[str]) -> None:
    """UserError when labels exclude each other and an image has more than one."""
    several = (values == YES).sum(axis=1) > 1
    if given.exclusive and several.any():
        raise UserError(
            f"image {keys[int(several.argmax())]!r} has several labels, but the labels exclude "
            "each other; correct the labels, or evaluate with --exclusive False"
        )


def classes_outside(
    network: Vocabulary, given: Vocabulary, values: np.ndarray
) -> tuple[str | None, ...]:
    """For each image that has none of the network's labels, another one that it has. None for the
    other images. Arguments as of truth_of."""
    names = np.array([*given.names, None], object)
    inside = np.array([name in network.names for name in given.names], bool)
    other = (values == YES) & ~inside
    first = np.where(other.any(axis=1), other.argmax(axis=1), len(given))
    has_one = ((values == YES) & inside).any(axis=1)
    return tuple(names[np.where(has_one, len(given), first)])


def why_no_class(truth: np.ndarray, outside: Sequence[str | None]) -> str | None:
    """Why not every image has exactly one known class among those of a network, so that a call
    cannot be right or wrong for each. None where every image has one.

    truth: (N, L) int8 of truth_of; outside: of classes_outside.
    """
    positives, open_ = (truth == YES).sum(axis=1), (truth == UNKNOWN).any(axis=1)
    other = (positives == 0) & np.array([name is not None for name in outside], bool)
    named = first_few(sorted({name for name, has in zip(outside, other) if has and name}))
    kinds = {
        f"a class that the network lacks ({named})": other,
        "several of its classes": positives > 1,
        "a class that is not fully known": (positives < 2) & open_ & ~other,
        "none of its classes": (positives == 0) & ~open_ & ~other,
    }
    counts = {kind: int(rows.sum()) for kind, rows in kinds.items() if rows.any()}
    parts = [f"{count} of {len(truth)} images have {kind}" for kind, count in counts.items()]
    return ", ".join(parts) or None
