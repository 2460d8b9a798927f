"""From a store and an order to the network's input: the batches of training and of evaluation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.labels import UNKNOWN, YES
from shards.philox import philox
from train.augment import IDENTITY, CopyParameters, Expansion, affine_matrices, copy_parameters
from train.augment import random_mirror as mirrored_now
from train.store import Store
from train.warp import normalise, warp


@dataclass(frozen=True)
class Batch:
    """images: (n, 3, S, S) float32, normalised, channels_last; labels: (n, L) int8, same device."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Copies:
    """Which copies a batch has: sample (K,) positions in the store; matrices (K, 2, 3)."""

    sample: np.ndarray
    matrices: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, part: np.ndarray) -> "Copies":
        return Copies(self.sample[part], self.matrices[part])


@dataclass(frozen=True)
class Expander:
    """Turns positions in a store into copies.

    expansions: per label position, for samples that are YES there; mirror: the probability that a
    mirrored image takes the place of the original (the ChestX-ray14 stage)."""

    expansions: Mapping[int, Expansion]
    mirror: float
    seed: int
    size: int

    def expansion_of(self, labels: np.ndarray) -> Expansion:
        """The largest of the expansions of this sample's (L,) labels."""
        found = [e for label, e in self.expansions.items() if labels[label] == YES]
        return max(found, key=lambda expansion: expansion.factor, default=IDENTITY)

    def factors(self, labels: np.ndarray) -> np.ndarray:
        """(N, L) labels -> (N,) copies per sample."""
        return np.array([self.expansion_of(row).factor for row in labels], np.int64)

    def copies(self, store: Store, samples: np.ndarray, epoch: int) -> Copies:
        """All copies of these samples in this epoch, sample after sample, copy 0 first."""
        sample, matrices = [], []
        for position in samples:
            key = store.keys[position]
            parameters = self._parameters(key, store.labels[position], epoch)
            sample.append(np.full(len(parameters.mirror), position))
            matrices.append(affine_matrices(parameters, self.size))
        return Copies(np.concatenate(sample), np.concatenate(matrices))

    def mixed_copies(self, store: Store, samples: np.ndarray, epoch: int) -> Copies:
        """The same copies in a shuffled order, so that micro-batches are mixed: 72 copies of one
        image side by side would give batch norm the statistics of one patient."""
        copies = self.copies(store, samples, epoch)
        address = np.zeros((len(copies), 4), np.uint32)
        address[:, 0] = np.arange(len(copies))
        address[:, 1], address[:, 2] = epoch, samples[0]
        return copies[np.argsort(philox(address, (self.seed, 0x6D6978))[:, 0], kind="stable")]

    def _parameters(self, key: str, labels: np.ndarray, epoch: int) -> CopyParameters:
        expansion = self.expansion_of(labels)
        parameters = copy_parameters(key, expansion, seed=self.seed, epoch=epoch, size=self.size)
        if self.mirror and mirrored_now(key, probability=self.mirror, seed=self.seed, epoch=epoch):
            flipped = ~parameters.mirror
            return CopyParameters(
                parameters.rotation_deg, parameters.dx_px, parameters.dy_px, flipped
            )
        return parameters


def render(store: Store, copies: Copies) -> Batch:
    """Gather, warp once and normalise, all on the store's device."""
    rows = torch.from_numpy(copies.sample)
    images = store.images[rows.to(store.images.device)]
    labels = torch.from_numpy(store.labels[copies.sample]).to(images.device)
    return Batch(normalise(warp(images, copies.matrices)), labels)


def micro_batches(store: Store, copies: Copies, micro_batch: int) -> Iterator[Batch]:
    """The copies in parts of at most `micro_batch`, as equal as they can be (batch norm sees no
    part of one or two images)."""
    parts = -(-len(copies) // micro_batch)
    for part in np.array_split(np.arange(len(copies)), parts):
        yield render(store, copies[part])


def known_labels(labels: np.ndarray) -> np.ndarray:
    """(N, L) labels -> (N,) how many are known."""
    return (labels != UNKNOWN).sum(axis=1)
