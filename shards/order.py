"""The order of samples: a pure function of (counts, seed, epoch), shared out over ranks.

Nothing here keeps state: a run that knows (seed, epoch, step) knows what comes next, on any number
of ranks.
"""

from typing import Literal

import numpy as np

from shards.philox import philox

Remainder = Literal["wrap", "drop", "short"]


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: a permutation of range(count) for this epoch."""
    counter = np.zeros((count, 4), np.uint32)
    counter[:, 0] = np.arange(count, dtype=np.uint32)
    counter[:, 1] = epoch
    words = philox(counter, (seed, 0x6F726472)).astype(np.uint64)  # the key's second word: "ordr"
    rank = (words[:, 0] << np.uint64(32)) | words[:, 1]
    return np.lexsort((np.arange(count), rank))


def steps_per_epoch(count: int, batch: int, remainder: Remainder) -> int:
    """How many global batches an epoch has."""
    return count // batch if remainder == "drop" else -(-count // batch)


def global_batch(order: np.ndarray, step: int, batch: int, remainder: Remainder) -> np.ndarray:
    """The samples of one step, over all ranks.

    The last batch of an epoch is short, is dropped, or wraps to the epoch's own first samples.
    """
    if not 0 <= step < steps_per_epoch(len(order), batch, remainder):
        raise IndexError(f"step {step} of {steps_per_epoch(len(order), batch, remainder)}")
    positions = np.arange(step * batch, (step + 1) * batch)
    if remainder == "wrap":
        return order[positions % len(order)]
    return order[positions[positions < len(order)]]


def rank_slice(samples: np.ndarray, rank: int, world: int) -> np.ndarray:
    """This rank's share: every world-th sample from the rank-th on. Shares are disjoint."""
    return samples[rank::world]
