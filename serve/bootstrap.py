"""Intervals by the bootstrap over patients: images of one patient are drawn together or not at all.

Percentile intervals (Efron 1979). The draws are addressed: those of replicate b are a function of
(seed, b) and of the sorted names of the patients, so the order of the rows does not matter and the
same evaluation gives the same intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.intervals import Estimate
from serve.judged import Judged
from shards.labels import NO, YES
from shards.philox import uniform

CLASS_METRICS = ("recall", "specificity", "precision", "f1", "auroc", "average_precision")
_TAG = 0x0B007  # keeps these draws apart from other uses of the seed
_DEFINED = 0.95  # an interval needs a value in at least this share of the replicates


@dataclass(frozen=True)
class ClassBootstrap:
    """One label against the rest; value is the number itself, not the mean of the replicates."""

    label: str
    recall: Estimate | None
    specificity: Estimate | None
    precision: Estimate | None
    f1: Estimate | None
    auroc: Estimate | None
    average_precision: Estimate | None


@dataclass(frozen=True)
class Bootstrap:
    """unit: what was drawn; units: how many of it; lone_images: images without a known patient,
    each drawn on its own. mean: over the classes that have the number. No interval (low, high
    None) where fewer than 95 % of the replicates have the number, or all have the same."""

    unit: str
    units: int
    lone_images: int
    replicates: int
    seed: int
    accuracy: Estimate | None
    classes: tuple[ClassBootstrap, ...]
    mean: dict[str, Estimate | None]


def bootstrap(judged: Judged, replicates: int, seed: int) -> Bootstrap:
    """Every number of `judged` with the interval of `replicates` resamples."""
    unit_of, units, lone = _units(judged)
    sample = _Sample(judged)
    found = sample.measure(np.ones(len(judged.keys)))
    drawn = [sample.measure(draw(units, b, seed)[unit_of].astype(float)) for b in range(replicates)]
    own = {name: _estimate(v, np.array([one[name] for one in drawn])) for name, v in found.items()}
    classes = [
        ClassBootstrap(label, **{name: own[f"{name} {i}"] for name in CLASS_METRICS})
        for i, label in enumerate(judged.labels)
    ]
    return Bootstrap(
        unit="image" if lone == len(judged.keys) else "patient",
        units=units,
        lone_images=lone,
        replicates=replicates,
        seed=seed,
        accuracy=own.get("accuracy"),
        classes=tuple(classes),
        mean={name: own[f"mean {name}"] for name in CLASS_METRICS},
    )


def draw(units: int, replicate: int, seed: int) -> np.ndarray:
    """(units,) int64: how often each unit is drawn, with replacement, in this replicate."""
    blocks = -(-units // 4)
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0], counter[:, 1] = np.arange(blocks), replicate
    picks = (uniform(counter, (seed, _TAG)).ravel()[:units] * units).astype(np.int64)
    return np.bincount(picks, minlength=units)


def _units(judged: Judged) -> tuple[np.ndarray, int, int]:
    """(N,) number of each image's unit, how many units, how many images without a patient."""
    patients: Sequence[str | None] = judged.patients or (None,) * len(judged.keys)
    names = [
        f"image {key}" if patient is None else f"patient {patient}"
        for key, patient in zip(judged.keys, patients)
    ]
    unique, numbers = np.unique(names, return_inverse=True)
    return numbers, len(unique), sum(patient is None for patient in patients)


def _estimate(value: float, drawn: np.ndarray) -> Estimate | None:
    if np.isnan(value):
        return None
    defined = drawn[~np.isnan(drawn)]
    if not defined.size or defined.size < _DEFINED * drawn.size:
        return Estimate(value, None, None)
    low, high = (float(q) for q in np.quantile(defined, (0.025, 0.975)))
    return Estimate(value, low, high) if low < high else Estimate(value, None, None)


class _Sample:
    """What does not change from replicate to replicate: who counts where, the order of ranks."""

    def __init__(self, judged: Judged) -> None:
        truth, called = judged.truth, judged.called
        cells = (truth == YES) & called, (truth == YES) & ~called
        others = (truth == NO) & called, (truth == NO) & ~called
        self.cells = np.concatenate([*cells, *others], axis=1).astype(float)  # (N, 4 L)
        self.labels = len(judged.labels)
        self.correct = judged.correct.astype(float) if judged.one_class else None
        self.rankings = [
            _Ranking(truth[:, i], judged.probabilities[:, i]) for i in range(self.labels)
        ]
        rows = self._rows(np.ones(len(truth)))
        self.averaged = {name: ~np.isnan(row) for name, row in rows.items()}

    def measure(self, weights: np.ndarray) -> dict[str, float]:
        """weights: (N,), how often each image counts. NaN where a number is not defined, a mean
        among them that lacks a class which the whole sample has."""
        rows, nan = self._rows(weights), float("nan")
        found = {f"{name} {i}": float(v) for name, row in rows.items() for i, v in enumerate(row)}
        for name, row in rows.items():
            averaged = row[self.averaged[name]]
            found[f"mean {name}"] = float(averaged.mean()) if averaged.size else nan
        if self.correct is not None:
            found["accuracy"] = float(weights @ self.correct / weights.sum())
        return found

    def _rows(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each of CLASS_METRICS as (L,) float64."""
        tp, fn, fp, tn = (weights @ self.cells).reshape(4, self.labels)
        areas, precisions = np.array([one.areas(weights) for one in self.rankings]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "recall": tp / (tp + fn),
                "specificity": tn / (tn + fp),
                "precision": tp / (tp + fp),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "auroc": areas,
                "average_precision": precisions,
            }


class _Ranking:
    """One label's images by falling probability; ties are settled together."""

    def __init__(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        known = np.flatnonzero(truth >= 0)
        self.order = known[np.argsort(-probabilities[known], kind="stable")]
        falling = probabilities[self.order]
        self.ends = np.flatnonzero(np.r_[falling[1:] != falling[:-1], [True] * bool(known.size)])
        self.positive = (truth[self.order] == YES).astype(float)

    def areas(self, weights: np.ndarray) -> tuple[float, float]:
        """AUROC and average precision of the weighted images; NaN without both kinds."""
        own = weights[self.order]
        above = np.cumsum(own)[self.ends]
        true = np.cumsum(own * self.positive)[self.ends]
        false = above - true
        if not true.size or not true[-1] or not false[-1]:
            return float("nan"), float("nan")
        gained, lost = np.diff(true, prepend=0), np.diff(false, prepend=0)
        area = (lost * (true - gained / 2)).sum() / (true[-1] * false[-1])
        precision = np.divide(true, above, out=np.zeros_like(true), where=above > 0)
        return float(area), float((gained * precision).sum() / true[-1])
