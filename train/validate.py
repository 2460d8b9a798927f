"""Evaluation of a network on a split: every sample exactly once, on any number of ranks."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from shards.order import rank_slice
from train.batch import micro_batches
from train.dist import World
from train.expand import Copies, Expander
from train.loss import Loss
from train.metrics import Metrics, evaluate_logits
from train.precision import Precision
from train.step import Leave
from train.store import Store


def validate(
    model: nn.Module,
    store: Store,
    expander: Expander,
    *,
    exclusive: bool,
    world: World,
    precision: Precision,
    micro_batch: int,
    loss: Loss,
    leave: Leave = nullcontext,
) -> Metrics:
    """Loss over all copies of the expander, accuracy and AUROC over the images themselves.

    Validation sees the same copies every time (those of epoch 0), so that losses compare. leave:
    around all but the exchange.
    """
    share = rank_slice(np.arange(len(store)), world.rank, world.size)
    store.expect(share)
    model.eval()
    with torch.inference_mode(), leave():
        rows = _rows(model, store, expander, share, precision, micro_batch, loss)
    gathered = world.gather_rows(rows, len(store)).cpu().numpy()
    metrics = evaluate_logits(loss.scores(gathered[:, 1:]), store.labels, exclusive)
    terms = loss.terms(store.labels) * expander.factors(store.labels)
    mean = float(gathered[:, 0].sum() / terms.sum()) if terms.any() else float("nan")
    return replace(metrics, loss=mean)


def _rows(
    model: nn.Module,
    store: Store,
    expander: Expander,
    share: np.ndarray,
    precision: Precision,
    micro_batch: int,
    loss: Loss,
) -> Tensor:
    """Per sample of the share: the loss summed over its copies, then the logits of copy 0."""
    factors = expander.factors(store.labels[share])
    rows = torch.zeros((len(share), 1 + store.labels.shape[1]), device=store.device)
    for part in _parts(factors, micro_batch) if len(share) else []:
        copies = expander.copies(store, share[part], 0)
        losses, logits = _forward(model, store, copies, precision, micro_batch, loss)
        starts = np.concatenate([[0], np.cumsum(factors[part])[:-1]])
        owner = torch.from_numpy(np.repeat(part, factors[part])).to(rows.device)
        rows[:, 0].index_add_(0, owner, losses)
        rows[torch.from_numpy(part).to(rows.device), 1:] = logits[torch.from_numpy(starts)]
    return rows


def _forward(
    model: nn.Module,
    store: Store,
    copies: Copies,
    precision: Precision,
    micro_batch: int,
    loss: Loss,
) -> tuple[Tensor, Tensor]:
    """(K,) losses and (K, L) logits, float32."""
    losses, logits = [], []
    for batch in micro_batches(store, copies, micro_batch, precision.input_dtype):
        with precision.autocast():
            out = model(batch.images).float()
        losses.append(loss.sum(out, batch.labels, per_row=True))
        logits.append(out)
    return torch.cat(losses), torch.cat(logits)


def _parts(factors: np.ndarray, micro_batch: int) -> list[np.ndarray]:
    """Consecutive positions whose copies together fill about one micro-batch."""
    group = (np.cumsum(factors) - 1) // micro_batch
    return np.split(np.arange(len(factors)), np.flatnonzero(np.diff(group)) + 1)
