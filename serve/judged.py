"""The images that count in an evaluation: scored, with known truth, and called.

Classes that exclude each other: an image's call is the class of its largest probability. Otherwise
a label is called from probability 0.5 on.
"""

from dataclasses import dataclass, replace

import numpy as np

from serve.predictions import Joined
from serve.vocabularies import why_no_class
from shards.console import UserError
from shards.labels import NO, UNKNOWN, YES

CALL_FROM = 0.5


@dataclass(frozen=True)
class Judged:
    """truth: (N, L) int8, -1 unknown; probabilities: (N, L) float64 in [0, 1]; called: (N, L) bool;
    rows: (N,) their places in the Joined; errors, unlabelled: how many images are left out.
    exclusive: the called label is the one of the largest probability; no_class: why such a call is
    not right or wrong for every image, None where it is. A part of the images keeps it."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    exclusive: bool
    truth: np.ndarray
    probabilities: np.ndarray
    called: np.ndarray
    rows: np.ndarray
    patients: tuple[str | None, ...] | None
    meta: dict[str, tuple[str | None, ...]]
    errors: int
    unlabelled: int
    no_class: str | None

    def known(self, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of one label, where its truth is known: truth (bool), probabilities, called."""
        known = self.truth[:, column] != UNKNOWN
        positive = self.truth[known, column] == YES
        return positive, self.probabilities[known, column], self.called[known, column]

    @property
    def one_class(self) -> bool:
        """Whether each image has exactly one known class of a network whose classes exclude each
        other: only then there are accuracy, confusion matrix and McNemar's test of the calls."""
        return self.exclusive and self.no_class is None

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: the called class is the true one. Only where one_class."""
        assert self.one_class
        return self.truth.argmax(1) == self.called.argmax(1)

    def take(self, chosen: np.ndarray) -> "Judged":
        """Some of the images: (N,) bool, or their numbers."""
        numbers = np.arange(len(self.keys))[chosen]
        return replace(
            self,
            keys=tuple(self.keys[i] for i in numbers),
            truth=self.truth[numbers],
            probabilities=self.probabilities[numbers],
            called=self.called[numbers],
            rows=self.rows[numbers],
            patients=None if self.patients is None else tuple(self.patients[i] for i in numbers),
            meta={name: tuple(values[i] for i in numbers) for name, values in self.meta.items()},
        )


def judge(joined: Joined) -> Judged:
    """Leave out what cannot be judged. UserError when values are wrong or nothing is left."""
    _check(joined)
    truth, scored = joined.targets, ~np.isnan(joined.probabilities).any(axis=1)
    known = (truth != UNKNOWN).any(axis=1)
    rows = np.flatnonzero(scored & known)
    if not rows.size:
        raise UserError(
            f"none of the {len(joined.keys)} scored images has a known label among "
            f"{', '.join(joined.labels)}: nothing to evaluate"
        )
    probabilities = joined.probabilities[rows]
    return Judged(
        keys=tuple(joined.keys[i] for i in rows),
        labels=joined.labels,
        exclusive=joined.exclusive,
        truth=truth[rows],
        probabilities=probabilities,
        called=calls(probabilities, joined.exclusive),
        rows=rows,
        patients=None if joined.patients is None else tuple(joined.patients[i] for i in rows),
        meta={name: tuple(values[i] for i in rows) for name, values in joined.meta.items()},
        errors=int((~scored).sum()),
        unlabelled=int((scored & ~known).sum()),
        no_class=why_no_class(truth[rows], [joined.outside[i] for i in rows]),
    )


def calls(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
    """(N, L) float -> (N, L) bool. Equal largest probabilities: the first class."""
    if not exclusive:
        return probabilities >= CALL_FROM
    return probabilities.argmax(1)[:, None] == np.arange(probabilities.shape[1])


def _check(joined: Joined) -> None:
    """Joining has seen to equal keys and labels; the values are what is left to be wrong."""
    missing = np.isnan(joined.probabilities)
    if missing.all():
        raise UserError(
            f"none of the {len(joined.keys)} images could be scored: nothing to evaluate; the "
            "column `error` of the scores says why"
        )
    in_range = (joined.probabilities >= 0) & (joined.probabilities <= 1)
    outside = ~in_range & ~missing.all(axis=1, keepdims=True)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UserError(
            f"image {joined.keys[row]!r} has {joined.probabilities[row, column]:g} for "
            f"{joined.labels[column]!r}; a probability is from 0 to 1: score again"
        )
    if not np.isin(joined.targets, (YES, NO, UNKNOWN)).all():
        raise UserError("the labels hold other values than 1, 0 and -1; ingest again")
