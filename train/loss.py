"""The loss: binary cross-entropy per output with sigmoid, unknown labels masked out."""

import torch
from torch import Tensor

from shards.labels import UNKNOWN, YES


def masked_bce_sum(logits: Tensor, labels: Tensor, *, per_row: bool = False) -> Tensor:
    """logits: (N, L) float; labels: (N, L) int8 in {-1, 0, 1} -> the sum over known labels, in all
    or (N,) per row.

    The sum, not the mean: micro-batches and ranks of unequal size then add up exactly.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), (labels == YES).float(), reduction="none"
    )
    known = losses * (labels != UNKNOWN)
    return known.sum(dim=1) if per_row else known.sum()
