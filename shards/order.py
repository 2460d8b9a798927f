"""The order of samples: a pure function of (counts, seed, epoch), shared out over ranks.

Nothing here keeps state: a run that knows (seed, epoch, step) knows what comes next, on any number
of ranks. A batch is of samples (n,), each with all its copies, or of single copies (n, 2): sample
and number of the copy.
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


def copy_order(samples: np.ndarray, factors: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """(T, 2) int64: every copy of an epoch's samples once, shuffled, as (sample, copy).

    samples: (n,) those of the epoch, repeats allowed; factors: (n,) how many copies each has.
    """
    ends = np.cumsum(factors)
    flat = epoch_order(int(ends[-1]) if len(ends) else 0, seed=seed, epoch=epoch)
    place = np.searchsorted(ends, flat, side="right")
    return np.stack([samples[place], flat - (ends - factors)[place]], axis=1)


def samples_of(batch: np.ndarray) -> np.ndarray:
    """The samples of a batch of either kind, (n,)."""
    return batch[:, 0] if batch.ndim == 2 else batch


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
