"""train.augment: how many copies, which parameters, and their matrices against slow references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.geometry.transform import get_rotation_matrix2d

from train.augment import (
    EIGHT,
    IDENTITY,
    SEVENTY_TWO,
    CopyParameters,
    Expansion,
    affine_matrices,
    copy_parameters,
    random_mirror,
)

KEY = st.from_regex(r"[A-Za-z0-9_-]{1,30}", fullmatch=True)
SEED = st.integers(0, 2**32 - 1)
EPOCH = st.integers(0, 10_000)
SIZE = st.sampled_from([32, 64, 224, 237])
EXPANSION = st.builds(
    Expansion,
    rotations=st.integers(1, 6),
    translations=st.integers(1, 6),
    mirror=st.booleans(),
    max_rotation_deg=st.floats(0, 90),
    max_dx_px=st.floats(0, 60),
    max_dy_px=st.floats(0, 60),
)


def rows(parameters: CopyParameters) -> np.ndarray:
    """(K, 4): rotation, dx, dy, mirror."""
    p = parameters
    return np.stack([p.rotation_deg, p.dx_px, p.dy_px, p.mirror.astype(float)], axis=1)


def test_factors_are_the_papers():
    assert (IDENTITY.factor, EIGHT.factor, SEVENTY_TWO.factor) == (1, 8, 72)


@given(KEY, EXPANSION, SEED, EPOCH, SIZE)
def test_copies_are_bounded_and_begin_with_the_image(key, expansion, seed, epoch, size):
    copies = rows(copy_parameters(key, expansion, seed=seed, epoch=epoch, size=size))
    assert copies.shape == (expansion.factor, 4)
    assert not copies[0].any()
    scale = size / 224
    bounds = [expansion.max_rotation_deg, expansion.max_dx_px * scale, expansion.max_dy_px * scale]
    assert (np.abs(copies[:, :3]).max(axis=0) <= np.array(bounds) + 1e-9).all()


@given(KEY, EXPANSION, SEED, EPOCH)
def test_mirror_doubles_exactly(key, expansion, seed, epoch):
    half = Expansion(**{**vars(expansion), "mirror": False})
    both = Expansion(**{**vars(expansion), "mirror": True})
    plain = rows(copy_parameters(key, half, seed=seed, epoch=epoch, size=224))
    doubled = rows(copy_parameters(key, both, seed=seed, epoch=epoch, size=224))
    assert np.array_equal(doubled[0::2], plain)
    assert np.array_equal(doubled[1::2, :3], plain[:, :3])
    assert doubled[1::2, 3].all()


@given(KEY, SEED, EPOCH)
def test_each_stage_keeps_its_original(key, seed, epoch):
    # 72 = 6 rotations (the first none) x 6 translations (the first none) x mirror
    copies = rows(copy_parameters(key, SEVENTY_TWO, seed=seed, epoch=epoch, size=224))
    grid = copies.reshape(6, 6, 2, 4)
    assert (grid[:, :, :, 0] == grid[:, :1, :1, 0]).all()
    assert not grid[0, :, :, 0].any()
    assert not grid[:, 0, :, 1:3].any()
    assert len(np.unique(grid[:, 0, 0, 0])) == 6
    assert len(np.unique(grid[:, :, 0, 1])) == 31  # none, and 5 drawn for each rotation


@given(KEY, SEED, EPOCH)
def test_the_address_is_all_that_counts(key, seed, epoch):
    first = rows(copy_parameters(key, SEVENTY_TWO, seed=seed, epoch=epoch, size=224))
    copy_parameters(key + "x", EIGHT, seed=seed, epoch=epoch, size=64)
    np.random.default_rng(0).random(3)
    again = rows(copy_parameters(key, SEVENTY_TWO, seed=seed, epoch=epoch, size=224))
    assert np.array_equal(first, again)
    others = [
        copy_parameters(key + "x", SEVENTY_TWO, seed=seed, epoch=epoch, size=224),
        copy_parameters(key, SEVENTY_TWO, seed=seed ^ 1, epoch=epoch, size=224),
        copy_parameters(key, SEVENTY_TWO, seed=seed, epoch=epoch + 1, size=224),
    ]
    for other in others:
        assert not np.isclose(first[:, 0], other.rotation_deg)[12:].any()
        assert not np.isclose(first[:, 1], other.dx_px)[2:12].any()


@given(KEY, SEED, EPOCH, SIZE)
def test_size_scales_translations_and_nothing_else(key, seed, epoch, size):
    at_224 = rows(copy_parameters(key, SEVENTY_TWO, seed=seed, epoch=epoch, size=224))
    other = rows(copy_parameters(key, SEVENTY_TWO, seed=seed, epoch=epoch, size=size))
    scale = np.array([1, size / 224, size / 224, 1])
    np.testing.assert_allclose(other, at_224 * scale, rtol=1e-12)


def test_parameters_fill_their_range_evenly():
    drawn = [
        rows(copy_parameters(f"k{i}", SEVENTY_TWO, seed=0, epoch=0, size=224)) for i in range(300)
    ]
    rotation = np.concatenate([d.reshape(6, 12, 4)[1:, 0, 0] for d in drawn])
    shift = np.concatenate([d.reshape(6, 6, 2, 4)[:, 1:, 0, 1:3].reshape(-1, 2) for d in drawn])
    for values, bound in [(rotation, 40), (shift[:, 0], 40), (shift[:, 1], 28)]:
        histogram, _ = np.histogram(values, 8, (-bound, bound))
        assert np.abs(histogram / len(values) - 1 / 8).max() < 0.03
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.05


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_random_mirror_has_its_probability(probability):
    shown = [random_mirror(f"k{i}", probability=probability, seed=0, epoch=1) for i in range(2000)]
    assert abs(np.mean(shown) - probability) < 0.04
    again = [random_mirror(f"k{i}", probability=probability, seed=0, epoch=1) for i in range(2000)]
    assert shown == again


def reference_matrix(rotation: float, dx: float, dy: float, mirror: bool, size: int) -> np.ndarray:
    """(2, 3) output -> input: rotate about the centre, translate, mirror, each as 3 x 3; invert."""
    c, a = (size - 1) / 2, np.deg2rad(rotation)
    to_origin = np.array([[1, 0, -c], [0, 1, -c], [0, 0, 1]])
    back = np.array([[1, 0, c], [0, 1, c], [0, 0, 1]])
    # y points down, so counter-clockwise as seen is this sign
    turn = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
    move = np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]])
    flip = np.array([[-1, 0, 2 * c], [0, 1, 0], [0, 0, 1]]) if mirror else np.eye(3)
    return np.linalg.inv(flip @ move @ back @ turn @ to_origin)[:2]


def parameters_of(rotation: float, dx: float, dy: float, mirror: bool) -> CopyParameters:
    values = [np.array([value]) for value in (rotation, dx, dy, mirror)]
    return CopyParameters(*values)


PARAMETERS = st.tuples(
    st.floats(-180, 180), st.floats(-60, 60), st.floats(-60, 60), st.booleans(), st.integers(2, 300)
)


@given(PARAMETERS)
def test_matrices_match_the_reference(parameters):
    *values, size = parameters
    matrix = affine_matrices(parameters_of(*values), size)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[0], reference_matrix(*values, size), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(PARAMETERS)
def test_matrices_match_kornia(parameters):
    rotation, dx, dy, mirror, size = parameters
    centre = torch.full((1, 2), (size - 1) / 2, dtype=torch.float64)
    angle = torch.tensor([rotation], dtype=torch.float64)
    forward = np.eye(3)
    forward[:2] = get_rotation_matrix2d(centre, angle, torch.ones_like(centre))[0].numpy()
    forward[:2, 2] += [dx, dy]
    if mirror:
        forward[0] = [0, 0, size - 1] - forward[0]
    matrix = affine_matrices(parameters_of(rotation, dx, dy, mirror), size)[0]
    np.testing.assert_allclose(matrix, np.linalg.inv(forward)[:2], atol=1e-4)
