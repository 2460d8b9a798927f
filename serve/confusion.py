"""The confusion matrix and what is counted from it: recall, specificity, precision, F1."""

from dataclasses import dataclass

import numpy as np

from serve.intervals import Estimate, wilson


@dataclass(frozen=True)
class Counts:
    """One class against the rest: images by truth and call."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int

    @property
    def recall(self) -> Estimate | None:
        """Also called sensitivity. None without an image of the class."""
        return wilson(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Estimate | None:
        """None when every image is of the class."""
        return wilson(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> Estimate | None:
        """None when no image was called this class."""
        return wilson(self.true_positive, self.true_positive + self.false_positive)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None when the class is neither there nor called."""
        wrong = self.false_positive + self.false_negative
        total = 2 * self.true_positive + wrong
        return 2 * self.true_positive / total if total else None


def count(truth: np.ndarray, called: np.ndarray) -> Counts:
    """truth, called: (N,) bool."""
    return Counts(
        true_positive=int((truth & called).sum()),
        false_negative=int((truth & ~called).sum()),
        false_positive=int((~truth & called).sum()),
        true_negative=int((~truth & ~called).sum()),
    )


def confusion_matrix(truth: np.ndarray, called: np.ndarray, classes: int) -> np.ndarray:
    """truth, called: (N,) class numbers -> (classes, classes) int64: rows truth, columns calls."""
    flat = np.bincount(truth * classes + called, minlength=classes * classes)
    return flat.reshape(classes, classes)
