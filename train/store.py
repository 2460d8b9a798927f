"""The store: a split decoded and resized once, kept as uint8 for every later epoch.

112,120 images of 224 x 224 are 5.6 GB; after the first pass an epoch is a gather and a warp. Where
there is no room for them they come from an on-disk store or, decoded anew, from the shards: the
same images, so the same batches. `train/load.py` makes stores.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from train.sources import ImageSource, upload


@dataclass(frozen=True)
class InputConfig:
    """backend: who decodes and resizes; auto takes DALI where a GPU is there, else torch's threads.
    threads: decoding threads of this process; 0 takes its share of the processor's cores.
    store: where the images are kept: device (the GPU), host (pinned memory), disk (the file in
    cache), stream (nowhere: decoded in every epoch); auto takes the first that has room.
    cache: a folder for on-disk stores, so that the next run on the same shards starts in seconds;
    on a disk of this machine, with 50 kB for each image of 224 x 224."""

    backend: Literal["auto", "dali", "torch"] = "auto"
    threads: int = 0
    store: Literal["auto", "device", "host", "disk", "stream"] = "auto"
    cache: Path | None = None

    def num_threads(self, processes: int) -> int:
        """Of each of so many processes of this machine."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // processes)


@dataclass(frozen=True)
class Store:
    """keys: N; images: (N, S, S) uint8 on the training device, or empty where `source` gives them;
    labels: (N, L) int8 on the CPU."""

    keys: tuple[str, ...]
    images: Tensor
    labels: np.ndarray
    source: ImageSource | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def device(self) -> torch.device:
        """Where `take` leaves images."""
        return self.source.device if self.source else self.images.device

    def take(self, positions: np.ndarray) -> "Store":
        """The samples at these positions, their images on the device."""
        if self.source:
            images = self.source.take(positions)
        else:
            images = self.images[upload(positions, self.images.device)]
        return Store(
            tuple(self.keys[i] for i in positions.tolist()), images, self.labels[positions]
        )

    def expect(self, positions: np.ndarray) -> None:
        """What `take` will be asked for from now on, in this order: it is made ready ahead."""
        if self.source:
            self.source.expect(positions)

    def close(self) -> None:
        """Give back what a source holds; the store is not used any more."""
        if self.source:
            self.source.close()


def select_labels(store: Store, columns: list[int]) -> Store:
    """The store with these of its labels, in this order."""
    return replace(store, labels=store.labels[:, columns])
