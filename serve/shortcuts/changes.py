"""What is done to the images: words pasted or covered, lungs blacked out. Pure, on uint8 grey."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.console import UserError
from shards.rectangles import Rectangle


def cover(grey: np.ndarray, boxes: Sequence[Rectangle], width: int, height: int) -> np.ndarray:
    """A copy of the stored image (H, W), every pixel that a rectangle touches at 0; width, height:
    of the original image, in whose pixels the rectangles are."""
    black = np.array(grey)
    rows, columns = grey.shape[0] / height, grey.shape[1] / width
    for box in boxes:
        top, bottom = int(box.y * rows), int(np.ceil((box.y + box.h) * rows))
        left, right = int(box.x * columns), int(np.ceil((box.x + box.w) * columns))
        black[top:bottom, left:right] = 0
    return black


def word_pixels(word: str, at: tuple[int, int], height: int, size: int) -> np.ndarray:
    """(size, size) uint8, the coverage of the word's strokes: its left upper corner at `at` (x, y),
    its letters `height` pixels high. UserError when it does not fit."""
    font = ImageFont.load_default(height)
    left, top, right, bottom = (round(end) for end in font.getbbox(word))
    x, y = at
    if x < 0 or y < 0 or x + right - left > size or y + bottom - top > size:
        raise UserError(
            f"the word {word!r} takes {right - left} x {bottom - top} pixels and does not fit at "
            f"{x},{y} into {size} x {size}; change --at or --word-height"
        )
    canvas = Image.new("L", (size, size), 0)
    ImageDraw.Draw(canvas).text((x - left, y - top), word, fill=255, font=font)
    pixels = np.asarray(canvas)
    if not pixels.any():
        raise UserError(f"the word {word!r} leaves no stroke; give a word with letters")
    return pixels


def paste(image: np.ndarray, strokes: np.ndarray) -> np.ndarray:
    """White strokes over an image, both (S, S) uint8."""
    share = strokes.astype(np.float32) / 255
    return np.asarray(np.round(image + (255 - image.astype(np.float32)) * share), np.uint8)


def centre_box(box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """(size, size) bool, true inside; box: left, top, right, bottom as shares of the image."""
    left, top, right, bottom = (round(end * size) for end in box)
    inside = np.zeros((size, size), bool)
    inside[top:bottom, left:right] = True
    return inside


def black_where(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the masked pixels at 0."""
    return np.where(mask, np.uint8(0), image)
