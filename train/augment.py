"""What the copies of a sample look like: a pure function of (seed, epoch, key, copy). No pixels.

Two kinds. An `Expansion` multiplies an image (Bassi & Attux, arXiv 2005.01578: at each of the
stages rotation, translation and mirror the originals stay and new images join them; read as
`identity + k-1 random` at a stage with k versions, so 2 x 2 x 2 = 8 and 6 x 6 x 2 = 72 copies). An
`Augment` is one random change, which takes an image's place or, in `Varied`, joins it.
"""

from dataclasses import dataclass, fields

import numpy as np

from shards.console import UserError
from shards.philox import uniform
from train import affine

REFERENCE_SIZE = 224  # the papers state translations in pixels of a 224 x 224 input
CONTROL_POINTS = 4  # of the elastic distortion, on each side
CROP_RATIO = (3 / 4, 4 / 3)  # width to height, as torchvision's RandomResizedCrop has it
_CROP_TRIES = 10  # of torchvision's too: a crop that does not fit is drawn again
_MAX_ELASTIC_PX = 16.0  # beyond it the distortion folds the image (control points are 56 px apart)

# An address's fourth word is a kind in its upper 8 bits and a number in the lower 24.
_ROTATION, _TRANSLATION, _AUGMENT = 1 << 24, 2 << 24, 3 << 24
_NUMBERS = 16  # addresses of 4 numbers that one copy of an Augment has
_CROP_AT, _ELASTIC_AT = slice(2, 8), slice(8, 16)


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


@dataclass(frozen=True)
class Augment:
    """One random change of an image; each default means none. Pixels: of a 224 x 224 input.

    mirror: its probability. brightness, contrast: how far the factors are from 1 at most, as in
    torchvision's ColorJitter (saturation and hue change nothing in a grey image, so they are left
    out). max_rotation_deg, max_shear_deg, scale (least, most), max_shift (a share of the side, on
    each axis): about the centre. crop_area (least, most): the share of the image that becomes the
    whole, with sides 3:4 to 4:3, as torchvision's RandomResizedCrop draws it, but out of the
    resized image. elastic_px: how far each of 4 x 4 control points moves on each axis at most;
    between them the movement is bicubic (Ronneberger et al., U-Net, arXiv 1505.04597).
    """

    mirror: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    max_rotation_deg: float = 0.0
    max_shear_deg: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    max_shift: float = 0.0
    crop_area: tuple[float, float] = (1.0, 1.0)
    elastic_px: float = 0.0


@dataclass(frozen=True)
class Varied:
    """An image and `copies - 1` random changes of it."""

    copies: int
    augment: Augment

    @property
    def factor(self) -> int:
        """Copies per source image."""
        return self.copies


IDENTITY = Expansion()
EIGHT = Expansion(rotations=2, translations=2, mirror=True)
SEVENTY_TWO = Expansion(rotations=6, translations=6, mirror=True)
NONE = Augment()


