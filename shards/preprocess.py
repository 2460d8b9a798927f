"""The preprocessing contract, version 1, that training, evaluation, heatmaps and scoring share.

1. grey, 8 bit (`shards.codec.decode_grey`);
2. the shorter side reduced to the data set's `shorter_side` by area averaging, never enlarged
   (ingest does this before it stores an image; scoring does it to raw images, so that a file gets
   the same pixels on both ways);
3. antialiased bilinear resize to S x S (Pillow's BILINEAR: a triangle filter whose support grows
   with the reduction), across and then down, which is what DALI's `resize(antialias=True)` computes
   within 1 grey level on average;
4. in the network's input: v / 255, one channel repeated to three, minus MEAN, over STD.
"""

import sys

import cv2
import numpy as np
from PIL import Image

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
    """(H, W) uint8 -> (size, size) uint8, antialiased bilinear, aspect ratio not kept.

    The same pixels at several times the rate in processes that have imported shards.resample.
    """
    if image.shape == (size, size):
        return image
    if compiled := sys.modules.get("shards.resample"):
        return np.asarray(compiled.resize_like_pillow(image, size))
    # Across, then down, whatever the version: Pillow 13 begins with the height of tall images.
    across = Image.fromarray(image).resize((size, len(image)), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((size, size), Image.Resampling.BILINEAR))


def prepare(image: np.ndarray, shorter_side: int | None, size: int) -> np.ndarray:
    """Steps 2 and 3: a decoded grey image (H, W) uint8 -> (size, size) uint8."""
    return resize(reduce_shorter_side(image, shorter_side), size)
