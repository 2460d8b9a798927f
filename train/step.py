"""One optimiser step over a batch of source images, in micro-batches, on this rank."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shards.order import rank_slice
from train.batch import Expander, known_labels, micro_batches
from train.dist import World
from train.loss import masked_bce_sum
from train.precision import Precision
from train.store import Store


@dataclass(frozen=True)
class Stepper:
    """What a phase's steps have in common. model: as World.wrap returns it."""

    model: nn.Module
    optim: torch.optim.Optimizer
    store: Store
    expander: Expander
    precision: Precision
    world: World
    micro_batch: int

    def accumulate(self, batch: np.ndarray, epoch: int) -> tuple[float, int, int]:
        """Gradients of the mean loss over all copies of `batch` (positions of all ranks).

        Returns this rank's summed loss, and of all ranks the known labels and the copies.
        """
        labels = self.store.labels[batch]
        factors = self.expander.factors(labels)
        known = int((known_labels(labels) * factors).sum())
        share = rank_slice(batch, self.world.rank, self.world.size)
        copies = self.expander.mixed_copies(self.store, share, epoch)
        parts = -(-len(copies) // self.micro_batch)
        # DDP averages gradients over ranks; the loss is a mean over all ranks' labels.
        scale = self.world.size / max(known, 1)
        total = torch.zeros((), device=self.world.device)
        self.optim.zero_grad(set_to_none=True)
        for number, part in enumerate(micro_batches(self.store, copies, self.micro_batch), 1):
            with self._exchange(number == parts):
                with self.precision.autocast():
                    logits = self.model(part.images)
                loss = masked_bce_sum(logits, part.labels)
                self.precision.scaler.scale(loss * scale).backward()
            total += loss.detach()
        return float(total), known, int(factors.sum())

    def update(self) -> None:
        """Move the weights along the accumulated gradients."""
        self.precision.scaler.step(self.optim)
        self.precision.scaler.update()

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients with the step's last micro-batch only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()
