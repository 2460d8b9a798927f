"""shards.preprocess against slow references: area means, and a triangle filter written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.preprocess import prepare, reduce_shorter_side, resize


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = 128 + 70 * np.sin(x / 5) * np.cos(y / 8)
    return (
        (waves + np.random.default_rng(0).integers(0, 50, (height, width)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def triangle_weights(before: int, after: int) -> np.ndarray:
    """(after, before): each output pixel's weights; the support grows with the reduction."""
    scale = before / after
    reach = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(1, keepdims=True)


def slow_resize(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape
    return triangle_weights(height, size) @ image @ triangle_weights(width, size).T


@pytest.mark.parametrize(
    ("shape", "size"), [((97, 131), 32), ((64, 64), 48), ((30, 50), 64), ((256, 200), 224)]
)
def test_resize_is_a_triangle_filter(shape, size):
    image = picture(*shape)
    # Pillow rounds to whole grey levels after each of the two passes.
    assert np.abs(resize(image, size) - slow_resize(image, size)).max() <= 1.1


def test_resize_is_pillows_bilinear():
    image = picture(90, 70)
    expected = Image.fromarray(image).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(resize(image, 40), np.asarray(expected))


def test_resize_to_the_same_size_changes_nothing():
    image = picture(32, 32)
    assert np.array_equal(resize(image, 32), image)


def test_reduction_by_a_whole_factor_is_the_mean():
    image = picture(128, 192)
    means = image.reshape(32, 4, 48, 4).mean((1, 3))
    assert np.abs(reduce_shorter_side(image, 32) - means).max() <= 0.51


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 120))
def test_shorter_side_is_met_and_never_enlarged(height, width, side):
    out = reduce_shorter_side(np.zeros((height, width), np.uint8), side)
    assert min(out.shape) == min(height, width, side)
    if min(height, width) > side:
        assert abs(max(out.shape) - max(height, width) * side / min(height, width)) <= 0.5
    else:
        assert out.shape == (height, width)


def test_no_shorter_side_keeps_the_size():
    image = picture(40, 60)
    assert reduce_shorter_side(image, None) is image


def test_prepare_twice_reduced_is_once_reduced():
    image = picture(400, 300)
    stored = reduce_shorter_side(image, 128)
    assert np.array_equal(prepare(stored, 128, 64), prepare(image, 128, 64))
    assert prepare(image, 128, 64).shape == (64, 64)
