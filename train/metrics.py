"""Metrics of an evaluation, exact, on masked labels: loss, accuracy, AUROC, F1."""

from dataclasses import dataclass

import numpy as np

from shards.labels import NO, UNKNOWN, YES


@dataclass(frozen=True)
class Metrics:
    """loss: mean over known labels; accuracy: of the argmax, None where labels do not exclude each
    other; auroc: per label, None where only one kind of truth is there; f1: per label, of the
    argmax where labels exclude each other, else of probabilities from 0.5 on; None without a YES.
    """

    loss: float
    accuracy: float | None
    auroc: tuple[float | None, ...]
    f1: tuple[float | None, ...] = ()

    @property
    def auroc_mean(self) -> float | None:
        """Mean over the labels that have one."""
        return _mean(self.auroc)

    @property
    def f1_mean(self) -> float | None:
        """Mean over the labels that have one."""
        return _mean(self.f1)


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def auroc(truth: np.ndarray, score: np.ndarray) -> float | None:
    """truth: (N,) of YES, NO, UNKNOWN; score: (N,) float. The share of (YES, NO) pairs in which YES
    scores higher, ties counting half (Mann-Whitney U)."""
    known = truth != UNKNOWN
    positive = truth[known] == YES
    count, others = int(positive.sum()), int((truth[known] == NO).sum())
    if count == 0 or others == 0:
        return None
    ranks = _ranks(score[known])
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) -> their ranks from 1, of equal values the mean, all NaN where one is. scipy.stats would
    do it and take 1 s to import."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return np.full(len(values), np.nan) if np.isnan(values).any() else ranks


def f1(truth: np.ndarray, called: np.ndarray) -> float | None:
    """truth: (N,) of YES, NO, UNKNOWN; called: (N,) bool -> 2 TP / (2 TP + FP + FN) over what is
    known; None where no truth is YES."""
    known = truth != UNKNOWN
    yes, called = truth[known] == YES, called[known]
    if not yes.any():
        return None
    return float(2 * (yes & called).sum() / (yes.sum() + called.sum()))


def evaluate_logits(logits: np.ndarray, labels: np.ndarray, exclusive: bool) -> Metrics:
    """logits: (N, L) float; labels: (N, L) int8. The loss is NaN where no label is known."""
    wide = logits.astype(np.float64)
    losses = np.logaddexp(0.0, np.where(labels == YES, -wide, wide))
    known = labels != UNKNOWN
    called = wide >= 0
    if exclusive:
        called = wide.argmax(axis=1)[:, None] == np.arange(wide.shape[1])
    return Metrics(
        loss=float(losses[known].mean()) if known.any() else np.nan,
        accuracy=_accuracy(wide, labels) if exclusive else None,
        auroc=tuple(auroc(labels[:, i], wide[:, i]) for i in range(labels.shape[1])),
        f1=tuple(f1(labels[:, i], called[:, i]) for i in range(labels.shape[1])),
    )


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float | None:
    known = (labels != UNKNOWN).all(axis=1)
    if not known.any():
        return None
    return float((logits[known].argmax(axis=1) == labels[known].argmax(axis=1)).mean())
