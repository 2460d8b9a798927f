"""Operating points: from which probability on a label is called. Chosen on validation images.

sensitivity98: the highest threshold that still finds 98 % of the positives. youden: the threshold
of the largest sensitivity + specificity - 1 (Youden, 1950); of equal ones the most sensitive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.console import UserError, warn
from shards.labels import UNKNOWN, YES

PointName = Literal["sensitivity98", "youden"]
POINT_NAMES: tuple[PointName, ...] = ("sensitivity98", "youden")
SENSITIVITY = 0.98


@dataclass(frozen=True)
class OperatingPoint:
    """Called where probability >= threshold; what that gave on so many images of either kind."""

    threshold: float
    sensitivity: float
    specificity: float
    positives: int
    negatives: int


Thresholds = Mapping[str, Mapping[str, OperatingPoint | None]]  # point's name -> label -> point


def choose(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> Thresholds:
    """probabilities: (N, L) float; targets: (N, L) int8, -1 unknown. None for a label of which only
    one kind was seen."""
    points: dict[str, dict[str, OperatingPoint | None]] = {name: {} for name in POINT_NAMES}
    for column, label in enumerate(labels):
        known = targets[:, column] != UNKNOWN
        truth = targets[known, column] == YES
        scores = probabilities[known, column]
        points["sensitivity98"][label] = sensitivity_point(scores, truth, SENSITIVITY)
        points["youden"][label] = youden_point(scores, truth)
    return points


def sensitivity_point(
    scores: np.ndarray, truth: np.ndarray, at_least: float
) -> OperatingPoint | None:
    """scores: (N,) float; truth: (N,) bool. The most specific point of at least this sensitivity;
    None when truth has only one kind."""
    if truth.all() or not truth.any():
        return None
    thresholds, true, false = _counts(scores, truth)
    needed = math.ceil(at_least * int(truth.sum()) - 1e-9)  # 0.98 x 50 is 49, not 49.0000001
    return _point(thresholds, true, false, int(np.argmax(true >= needed)))


def youden_point(scores: np.ndarray, truth: np.ndarray) -> OperatingPoint | None:
    """scores: (N,) float; truth: (N,) bool; None when truth has only one kind."""
    if truth.all() or not truth.any():
        return None
    thresholds, true, false = _counts(scores, truth)
    gain = true * int((~truth).sum()) - false * int(truth.sum())  # in whole numbers: ties are ties
    return _point(thresholds, true, false, len(gain) - 1 - int(np.argmax(gain[::-1])))


def _counts(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds from the highest down, and the positives and negatives at or above each, (K,) all.

    A threshold lies midway between two neighbouring scores, so that another processor's rounding
    calls the same images; the lowest is 0.
    """
    values, inverse = np.unique(scores.astype(np.float64), return_inverse=True)
    true = np.bincount(inverse, truth, len(values))[::-1].cumsum().astype(np.int64)
    false = np.bincount(inverse, ~truth, len(values))[::-1].cumsum().astype(np.int64)
    thresholds = np.r_[0.0, (values[:-1] + values[1:]) / 2][::-1]
    return thresholds, true, false


def _point(
    thresholds: np.ndarray, true: np.ndarray, false: np.ndarray, index: int
) -> OperatingPoint:
    positives, negatives = int(true[-1]), int(false[-1])
    return OperatingPoint(
        threshold=float(thresholds[index]),
        sensitivity=int(true[index]) / positives,
        specificity=(negatives - int(false[index])) / negatives,
        positives=positives,
        negatives=negatives,
    )


def pick(
    thresholds: Thresholds, name: PointName | None, labels: Sequence[str], model: str
) -> tuple[OperatingPoint | None, ...] | None:
    """A model's points of this name, in the order of its labels; None when none is asked for.

    UserError when the model has no such thresholds; says which labels go without one.
    """
    if name is None:
        return None
    if name not in thresholds:
        have = ", ".join(thresholds) or "none"
        raise UserError(
            f"{model} has no thresholds for {name} (it has: {have}); export the run again, or "
            "leave out --operating-point"
        )
    points = tuple(thresholds[name][label] for label in labels)
    without = [label for label, point in zip(labels, points) if point is None]
    if without:
        warn(f"{model} has no {name} threshold for {', '.join(without)}; their calls are null")
    return points


def called(probabilities: np.ndarray, point: OperatingPoint) -> np.ndarray:
    """(N,) probabilities of a label -> (N,) bool."""
    wide = probabilities.astype(np.float64)  # float32 would round the threshold too
    return np.asarray(wide >= point.threshold)
