"""One optimiser step over a batch, in micro-batches, on this rank."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.order import rank_slice, samples_of
from train.batch import Batch, micro_batches, part_sizes
from train.dist import World, unwrap
from train.ema import Ema
from train.expand import Copies, Expander
from train.loss import Loss
from train.optim import clear_gradients, clip_gradients
from train.precision import Precision
from train.store import Store

Leave = Callable[[], AbstractContextManager[None]]  # around work that a signal may leave anywhere


@dataclass(frozen=True)
class Stepper:
    """What a phase's steps have in common. model: as World.wrap returns it; clip_norm: as in
    OptimConfig; ema: follows the weights."""

    model: nn.Module
    optim: torch.optim.Optimizer
    store: Store
    expander: Expander
    precision: Precision
    world: World
    micro_batch: int
    loss: Loss = field(default_factory=Loss)
    clip_norm: float | None = None
    ema: Ema | None = None

    def expect(self, batches: Iterable[np.ndarray]) -> None:
        """The batches that come next, so that their images are made ready ahead."""
        shares = (rank_slice(batch, self.world.rank, self.world.size) for batch in batches)
        rows = [np.unique(samples_of(share)) for share in shares]
        self.store.expect(np.concatenate([np.empty(0, np.int64), *rows]))

    def accumulate(
        self, batch: np.ndarray, epoch: int, leave: Leave = nullcontext
    ) -> tuple[float, int, int]:
        """Gradients of the mean loss over all copies of `batch`, or over the copies that it names
        (see shards.order); it is of all ranks. leave: around all that comes before the micro-batch
        with which ranks exchange gradients.

        Returns this rank's summed loss, and of all ranks the loss's terms and the copies.
        """
        labels = self.store.labels[samples_of(batch)]
        factors = self.expander.factors(labels) if batch.ndim == 1 else np.ones(len(batch), int)
        terms = int((self.loss.terms(labels) * factors).sum())
        # DDP averages gradients over ranks; the loss is a mean over all ranks' terms.
        scale = self.world.size / max(terms, 1)
        total = torch.zeros((), device=self.world.device)
        clear_gradients(self.optim)
        with leave():
            copies = self._copies(rank_slice(batch, self.world.rank, self.world.size), epoch)
            parts = micro_batches(self.store, copies, self.micro_batch, self.precision.input_dtype)
            count = len(part_sizes(len(copies), self.micro_batch))
            with self._alone() as exchanged:
                for part in islice(parts, count - exchanged):
                    total += self._backward(part, scale)
            last = list(parts)
        for part in last:
            total += self._backward(part, scale)
        if isinstance(self.model, DistributedDataParallel):
            # What the next step's first forward does otherwise, when one rank may have left it.
            self.model.reducer._rebuild_buckets()
        return float(total), terms, int(factors.sum())

    def _backward(self, part: Batch, scale: float) -> Tensor:
        """Add a part's gradients; its summed loss."""
        with self.precision.autocast():
            logits = self.model(part.images)
        loss = self.loss.sum(logits, part.labels)
        self.precision.scaler.scale(loss * scale).backward()
        return loss.detach()

    def update(self) -> None:
        """Move the weights along the accumulated gradients, and their average after them."""
        if self.clip_norm is not None:
            self.precision.scaler.unscale_(self.optim)
            clip_gradients(self.optim, self.clip_norm)
        self.precision.scaler.step(self.optim)
        self.precision.scaler.update()
        if self.ema:
            self.ema.update(unwrap(self.model))

    def _copies(self, share: np.ndarray, epoch: int) -> Copies:
        """All copies of the share's samples, mixed; or those that it names, in its order."""
        if share.ndim == 1:
            return self.expander.mixed_copies(self.store, share, epoch)
        return self.expander.chosen_copies(self.store, share, epoch)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Without an exchange of gradients; how many of a step's parts, its last, have one."""
        if not isinstance(self.model, DistributedDataParallel):
            yield 0
        else:
            with self.model.no_sync():
                yield 1
