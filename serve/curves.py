"""Curves of one label against the rest: ROC, precision-recall, thresholds, histograms of scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.confusion import count
from serve.intervals import PlusMinus, counts_above, plus_minus
from serve.judged import Judged

MAX_POINTS = 500  # of a curve in metrics.json; the CSV files hold them all
GRID = 1000  # steps of the threshold from 0 to 1 in `operating`
HISTOGRAM_BINS = 30


@dataclass(frozen=True)
class RankCurve:
    """A point for each distinct score, from the highest down: the images from that score on are
    called. distinct: how many there are; more than MAX_POINTS are thinned evenly along the ROC
    curve, ends kept.
    The curves begin at (0, 0) and at recall 0, which no score belongs to."""

    label: str
    distinct: int
    threshold: list[float]
    true_positive_rate: list[float]
    false_positive_rate: list[float]
    precision: list[float]


@dataclass(frozen=True)
class ThresholdRow:
    """Called from `threshold` on. The intervals are the papers': p +- 1.96 sqrt(p (1 - p) / n)."""

    threshold: float
    sensitivity: PlusMinus | None
    specificity: PlusMinus | None
    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


@dataclass(frozen=True)
class LabelThresholds:
    """One label's rows, in the order of the thresholds asked for."""

    label: str
    rows: tuple[ThresholdRow, ...]


@dataclass(frozen=True)
class OperatingCounts:
    """Of `positives` and `negatives`, how many have a probability from each step on."""

    label: str
    positives: int
    negatives: int
    true_positive: list[int]
    false_positive: list[int]


@dataclass(frozen=True)
class Operating:
    """Counts at threshold i / steps for i from 0 to `steps`: what a slider needs."""

    steps: int
    classes: tuple[OperatingCounts, ...]


@dataclass(frozen=True)
class LabelHistogram:
    """Images with and without the label (known truth) in each bin of its probability."""

    label: str
    with_label: list[int]
    without_label: list[int]


@dataclass(frozen=True)
class Histograms:
    """edges: one more than bins; a bin holds its lower edge, the last one both."""

    edges: list[float]
    classes: tuple[LabelHistogram, ...]


def rank_curves(judged: Judged, max_points: int | None = MAX_POINTS) -> tuple[RankCurve, ...]:
    """Of each label that has both kinds of truth; max_points None: every point."""
    found = []
    for i, label in enumerate(judged.labels):
        positive, scores, _ = judged.known(i)
        if not positive.any() or positive.all():
            continue
        false, true, at = counts_above(scores, positive)
        rates = (at, true / true[-1], false / false[-1], true / (true + false))
        take = _thinned(rates[1] + rates[2], max_points)
        found.append(RankCurve(label, len(at), *(values[take].tolist() for values in rates)))
    return tuple(found)


def _thinned(along: np.ndarray, most: int | None) -> np.ndarray:
    """At most `most` places, evenly spread over the rising values `along`; the ends among them."""
    if most is None or len(along) <= most:
        return np.arange(len(along))
    return np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], most)))


def threshold_tables(judged: Judged, thresholds: Sequence[float]) -> tuple[LabelThresholds, ...]:
    """Sensitivity and specificity of each label at each threshold."""
    tables = []
    for i, label in enumerate(judged.labels):
        positive, scores, _ = judged.known(i)
        rows = tuple(_threshold_row(positive, scores, threshold) for threshold in thresholds)
        tables.append(LabelThresholds(label, rows))
    return tuple(tables)


def _threshold_row(positive: np.ndarray, scores: np.ndarray, threshold: float) -> ThresholdRow:
    counts = count(positive, scores >= threshold)
    tp, fn = counts.true_positive, counts.false_negative
    fp, tn = counts.false_positive, counts.true_negative
    return ThresholdRow(threshold, plus_minus(tp, tp + fn), plus_minus(tn, tn + fp), tp, fn, fp, tn)


def operating(judged: Judged) -> Operating:
    """The counts behind sensitivity, specificity and the 2 x 2 table at any of the steps."""
    grid = np.arange(GRID + 1) / GRID
    found = []
    for i, label in enumerate(judged.labels):
        positive, scores, _ = judged.known(i)
        with_it, without = np.sort(scores[positive]), np.sort(scores[~positive])
        true, false = (
            (len(kind) - np.searchsorted(kind, grid, side="left")).tolist()
            for kind in (with_it, without)
        )
        found.append(OperatingCounts(label, len(with_it), len(without), true, false))
    return Operating(GRID, tuple(found))


def histograms(judged: Judged) -> Histograms:
    """Counts of each label's probability, with and without it."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    found = []
    for i, label in enumerate(judged.labels):
        positive, scores, _ = judged.known(i)
        kinds = [np.histogram(scores[kind], edges)[0].tolist() for kind in (positive, ~positive)]
        found.append(LabelHistogram(label, *kinds))
    return Histograms(edges.tolist(), tuple(found))
