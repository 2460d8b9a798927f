"""Estimates with 95 % intervals, exact to the last digit: proportions (Wilson), areas (DeLong).

Every interval here takes the images as independent of each other; `serve.bootstrap` does not.
"""

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # the standard normal's 97.5 % point


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; low and high are None where there is none."""

    value: float
    low: float | None
    high: float | None


def wilson(successes: int, total: int) -> Estimate | None:
    """A proportion with Wilson's score interval (1927); None when nothing was counted.

    Unlike p +- 1.96 sqrt(p (1 - p) / n) it stays inside [0, 1] and does not shrink to a point at
    0 and 1, where a good classifier is.
    """
    if total == 0:
        return None
    share, z2 = successes / total, Z95 * Z95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total * total)
    half = Z95 / (1 + z2 / total) * math.sqrt(spread)
    # Rounding must not push an end past the proportion itself at 0 and 1.
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


@dataclass(frozen=True)
class PlusMinus(Estimate):
    """A proportion as the papers print it: value +- half_width; low and high are cut at 0 and 1."""

    half_width: float


def plus_minus(successes: int, total: int) -> PlusMinus | None:
    """The papers' interval (Deep-COVID, arXiv 2004.09363): p +- 1.96 sqrt(p (1 - p) / n).

    It is a point at 0 and 1 and too narrow near them; `wilson` is not. None when total is 0.
    """
    if total == 0:
        return None
    share = successes / total
    half = 1.96 * math.sqrt(share * (1 - share) / total)
    return PlusMinus(share, max(0.0, share - half), min(1.0, share + half), half)


def midranks(values: np.ndarray) -> np.ndarray:
    """(N,) -> (N,) float64 ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def auroc(scores: np.ndarray, truth: np.ndarray) -> Estimate | None:
    """Area under the ROC curve with DeLong's interval (1988), by midranks (Sun and Xu, 2014).

    scores: (N,) float; truth: (N,) bool. The area is the share of (positive, negative) pairs that
    are in the right order, ties counted half. None when truth has only one kind. The interval is
    value +- 1.96 sqrt(variance), cut at 0 and 1; there is none where the variance is zero (a
    perfect order says nothing of its own uncertainty) or has a kind with a single image.
    """
    m, n = int(truth.sum()), int((~truth).sum())
    if not m or not n:
        return None
    v10, v01 = placements(scores, truth)
    value = float(v10.mean())
    if m == 1 or n == 1 or value in (0.0, 1.0):
        return Estimate(value, None, None)
    half = Z95 * math.sqrt(v10.var(ddof=1) / m + v01.var(ddof=1) / n)
    if half < 1e-12:  # zero but for rounding
        return Estimate(value, None, None)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def placements(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components, ties counted half: per positive the share of negatives below
    it (M,), per negative the share of positives above it (N,); the mean of each is the area."""
    m, n = int(truth.sum()), int((~truth).sum())
    ranks = midranks(scores)
    v10 = (ranks[truth] - midranks(scores[truth])) / n
    v01 = 1 - (ranks[~truth] - midranks(scores[~truth])) / m
    return v10, v01


def roc_points(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, (K,) float64 each, from (0, 0) to (1, 1): one point for each
    distinct score, so that ties are a slanted piece. scores: (N,); truth: (N,) bool of both kinds.
    """
    false, true, _ = counts_above(scores, truth)
    return np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]]


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """The sum over thresholds of precision x gain in recall, without interpolation, ties together.

    scores: (N,); truth: (N,) bool. None when truth has only one kind.
    """
    if truth.all() or not truth.any():
        return None
    false, true, _ = counts_above(scores, truth)
    gained = np.diff(true, prepend=0) / true[-1]
    return float((gained * true / (true + false)).sum())


def counts_above(
    scores: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Negatives and positives at or above each distinct score, and that score, highest first."""
    order = np.argsort(-scores, kind="stable")
    falling, kinds = scores[order], truth[order]
    last_of_tie = np.r_[falling[1:] != falling[:-1], True]
    return np.cumsum(~kinds)[last_of_tie], np.cumsum(kinds)[last_of_tie], falling[last_of_tie]
