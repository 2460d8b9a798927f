"""From a store and an order to the network's input: the batches of training and of evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.expand import Copies
from train.sources import upload
from train.store import Store
from train.warp import shared_warper

_LEAST = 8  # images of a step's last part


@dataclass(frozen=True)
class Batch:
    """images: (n, 3, S, S), normalised, channels_last, on a CPU valid until the next batch (which
    takes the same memory); labels: (n, L) int8, same device."""

    images: Tensor
    labels: Tensor


def render(store: Store, copies: Copies, dtype: torch.dtype = torch.float32) -> Batch:
    """Gather, warp once and normalise into `dtype`, all on the store's device."""
    images = shared_warper(dtype)(store.images, copies)
    return Batch(images, upload(store.labels[copies.sample], images.device))


def micro_batches(
    store: Store, copies: Copies, micro_batch: int, dtype: torch.dtype = torch.float32
) -> Iterator[Batch]:
    """The copies in parts, see `part_sizes`. Each image that does not lie on the device is fetched
    once for all of them."""
    if store.source:
        rows, place = np.unique(copies.sample, return_inverse=True)
        store, copies = store.take(rows), replace(copies, sample=place)
    ends = np.cumsum(part_sizes(len(copies), micro_batch))
    for part in np.split(np.arange(len(copies)), ends[:-1]):
        yield render(store, copies[part], dtype)


def part_sizes(count: int, micro_batch: int) -> list[int]:
    """Parts of `micro_batch`, and a last one with the rest: a fixed shape is tuned (cuDNN),
    compiled or captured once, where equal parts would have another shape at every step.

    Batch norm on a rest of one or two images has noise for statistics, so the last part has at
    least 8 images (half a part where parts are small); what it lacks the one before gives up.
    """
    whole, rest = divmod(count, micro_batch)
    least = min(_LEAST, (micro_batch + 1) // 2)
    sizes = [micro_batch] * whole + [rest] * (rest > 0)
    if whole and 0 < rest < least:
        sizes[-2:] = [micro_batch - (least - rest), least]
    return sizes
