"""DeLong's test: do two sets of scores of the same images have different areas under the ROC?

DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845. Takes images as independent.
"""

import math
from dataclasses import dataclass

import numpy as np

from serve.intervals import Z95, Estimate, auroc, placements


@dataclass(frozen=True)
class AreaTest:
    """this, other: the two areas; difference: this - other, in [-1, 1]; p: two-sided, of the
    hypothesis that they are equal. z, p: None where the difference has no variance."""

    this: Estimate
    other: Estimate
    difference: Estimate
    z: float | None
    p: float | None


def delong_test(this: np.ndarray, other: np.ndarray, truth: np.ndarray) -> AreaTest | None:
    """this, other: (N,) scores; truth: (N,) bool. None when truth has only one kind."""
    area, other_area = auroc(this, truth), auroc(other, truth)
    if area is None or other_area is None:
        return None
    difference = area.value - other_area.value
    error = _standard_error(this, other, truth)
    if error is None:
        return AreaTest(area, other_area, Estimate(difference, None, None), None, None)
    half, z = Z95 * error, difference / error
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    p = math.erfc(abs(z) / math.sqrt(2))
    return AreaTest(area, other_area, Estimate(difference, low, high), z, p)


def _standard_error(this: np.ndarray, other: np.ndarray, truth: np.ndarray) -> float | None:
    """Of the difference of the areas. None where it is zero but for rounding, or not known."""
    v10, v01 = placements(this, truth)
    w10, w01 = placements(other, truth)
    if len(v10) == 1 or len(v01) == 1:
        return None
    # The variance of a difference of means of pairs: the covariance of the areas is in it.
    variance = (v10 - w10).var(ddof=1) / len(v10) + (v01 - w01).var(ddof=1) / len(v01)
    return math.sqrt(variance) if variance > 1e-24 else None
