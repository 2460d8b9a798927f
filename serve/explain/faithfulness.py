"""Are explanations any good? Measures of one map, without a network. Sizes in pixels.

Pointing game (Zhang et al., IJCV 2018), intersection over union with a radiologist's boxes,
deletion and insertion (Petsiuk et al., RISE, BMVC 2018), likeness after randomised weights (Adebayo
et al., NeurIPS 2018).
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from serve.intervals import midranks
from shards.sample import Box

CELLS = 14  # an image is deleted in 14 x 14 cells: 16 pixels each at 224
STEPS = 20  # of a deletion or insertion curve
Unusable = Literal["empty", "one-signed"]
_BLUR = 1 / 16  # of the image's side: the deviation of the Gaussian that stands for "nothing there"


def box_mask(boxes: Sequence[Box], width: int, height: int, size: int) -> np.ndarray:
    """(size, size) bool: the pixels whose centre one of the boxes covers. boxes: in pixels of a
    (width, height) image, which the preprocessing stretches to the square."""
    places = (np.arange(size) + 0.5) / size
    mask = np.zeros((size, size), bool)
    for box in boxes:
        rows = (places * height >= box.y) & (places * height < box.y + box.h)
        columns = (places * width >= box.x) & (places * width < box.x + box.w)
        mask |= rows[:, None] & columns
    return mask


def unusable(heat: np.ndarray) -> Unusable | None:
    """Why a map points nowhere: `empty`, all values are the same; `one-signed`, some speak against
    the label and none for it. None for any other map."""
    if heat.min() == heat.max():
        return "empty"
    return "one-signed" if heat.max() <= 0 else None


def points_into(heat: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the largest value of a usable map lies in the boxes."""
    return bool(mask[np.unravel_index(heat.argmax(), heat.shape)])


def top_iou(heat: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of the boxes and of as many pixels of the highest values."""
    area = int(mask.sum())
    order = np.argsort(-heat, axis=None, kind="stable")[:area]
    top = np.zeros(heat.size, bool)
    top[order] = True
    top &= (heat > 0).ravel()
    return float((top & mask.ravel()).sum() / (top | mask.ravel()).sum())


def cell_order(heat: np.ndarray) -> np.ndarray:
    """(CELLS ** 2,) cells of the image, the one of the highest mean value first."""
    means = cv2.resize(heat.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.argsort(-means, axis=None, kind="stable")


def stepwise(image: np.ndarray, order: np.ndarray, *, insert: bool) -> np.ndarray:
    """image: (S, S) uint8 -> (STEPS + 1, S, S) uint8: from the whole image to its blurred self, the
    cells of `order` first; or, insert, from the blurred one to the whole."""
    size = len(image)
    blurred = cv2.GaussianBlur(image, (0, 0), size * _BLUR)
    rank = np.empty(CELLS**2, np.int64)
    rank[order] = np.arange(CELLS**2)
    cell = np.arange(size) * CELLS // size
    ranks = rank.reshape(CELLS, CELLS)[np.ix_(cell, cell)]
    done = np.linspace(0, CELLS**2, STEPS + 1)
    changed = ranks[None] < done[:, None, None]
    return np.where(changed == insert, image, blurred)


def area_under(curve: np.ndarray) -> float:
    """The mean height of a curve over its equally spaced steps (trapezoids)."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def likeness(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation of two maps' absolute values; None where one of them is empty."""
    first, second = (midranks(np.abs(heat).ravel()) for heat in (one, other))
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
