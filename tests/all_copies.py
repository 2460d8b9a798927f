"""All copies of some samples, as a step has them: what most tests of copies begin with."""

import numpy as np

from shards.philox import name_words
from train.augment import Augment, CopyParameters, Expansion, Varied, copies_of

WORDS = np.array([name_words("k")], np.uint32)
EVERYTHING = Augment(
    mirror=0.5,
    brightness=0.5,
    contrast=0.5,
    max_rotation_deg=20,
    max_shear_deg=5,
    scale=(0.9, 1.1),
    max_shift=0.05,
    crop_area=(0.5, 1.0),
    elastic_px=6,
)


def all_copies(
    words: np.ndarray, rule: Expansion | Varied | Augment, *, seed: int, epoch: int, size: int
) -> CopyParameters:
    """words: (n, 2) keys -> all copies of each, sample after sample, copy 0 first."""
    factor = 1 if isinstance(rule, Augment) else rule.factor
    numbers = np.tile(np.arange(factor), len(words))
    words = np.repeat(words, factor, axis=0)
    return copies_of(words, numbers, rule, seed=seed, epoch=epoch, size=size)
