"""Which copies the samples of a step have: positions in a store -> matrices. No pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from shards.labels import YES
from shards.philox import name_words, philox
from train.augment import (
    NONE,
    Augment,
    CopyParameters,
    Expansion,
    Varied,
    affine_matrices,
    copies_of,
    unchanged,
)
from train.store import Store

# A key's hash costs 6 us, as much as the other parameters of a copy; 2^18 of them are 40 MB.
_words = lru_cache(maxsize=1 << 18)(name_words)


@dataclass(frozen=True)
class Copies:
    """Which copies a batch has: sample (K,) positions in the store; matrices (K, 2, 3) float32,
    output pixel -> input pixel; jitter (K, 2) factors of brightness and contrast; elastic
    (K, 4, 4, 2) float32, the control points' movement in pixels."""

    sample: np.ndarray
    matrices: np.ndarray
    jitter: np.ndarray
    elastic: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, part: np.ndarray) -> "Copies":
        return Copies(self.sample[part], self.matrices[part], self.jitter[part], self.elastic[part])


def copies_from(sample: np.ndarray, parameters: CopyParameters, size: int) -> Copies:
    """The copies that these parameters describe."""
    return Copies(
        sample,
        affine_matrices(parameters, size),
        np.stack([parameters.brightness, parameters.contrast], axis=1),
        parameters.elastic.astype(np.float32),
    )


@dataclass(frozen=True)
class Expander:
    """Turns positions in a store into copies.

    expansions: per label position, for samples that are YES there; augment: the random change that
    takes the place of every other sample's image."""

    expansions: Mapping[int, Expansion | Varied]
    augment: Augment
    seed: int
    size: int

    def factors(self, labels: np.ndarray) -> np.ndarray:
        """(N, L) labels -> (N,) copies per sample."""
        of_rule = [1, *(rule.factor for rule in self._different)]
        return np.array(of_rule, np.int64)[self._rules(labels)]

    def copies(self, store: Store, samples: np.ndarray, epoch: int) -> Copies:
        """All copies of these samples in this epoch, sample after sample, copy 0 first."""
        factors = self.factors(store.labels[samples])
        starts = np.cumsum(factors) - factors
        numbers = np.arange(factors.sum()) - np.repeat(starts, factors)
        which = np.stack([np.repeat(samples, factors), numbers], axis=1)
        return self.chosen_copies(store, which, epoch)

    def chosen_copies(self, store: Store, which: np.ndarray, epoch: int) -> Copies:
        """which: (K, 2) sample and number of the copy, as `shards.order` has them."""
        return copies_from(which[:, 0], self.parameters(store, which, epoch), self.size)

    def parameters(self, store: Store, which: np.ndarray, epoch: int) -> CopyParameters:
        """What happens to each of `chosen_copies`."""
        samples, numbers = which.T
        rules = self._rules(store.labels[samples])
        words = np.array([_words(store.keys[i]) for i in samples], np.uint32).reshape(-1, 2)
        found = unchanged(len(which))
        for number, rule in enumerate([self.augment, *self._different]):
            rows = np.flatnonzero(rules == number)
            if len(rows) and rule != NONE:
                address = {"seed": self.seed, "epoch": epoch, "size": self.size}
                found.put(rows, copies_of(words[rows], numbers[rows], rule, **address))
        return found

    def mixed_copies(self, store: Store, samples: np.ndarray, epoch: int) -> Copies:
        """The same copies in a shuffled order, so that micro-batches are mixed: 72 copies of one
        image side by side would give batch norm the statistics of one patient."""
        copies = self.copies(store, samples, epoch)
        if len(copies) == len(samples):  # one each: the epoch's order has mixed them
            return copies
        address = np.zeros((len(copies), 4), np.uint32)
        address[:, 0] = np.arange(len(copies))
        address[:, 1], address[:, 2] = epoch, samples[0]
        return copies[np.argsort(philox(address, (self.seed, 0x6D6978))[:, 0], kind="stable")]

    @cached_property
    def _different(self) -> list[Expansion | Varied]:
        """The expansions without repetition, from the fewest to the most copies."""
        return sorted(dict.fromkeys(self.expansions.values()), key=lambda rule: rule.factor)

    def _rules(self, labels: np.ndarray) -> np.ndarray:
        """(N, L) labels -> (N,) which of the different expansions holds, from 1; 0: none. Where
        several do, the one with the most copies."""
        rules = np.zeros(len(labels), np.int64)
        numbered = [(self._different.index(rule) + 1, at) for at, rule in self.expansions.items()]
        for number, label in sorted(numbered):
            rules[labels[:, label] == YES] = number
        return rules
