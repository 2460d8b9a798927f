"""Class balancing: an epoch's images drawn with replacement, every class as often. Decisions only.

Deep-COVID (Minaee et al., arXiv 2004.09363) balances its classes by sampling. Read as: an epoch
draws as many images as the training set has with its copies; each class is drawn as often; within a
class each image and each copy has the same probability. A copy drawn twice in an epoch is the same
both times.
"""

import numpy as np

from shards.labels import YES
from shards.philox import philox


def balanced_order(labels: np.ndarray, factors: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """labels (N, L), copies per sample (N,) -> (N,) int64 samples, each with all its copies, in
    random order; the same for any number of ranks. The classes have as many copies, so one whose
    samples have five copies each is drawn a fifth as often.

    A label's class are the samples that are YES there, so one with several labels is in several
    classes; those with none form a class too.
    """
    count = len(labels)
    classes = [np.flatnonzero(column) for column in (labels == YES).T]
    classes.append(np.flatnonzero((labels != YES).all(axis=1)))
    classes = [members for members in classes if len(members)]
    counter = np.zeros((count, 4), np.uint32)
    counter[:, 0] = np.arange(count, dtype=np.uint32)
    counter[:, 1] = epoch
    words = philox(counter, (seed, 0x62616C61)).astype(np.uint64)  # the key's second word: "bala"
    turn = np.lexsort((np.arange(count), (words[:, 0] << np.uint64(32)) | words[:, 1]))
    draws = _shares(np.array([1 / factors[members].mean() for members in classes]), count)
    which = np.repeat(np.arange(len(classes)), draws)[turn]
    sizes = np.array([len(members) for members in classes], np.uint64)
    starts = np.cumsum(sizes) - sizes
    within = (words[:, 2] * sizes[which]) >> np.uint64(32)
    return np.concatenate(classes)[starts[which] + within]


def balanced_copies(
    labels: np.ndarray, factors: np.ndarray, *, seed: int, epoch: int
) -> np.ndarray:
    """labels (N, L), copies per sample (N,) -> (T, 2) int64 single copies, as (sample, copy), in
    random order; T: all the copies that there are. Classes and ranks as in `balanced_order`."""
    samples = np.repeat(np.arange(len(labels)), factors)
    numbers = np.arange(len(samples)) - np.repeat(np.cumsum(factors) - factors, factors)
    drawn = balanced_order(labels[samples], np.ones_like(samples), seed=seed, epoch=epoch)
    return np.stack([samples[drawn], numbers[drawn]], axis=1)


def _shares(weights: np.ndarray, count: int) -> np.ndarray:
    """`count` in whole parts that are proportional to the weights, each within one."""
    exact = weights / weights.sum() * count
    parts = exact.astype(np.int64)
    largest = np.argsort(parts - exact, kind="stable")
    parts[largest[: count - parts.sum()]] += 1
    return parts
