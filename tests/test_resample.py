"""shards.resample: Pillow's passes, across and then down, bit for bit, whatever the sizes."""

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


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 330), st.integers(0, 9))
@example(1024, 512, 224, 0)  # Pillow 13 takes it down first: 15 % of the pixels differ
@example(512, 1024, 224, 0)
def test_pillows_whole_resize_differs_by_a_grey_level_in_tall_images_alone(h, w, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w), np.uint8)
    whole = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    differences = np.abs(preprocess.resize(image, size).astype(np.int16) - whole)
    assert differences.max() <= (1 if h > w else 0)
