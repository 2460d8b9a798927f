"""Does an exported model score as the trained one? The measure, and how far each may be off.

The tolerances of all precisions are TOLERANCES; `serve export --help` repeats them, as a test sees.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from serve.intervals import auroc
from shards.console import RunFailed
from shards.labels import UNKNOWN, YES

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Tolerance:
    """probability: the largest difference in any probability (None: only reported); auroc_loss:
    what the mean AUROC may lose."""

    probability: float | None
    auroc_loss: float


# Measured on DenseNet121 at 64 pixels trained on 145 real radiographs: fp32 1e-6, fp16 1e-3 at
# most; int8 up to 0.05 in a probability and 0.002 in mean AUROC. int8 is judged by the AUROC alone:
# its thresholds are chosen anew on its own probabilities.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(probability=1e-4, auroc_loss=1e-3),
    "fp16": Tolerance(probability=1e-2, auroc_loss=2e-3),
    "int8": Tolerance(probability=None, auroc_loss=5e-3),
}


@dataclass(frozen=True)
class Parity:
    """torch in fp32 beside ONNX Runtime on `provider`, the same images. The AUROCs are means over
    the labels that have one (None: no label has); max_auroc_difference: the largest of a label;
    allowed_auroc_loss: of the gate that it passed (None: not known)."""

    images: int
    max_probability_difference: float
    mean_probability_difference: float
    auroc_torch: float | None
    auroc_onnx: float | None
    max_auroc_difference: float
    provider: str
    allowed_auroc_loss: float | None = None

    @property
    def auroc_loss(self) -> float | None:
        """What the mean AUROC loses; negative where it gains."""
        if self.auroc_torch is None or self.auroc_onnx is None:
            return None
        return self.auroc_torch - self.auroc_onnx


def measure(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, provider: str) -> Parity:
    """ours (torch), theirs (ONNX Runtime): (N, L) probabilities; labels: (N, L) int8."""
    pairs = list(zip(label_aurocs(ours, labels), label_aurocs(theirs, labels)))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    differences = np.abs(ours.astype(np.float64) - theirs)
    return Parity(
        images=len(ours),
        max_probability_difference=float(differences.max()),
        mean_probability_difference=float(differences.mean()),
        auroc_torch=float(np.mean([a for a, _ in known])) if known else None,
        auroc_onnx=float(np.mean([b for _, b in known])) if known else None,
        max_auroc_difference=max((abs(a - b) for a, b in known), default=0.0),
        provider=provider,
    )


def label_aurocs(probabilities: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """(N, L), (N, L) int8 -> one AUROC per label; None where only one kind is known."""
    found = []
    for column in range(labels.shape[1]):
        known = labels[:, column] != UNKNOWN
        estimate = auroc(probabilities[known, column], labels[known, column] == YES)
        found.append(None if estimate is None else estimate.value)
    return found


def judge(parity: Parity, precision: Precision, max_auroc_loss: float | None = None) -> Parity:
    """The parity with the loss that was allowed. RunFailed, in one line, when the model is beyond
    its tolerance; max_auroc_loss takes the place of the table's."""
    tolerance = TOLERANCES[precision]
    allowed = tolerance.auroc_loss if max_auroc_loss is None else max_auroc_loss
    largest, loss = parity.max_probability_difference, parity.auroc_loss
    problem = None
    if not np.isfinite(largest):
        problem = "a probability is not a finite number"
    elif tolerance.probability is not None and largest > tolerance.probability:
        problem = (
            f"torch and ONNX Runtime differ by {largest:.2g} in probability "
            f"(at most {tolerance.probability:g})"
        )
    elif loss is not None and loss > allowed:
        problem = (
            f"the mean AUROC falls by {loss:.2g}, from {parity.auroc_torch:.4f} to "
            f"{parity.auroc_onnx:.4f} (at most {allowed:g})"
        )
    elif tolerance.probability is None and loss is None:
        problem = "no label has images with and without it, so the AUROC cannot be compared"
    if problem:
        ways = _ways_out(precision)
        raise RunFailed(f"no model written: {precision} on {parity.images} images: {problem}{ways}")
    return replace(parity, allowed_auroc_loss=allowed)


def _ways_out(precision: Precision) -> str:
    if precision == "int8":
        return "; try --calibration with more images, --max-auroc-loss, or --precision fp32"
    return "; try --precision fp32" if precision == "fp16" else ""
