"""The preprocessing contract, version 1, that training, evaluation, heatmaps and scoring share.

1. grey, 8 bit (`shards.codec`): of 16-bit values the highest 8 of the bits that count, which the
   file declares, or else the `depth` of the data set, never a file's own range (`shards.depth`);
2. the shorter side reduced to the data set's `shorter_side` by area averaging, never enlarged
   (ingest does this before it stores an image; scoring does it to raw images, so that a file gets
   the same pixels on both ways);
3. antialiased bilinear resize to S x S, across and then down (Pillow's BILINEAR: a triangle filter
   whose support grows with the reduction; Pillow 13 takes tall images down first), which is what
   DALI's `resize(antialias=True)` computes within 1 grey level on average;
4. in the network's input: v / 255, one channel repeated to three, minus MEAN, over STD.

The depth did not make a version 2: no pixel of an 8-bit image changes, and a data set or model of
before has none, so that scoring asks for it, and --depth 16 gives what it gave.
"""

import cv2
import numpy as np

VERSION = 1
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as the papers use them
STD = (0.229, 0.224, 0.225)


def reduce_shorter_side(image: np.ndarray, shorter_side: int | None) -> np.ndarray:
    """(H, W) uint8 -> the shorter side at most `shorter_side` pixels, aspect ratio kept."""
    height, width = image.shape
    if shorter_side is None or min(height, width) <= shorter_side:
        return image
    scale = shorter_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) uint8 -> (size, size) uint8, antialiased bilinear, aspect ratio not kept."""
    if image.shape == (size, size):
        return image
    from shards.resample import resize_like_pillow  # 0.13 s, for those who resize

    return resize_like_pillow(image, size)


def prepare(image: np.ndarray, shorter_side: int | None, size: int) -> np.ndarray:
    """Steps 2 and 3: a decoded grey image (H, W) uint8 -> (size, size) uint8."""
    return resize(reduce_shorter_side(image, shorter_side), size)
