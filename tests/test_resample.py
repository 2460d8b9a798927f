"""shards.resample: Pillow's pixels, bit for bit, whatever the sizes."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards import preprocess

SIDES = st.integers(1, 700)


def by_pillow(image: np.ndarray, size: int) -> np.ndarray:
    """Across, then down, whatever the version: Pillow 13 begins with the height of tall images."""
    across = Image.fromarray(image).resize((size, len(image)), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((size, size), Image.Resampling.BILINEAR))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 330), st.integers(0, 9), st.sampled_from([2, 256]))
@example(512, 512, 224, 0, 256)
@example(2500, 2048, 224, 0, 2)
@example(1, 1, 64, 0, 256)
@example(700, 1, 1, 0, 256)
def test_the_pixels_are_pillows(height, width, size, seed, levels):
    grey = np.random.default_rng(seed).integers(0, levels, (height, width), np.uint8)
    image = grey * np.uint8(255 // (levels - 1))
    assert np.array_equal(preprocess.resize(image, size), by_pillow(image, size))


def test_any_view_is_taken():
    image = np.random.default_rng(1).integers(0, 256, (90, 70), np.uint8)
    for view in (image, image[::-1, ::2], np.asfortranarray(image)):
        assert np.array_equal(preprocess.resize(view, 32), by_pillow(view, 32))


def test_pillow_itself_takes_wide_images_in_this_order():
    image = np.random.default_rng(2).integers(0, 256, (90, 120), np.uint8)
    whole = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(by_pillow(image, 32), np.asarray(whole))
