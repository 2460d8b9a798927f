"""The loss, unknown labels masked out: binary cross-entropy per label, or softmax over them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shards.labels import UNKNOWN, YES

Output = Literal["sigmoid", "softmax"]


def masked_bce_sum(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, per_row: bool = False
) -> Tensor:
    """logits: (N, L) float; labels: (N, L) int8 in {-1, 0, 1} -> the sum over known labels, in all
    or (N,) per row. weights: (L,), each multiplies its label's YES term (torch's pos_weight).

    The sum, not the mean: micro-batches and ranks of unequal size then add up exactly.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), (labels == YES).float(), reduction="none", pos_weight=weights
    )
    known = losses * (labels != UNKNOWN)
    return known.sum(dim=1) if per_row else known.sum()


def masked_softmax_sum(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, per_row: bool = False
) -> Tensor:
    """Cross-entropy of softmax over labels that exclude each other: -log p of the one that is YES,
    times its weight; a row without a YES counts nothing. Shapes as in masked_bce_sum."""
    truth = (labels == YES).float()
    if weights is not None:
        truth = truth * weights
    rows = -(F.log_softmax(logits.float(), dim=1) * truth).sum(dim=1)
    return rows if per_row else rows.sum()


def probabilities(logits: Tensor, output: str) -> Tensor:
    """(N, L) logits -> (N, L): sigmoid per label, or softmax over the labels."""
    return torch.softmax(logits, dim=1) if output == "softmax" else torch.sigmoid(logits)


@dataclass(frozen=True)
class Loss:
    """A stage's loss. weights: (L,) on the training device, or None."""

    output: Output = "sigmoid"
    weights: Tensor | None = None

    def sum(self, logits: Tensor, labels: Tensor, *, per_row: bool = False) -> Tensor:
        """(N, L), (N, L) int8 -> the sum, in all or (N,) per row; divide by the terms' sum."""
        compute = masked_softmax_sum if self.output == "softmax" else masked_bce_sum
        return compute(logits, labels, weights=self.weights, per_row=per_row)

    def terms(self, labels: np.ndarray) -> np.ndarray:
        """(N, L) int8 -> (N,) how many losses each row adds: its known labels, or 1 with softmax
        where it has a YES. Class weights do not change them."""
        if self.output == "softmax":
            return (labels == YES).any(axis=1).astype(np.int64)
        return (labels != UNKNOWN).sum(axis=1)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """(N, L) -> (N, L) float64 that order images as the probabilities do. A logit of softmax
        does not: its label's probability depends on the others' logits too."""
        wide = logits.astype(np.float64)
        if self.output == "sigmoid":
            return wide
        return wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
