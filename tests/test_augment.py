"""train.augment: how many copies, which parameters, and their matrices against slow references."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from all_copies import all_copies
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.geometry.transform import get_affine_matrix2d, get_rotation_matrix2d
from torchvision.transforms import RandomResizedCrop

from shards.console import UserError
from shards.philox import name_words
from train.augment import (
    EIGHT,
    IDENTITY,
    SEVENTY_TWO,
    Augment,
    CopyParameters,
    Expansion,
    Varied,
    affine_matrices,
    check_augment,
    unchanged,
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


def copy_parameters(
    key: str, rule: Expansion | Varied | Augment, *, seed: int, epoch: int, size: int = 224
) -> CopyParameters:
    words = np.array([name_words(key)], np.uint32)
    return all_copies(words, rule, seed=seed, epoch=epoch, size=size)


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
def test_mirror_has_its_probability(probability):
    words = np.array([name_words(f"k{i}") for i in range(2000)], np.uint32)
    copies = all_copies(words, Augment(mirror=probability), seed=0, epoch=1, size=224)
    assert abs(np.mean(copies.mirror) - probability) < 0.04


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
    return replace(
        unchanged(1),
        rotation_deg=np.array([rotation]),
        dx_px=np.array([dx]),
        dy_px=np.array([dy]),
        mirror=np.array([mirror]),
    )


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


FULL = Augment(
    mirror=0.5,
    brightness=0.5,
    contrast=0.4,
    max_rotation_deg=20,
    max_shear_deg=8,
    scale=(0.9, 1.2),
    max_shift=0.05,
    crop_area=(0.3, 1.0),
    elastic_px=6,
)
AUGMENT = st.builds(
    Augment,
    mirror=st.floats(0, 1),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 1),
    max_rotation_deg=st.floats(0, 180),
    max_shear_deg=st.floats(0, 60),
    scale=st.sampled_from([(1.0, 1.0), (0.8, 1.2), (0.5, 0.5)]),
    max_shift=st.floats(0, 1),
    crop_area=st.sampled_from([(1.0, 1.0), (0.08, 1.0), (0.5, 0.5)]),
    elastic_px=st.sampled_from([0.0, 4.0, 16.0]),
)


def same(one: CopyParameters, two: CopyParameters) -> bool:
    pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    return all(np.array_equal(a, b) for a, b in pairs)


@given(AUGMENT, KEY, SEED, EPOCH, SIZE)
def test_an_augment_stays_within_its_bounds(augment, key, seed, epoch, size):
    check_augment("here", augment)
    c = copy_parameters(key, Varied(7, augment), seed=seed, epoch=epoch, size=size)
    assert len(c) == 7
    scale, near = size / 224, 1e-9
    assert (np.abs(c.brightness - 1) <= augment.brightness + near).all()
    assert (np.abs(c.contrast - 1) <= augment.contrast + near).all()
    assert (np.abs(c.rotation_deg) <= augment.max_rotation_deg + near).all()
    assert (np.abs(c.shear_deg) <= augment.max_shear_deg + near).all()
    assert (np.abs([c.dx_px, c.dy_px]) <= augment.max_shift * size + near).all()
    assert (np.abs(c.elastic) <= augment.elastic_px * scale + near).all()
    low, high = augment.scale
    assert ((c.scale[1:] >= low - near) & (c.scale[1:] <= high + near)).all()
    left, top, width, height = c.crop.T
    assert (c.crop >= 0).all()
    assert (left + width <= 1 + near).all()
    assert (top + height <= 1 + near).all()
    assert ((width / height > 0.7499) & (width / height < 1.3334)).all()
    # the first copy is the image itself
    first = replace(c, **{f.name: getattr(c, f.name)[:1] for f in fields(c)})
    assert same(first, unchanged(1))
    assert np.isfinite(affine_matrices(c, size)).all()


@given(KEY, SEED, EPOCH)
def test_a_change_is_addressed_and_its_parts_do_not_disturb_each_other(key, seed, epoch):
    full = copy_parameters(key, FULL, seed=seed, epoch=epoch)
    assert same(full, copy_parameters(key, FULL, seed=seed, epoch=epoch))
    fewer = replace(FULL, crop_area=(1.0, 1.0), elastic_px=0.0, brightness=0.0)
    part = copy_parameters(key, fewer, seed=seed, epoch=epoch)
    assert np.array_equal(part.rotation_deg, full.rotation_deg)
    assert np.array_equal(part.contrast, full.contrast)
    others = [
        copy_parameters(key + "x", FULL, seed=seed, epoch=epoch),
        copy_parameters(key, FULL, seed=seed ^ 1, epoch=epoch),
        copy_parameters(key, FULL, seed=seed, epoch=epoch + 1),
        copy_parameters(key, Varied(2, FULL), seed=seed, epoch=epoch),
    ]
    assert len({float(c.rotation_deg[-1]) for c in [full, *others]}) == 5
    assert len({float(c.elastic[-1, 2, 2, 1]) for c in [full, *others]}) == 5


def test_many_samples_at_once_are_each_alone():
    keys = [f"k{i}" for i in range(5)]
    words = np.array([name_words(key) for key in keys], np.uint32)
    for rule in (SEVENTY_TWO, FULL, Varied(5, FULL)):
        together = all_copies(words, rule, seed=3, epoch=2, size=64)
        alone = [copy_parameters(key, rule, seed=3, epoch=2, size=64) for key in keys]
        for field in fields(together):
            joined = np.concatenate([getattr(one, field.name) for one in alone])
            assert np.array_equal(getattr(together, field.name), joined), field.name


def test_crops_are_distributed_as_torchvisions():
    words = np.array([name_words(f"k{i}") for i in range(3000)], np.uint32)
    ours = all_copies(words, Augment(crop_area=(0.08, 1.0)), seed=0, epoch=0, size=224).crop
    torch.manual_seed(0)
    blank = torch.zeros(1, 1000, 1000)
    peer = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    top, left, height, width = np.array(peer).T / 1000
    for mine, theirs in zip(ours.T, (left, top, width, height)):
        quantiles = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(
            np.quantile(mine, quantiles), np.quantile(theirs, quantiles), atol=0.035
        )


@settings(max_examples=25, deadline=None)
@given(KEY, SEED)
def test_scale_shear_and_rotation_match_kornia(key, seed):
    # Kornia scales and turns, then shears about the centre: with one of the two parts at a time the
    # order does not matter.
    for augment in (
        Augment(max_rotation_deg=60, scale=(0.5, 1.5), max_shift=0.3),
        Augment(max_shear_deg=50, max_shift=0.3),
    ):
        c = copy_parameters(key, augment, seed=seed, epoch=0)
        centre = torch.full((1, 2), 111.5, dtype=torch.float64)
        shift = torch.tensor(np.stack([c.dx_px, c.dy_px], 1))
        # Kornia turns clockwise for a positive angle and shears x by -tan
        forward = get_affine_matrix2d(
            shift,
            centre,
            torch.tensor(np.stack([c.scale, c.scale], 1)),
            torch.tensor(-c.rotation_deg),
            torch.tensor(-np.deg2rad(c.shear_deg)),
            torch.zeros(1, dtype=torch.float64),
        )[0].numpy()
        matrix = affine_matrices(c, 224)[0]
        np.testing.assert_allclose(matrix, np.linalg.inv(forward)[:2], atol=2e-4)


def test_a_crops_corners_become_the_images():
    crop = replace(unchanged(1), crop=np.array([[0.25, 0.5, 0.5, 0.25]]))
    matrix = affine_matrices(crop, 100)[0].astype(float)
    # pixel edges: -0.5 and 99.5
    assert matrix @ [-0.5, -0.5, 1] == pytest.approx([24.5, 49.5])
    assert matrix @ [99.5, 99.5, 1] == pytest.approx([74.5, 74.5])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (Augment(mirror=1.5), "mirror is 1.5; it must be 0 to 1"),
        (Augment(elastic_px=40), "elastic_px is 40; it must be 0 to 16"),
        (Augment(scale=(1.2, 0.8)), "scale is 1.2 to 0.8; least and most must be 0.01 to 10"),
        (Augment(crop_area=(0.0, 1.0)), "crop_area is 0 to 1; least and most must be 0.01 to 1"),
        (Augment(max_rotation_deg=float("nan")), "max_rotation_deg is nan"),
    ],
)
def test_an_impossible_augment_is_refused(augment, message):
    with pytest.raises(UserError, match=message):
        check_augment("here", augment)