@dataclass(frozen=True)
class CopyParameters:
    """What happens to each of K copies, in this order: brightness and contrast (factors); rotation
    (degrees counter-clockwise), shear (degrees) and scale about the centre; shift dx and dy (pixels
    at the input size, right and down); mirror; crop (K, 4) (left, top, width, height, shares of the
    side); elastic (K, 4, 4, 2), the control points' movement in pixels, x and y. The rest is (K,).
    """

    brightness: np.ndarray
    contrast: np.ndarray
    rotation_deg: np.ndarray
    shear_deg: np.ndarray
    scale: np.ndarray
    dx_px: np.ndarray
    dy_px: np.ndarray
    mirror: np.ndarray
    crop: np.ndarray
    elastic: np.ndarray

    def __len__(self) -> int:
        return len(self.mirror)

    def put(self, rows: np.ndarray, values: "CopyParameters") -> None:
        """The copies at `rows` become those."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(values, field.name)


def unchanged(count: int) -> CopyParameters:
    """The parameters of `count` copies to which nothing happens."""
    return CopyParameters(
        brightness=np.ones(count),
        contrast=np.ones(count),
        rotation_deg=np.zeros(count),
        shear_deg=np.zeros(count),
        scale=np.ones(count),
        dx_px=np.zeros(count),
        dy_px=np.zeros(count),
        mirror=np.zeros(count, bool),
        crop=np.tile([0.0, 0.0, 1.0, 1.0], (count, 1)),
        elastic=np.zeros((count, CONTROL_POINTS, CONTROL_POINTS, 2)),
    )


def copies_of(
    words: np.ndarray,
    numbers: np.ndarray,
    rule: Expansion | Varied | Augment,
    *,
    seed: int,
    epoch: int,
    size: int,
) -> CopyParameters:
    """One copy of each sample in one epoch. Copy 0 is the image itself (but for an Augment, which
    takes its place and has no other).

    words: (n, 2) uint32, each sample's key as `shards.philox.name_words` gives it; numbers: (n,).
    """
    if isinstance(rule, Expansion):
        return _expanded(words, numbers, rule, seed, epoch, size)
    if isinstance(rule, Augment):
        return _changed(words, numbers, rule, seed, epoch, size)
    copies = unchanged(len(words))
    rows = np.flatnonzero(numbers)
    if len(rows):
        copies.put(rows, _changed(words[rows], numbers[rows], rule.augment, seed, epoch, size))
    return copies


def _expanded(
    words: np.ndarray, numbers: np.ndarray, expansion: Expansion, seed: int, epoch: int, size: int
) -> CopyParameters:
    moved, mirrored = np.divmod(numbers, 2 if expansion.mirror else 1)
    turned = moved // expansion.translations
    address = np.stack([_ROTATION + turned, _TRANSLATION + moved], axis=1)
    drawn = _draw(words, address, seed, epoch) * 2 - 1
    copies = unchanged(len(words))
    copies.rotation_deg[:] = drawn[:, 0, 0] * expansion.max_rotation_deg
    copies.dx_px[:] = drawn[:, 1, 0] * expansion.max_dx_px * (size / REFERENCE_SIZE)
    copies.dy_px[:] = drawn[:, 1, 1] * expansion.max_dy_px * (size / REFERENCE_SIZE)
    copies.mirror[:] = mirrored
    copies.rotation_deg[turned == 0] = 0.0
    still = moved % expansion.translations == 0  # every rotated image stays where it is first
    copies.dx_px[still] = copies.dy_px[still] = 0.0
    return copies


def _changed(
    words: np.ndarray, numbers: np.ndarray, augment: Augment, seed: int, epoch: int, size: int
) -> CopyParameters:
    parts = np.arange(_NUMBERS if augment.crop_area != (1, 1) or augment.elastic_px else 2)
    drawn = _draw(words, _AUGMENT + numbers[:, None] * _NUMBERS + parts, seed, epoch)
    copies = unchanged(len(drawn))
    (mirror, brightness, contrast, rotation), (right, down, scale, shear) = drawn[:, :2].transpose(
        1, 2, 0
    )
    copies.mirror[:] = mirror < augment.mirror
    copies.brightness[:] = _between(brightness, 1 - augment.brightness, 1 + augment.brightness)
    copies.contrast[:] = _between(contrast, 1 - augment.contrast, 1 + augment.contrast)
    copies.rotation_deg[:] = (rotation * 2 - 1) * augment.max_rotation_deg
    copies.shear_deg[:] = (shear * 2 - 1) * augment.max_shear_deg
    copies.scale[:] = _between(scale, *augment.scale)
    copies.dx_px[:] = (right * 2 - 1) * augment.max_shift * size
    copies.dy_px[:] = (down * 2 - 1) * augment.max_shift * size
    if augment.crop_area != (1, 1):
        copies.crop[:] = _crops(drawn[:, _CROP_AT].reshape(-1, 24), augment.crop_area)
    if augment.elastic_px:
        points = drawn[:, _ELASTIC_AT].reshape(copies.elastic.shape) * 2 - 1
        copies.elastic[:] = points * augment.elastic_px * (size / REFERENCE_SIZE)
    return copies


def _crops(drawn: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    """(K, 24) numbers in [0, 1) -> (K, 4) boxes: the first of ten that fits, else the whole."""
    shares = _between(drawn[:, :_CROP_TRIES], *area)
    low, high = np.log(CROP_RATIO)
    ratio = np.exp(_between(drawn[:, _CROP_TRIES : 2 * _CROP_TRIES], low, high))
    width, height = np.sqrt(shares * ratio), np.sqrt(shares / ratio)
    fits = (width <= 1) & (height <= 1)
    rows, first = np.arange(len(drawn)), fits.argmax(axis=1)
    found = fits[rows, first]
    width = np.where(found, width[rows, first], 1.0)
    height = np.where(found, height[rows, first], 1.0)
    left, top = drawn[:, -4] * (1 - width), drawn[:, -3] * (1 - height)
    return np.stack([left, top, width, height], axis=1)


def _between(drawn: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + drawn * (high - low)


def _draw(words: np.ndarray, numbers: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """numbers: (n, k) -> (n, k, 4) float64 in [0, 1), addressed by all the arguments."""
    counter = np.empty((*numbers.shape, 4), np.uint32)
    counter[:, :, :2] = words[:, None]
    counter[:, :, 2] = epoch
    counter[:, :, 3] = numbers
    drawn = uniform(counter.reshape(-1, 4), (seed, 0x61756720))  # the key's second word: "aug "
    return drawn.reshape(counter.shape)


def affine_matrices(copies: CopyParameters, size: int) -> np.ndarray:
    """(K, 2, 3) float32, output pixel -> input pixel (x, y; pixel centres at whole numbers): the
    inverse of all geometric parts but the elastic one, so that one interpolation serves them."""
    turned = affine.rotation(copies.rotation_deg)
    if copies.shear_deg.any() or (copies.scale != 1).any():
        scaled = affine.scaling(copies.scale, copies.scale)
        turned = affine.then(turned, affine.shear(copies.shear_deg), scaled)
    maps = affine.about(turned, (size - 1) / 2)
    maps[:, 0, 2] += copies.dx_px
    maps[:, 1, 2] += copies.dy_px
    maps = affine.then(maps, affine.mirror(copies.mirror, size))
    if (copies.crop[:, 2:] != 1).any():
        maps = affine.then(maps, affine.crop(copies.crop, size))
    return affine.inverse(maps)


def check_augment(where: str, augment: Augment) -> None:
    """UserError for a change that cannot be drawn."""
    shares = {name: getattr(augment, name) for name in ("mirror", "brightness", "contrast")}
    shares["max_shift"] = augment.max_shift
    limits = {name: (value, 0.0, 1.0) for name, value in shares.items()}
    limits["max_rotation_deg"] = (augment.max_rotation_deg, 0.0, 180.0)
    limits["max_shear_deg"] = (augment.max_shear_deg, 0.0, 80.0)
    limits["elastic_px"] = (augment.elastic_px, 0.0, _MAX_ELASTIC_PX)
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UserError(f"{where}: {name} is {value}; it must be {low:g} to {high:g}")
    for name, (low, high), top in (
        ("scale", augment.scale, 10.0),
        ("crop_area", augment.crop_area, 1.0),
    ):
        if not 0.01 <= low <= high <= top:
            raise UserError(
                f"{where}: {name} is {low:g} to {high:g}; least and most must be 0.01 to {top:g}"
            )
