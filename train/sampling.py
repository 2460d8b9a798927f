"""Class balancing: an epoch's samples drawn with replacement, every class as often. Decisions only.

Deep-COVID (Minaee et al., arXiv 2004.09363) balances its classes by sampling. Read as: an epoch
draws as many samples as the split has; the network sees the classes' copies in equal numbers, so a
class whose images have five copies each is drawn a fifth as often; within a class each sample has
the same probability. A sample drawn twice in an epoch has the same copies both times.
"""

import numpy as np

from shards.labels import YES
from shards.philox import philox


def balanced_order(labels: np.ndarray, factors: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """labels (N, L), copies per sample (N,) -> (N,) int64 positions, in random order; the same for
    any number of ranks.

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


def _shares(weights: np.ndarray, count: int) -> np.ndarray:
    """`count` in whole parts that are proportional to the weights, each within one."""
    exact = weights / weights.sum() * count
    parts = exact.astype(np.int64)
    largest = np.argsort(parts - exact, kind="stable")
    parts[largest[: count - parts.sum()]] += 1
    return parts
