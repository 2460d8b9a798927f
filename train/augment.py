"""What the copies of a sample look like: a pure function of (seed, epoch, key, copy). No pixels.

Bassi & Attux (arXiv 2005.01578), online augmentation: at each of the stages rotation, translation
and mirror the originals stay and new images join them; read as `identity + k-1 random` at a stage
with k versions, so 2 x 2 x 2 = 8 and 6 x 6 x 2 = 72 copies of a source image.
"""

from dataclasses import dataclass

import numpy as np

from shards.philox import name_words, uniform

REFERENCE_SIZE = 224  # the papers state translations in pixels of a 224 x 224 input
_ROTATION, _TRANSLATION, _MIRROR = 1, 2, 3  # what an address's fourth word draws
_BASE = 1 << 8  # copies of one kind per sample: the largest expansion has 36 translations


@dataclass(frozen=True)
class Expansion:
    """How one source image becomes `factor` copies; pixels are those of a 224 x 224 input."""

    rotations: int = 1
    translations: int = 1
    mirror: bool = False
    max_rotation_deg: float = 40.0
    max_dx_px: float = 40.0
    max_dy_px: float = 28.0

    @property
    def factor(self) -> int:
        """Copies per source image."""
        return self.rotations * self.translations * (2 if self.mirror else 1)


IDENTITY = Expansion()
EIGHT = Expansion(rotations=2, translations=2, mirror=True)
SEVENTY_TWO = Expansion(rotations=6, translations=6, mirror=True)


@dataclass(frozen=True)
class CopyParameters:
    """Of each copy, in order: rotation (K,) degrees counter-clockwise, shift dx and dy (K,) pixels
    at the input size, to the right and down, and whether it is mirrored at the end (K,) bool."""

    rotation_deg: np.ndarray
    dx_px: np.ndarray
    dy_px: np.ndarray
    mirror: np.ndarray


def copy_parameters(
    key: str, expansion: Expansion, *, seed: int, epoch: int, size: int
) -> CopyParameters:
    """The parameters of every copy of one sample in one epoch. Copy 0 is the image itself."""
    r, t = expansion.rotations, expansion.translations
    mirrors = 2 if expansion.mirror else 1
    rotation = _draw(key, r, _ROTATION, seed, epoch)[:, 0] * expansion.max_rotation_deg
    shift = _draw(key, r * t, _TRANSLATION, seed, epoch) * (size / REFERENCE_SIZE)
    rotation[0] = 0.0
    shift[::t] = 0.0  # the first translation of every rotated image is the identity
    copies = np.arange(r * t * mirrors)
    pair = copies // mirrors
    return CopyParameters(
        rotation_deg=rotation[pair // t],
        dx_px=shift[pair, 0] * expansion.max_dx_px,
        dy_px=shift[pair, 1] * expansion.max_dy_px,
        mirror=copies % mirrors == 1,
    )


def random_mirror(key: str, *, probability: float, seed: int, epoch: int) -> bool:
    """Whether this epoch shows the sample mirrored instead of as it is."""
    return bool((_draw(key, 1, _MIRROR, seed, epoch)[0, 0] + 1) / 2 < probability)


def _draw(key: str, count: int, kind: int, seed: int, epoch: int) -> np.ndarray:
    """(count, 4) float64 in [-1, 1), addressed by all the arguments."""
    counter = np.empty((count, 4), np.uint32)
    counter[:, 0], counter[:, 1] = name_words(key)
    counter[:, 2] = epoch
    counter[:, 3] = kind * _BASE + np.arange(count)
    return uniform(counter, (seed, 0x61756720)) * 2 - 1  # the key's second word: "aug "


def affine_matrices(parameters: CopyParameters, size: int) -> np.ndarray:
    """(K, 2, 3) float32, output pixel -> input pixel (x, y; pixel centres at whole numbers).

    The forward order is rotation about the centre, translation, mirror; this is its inverse, so
    that one interpolation serves all three.
    """
    centre = (size - 1) / 2
    angle = np.deg2rad(parameters.rotation_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    flip = np.where(parameters.mirror, -1.0, 1.0)
    dx, dy = parameters.dx_px, parameters.dy_px
    # mirrored x: x' = 2c - x. Undo mirror, then shift, then rotate back around the centre.
    matrices = np.empty((len(angle), 2, 3), np.float64)
    matrices[:, 0, 0], matrices[:, 0, 1] = cos * flip, -sin
    matrices[:, 1, 0], matrices[:, 1, 1] = sin * flip, cos
    offset_x = np.where(parameters.mirror, 2 * centre, 0.0) - dx - centre
    offset_y = -dy - centre
    matrices[:, 0, 2] = cos * offset_x - sin * offset_y + centre
    matrices[:, 1, 2] = sin * offset_x + cos * offset_y + centre
    return matrices.astype(np.float32)
