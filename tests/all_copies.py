"""All copies of some samples, as a step has them: what most tests of copies begin with."""

import numpy as np

from train.augment import Augment, CopyParameters, Expansion, Varied, copies_of


def all_copies(
    words: np.ndarray, rule: Expansion | Varied | Augment, *, seed: int, epoch: int, size: int
) -> CopyParameters:
    """words: (n, 2) keys -> all copies of each, sample after sample, copy 0 first."""
    factor = 1 if isinstance(rule, Augment) else rule.factor
    numbers = np.tile(np.arange(factor), len(words))
    words = np.repeat(words, factor, axis=0)
    return copies_of(words, numbers, rule, seed=seed, epoch=epoch, size=size)
