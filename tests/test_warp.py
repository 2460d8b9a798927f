"""train.warp: OpenCV's, torch's and Pillow's warps agree; pixels move where parameters say."""

from itertools import combinations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from shards.preprocess import MEAN, STD
from train.augment import SEVENTY_TWO, CopyParameters, affine_matrices, copy_parameters
from train.warp import _warp_grid, normalise, warp

SIZE = 224


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(72, S, S) uint8 with structure at several scales, not dark at the edges."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(72, SIZE, SIZE)).astype(np.float32)
    smooth = np.stack(
        [cv2.GaussianBlur(n, (0, 0), 6) * 8 + cv2.GaussianBlur(n, (0, 0), 1.5) for n in noise]
    )
    return torch.from_numpy(np.clip(128 + 60 * smooth, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def matrices() -> np.ndarray:
    return affine_matrices(copy_parameters("k", SEVENTY_TWO, seed=3, epoch=1, size=SIZE), SIZE)


def warp_pillow(images: torch.Tensor, matrices: np.ndarray) -> np.ndarray:
    """Pillow counts pixel centres at halves: x_in + 0.5 = a (x + 0.5) + b (y + 0.5) + c."""
    out = []
    for image, matrix in zip(images.numpy(), matrices.astype(np.float64)):
        shifted = matrix.copy()
        shifted[:, 2] += 0.5 - 0.5 * (matrix[:, 0] + matrix[:, 1])
        data = tuple(shifted.ravel().tolist())
        method, filtering = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        out.append(
            np.asarray(Image.fromarray(image).transform((SIZE, SIZE), method, data, filtering))
        )
    return np.stack(out)


def source_inside(matrices: np.ndarray) -> np.ndarray:
    """(K, S, S) bool: the output pixels whose source lies at least one pixel inside the image."""
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    sources = (pixels @ matrices.transpose(0, 2, 1)).reshape(len(matrices), SIZE, SIZE, 2)
    return ((sources >= 1) & (sources <= SIZE - 2)).all(axis=-1)


def test_three_warps_agree(images, matrices):
    results = {
        "opencv": warp(images, matrices).numpy(),
        "torch": _warp_grid(images, torch.from_numpy(matrices)).numpy(),
        "pillow": warp_pillow(images, matrices),
    }
    inside = source_inside(matrices)
    for first, second in combinations(results, 2):
        difference = np.abs(results[first].astype(float) - results[second].astype(float))
        assert difference.mean(axis=(1, 2)).max() <= 1.0, (first, second)
        # The images' edges differ more in Pillow, which does not blend the last pixel with black.
        assert difference[inside].max() <= 1.01, (first, second)


def test_opencv_and_torch_differ_by_rounding_only(images, matrices):
    grid = _warp_grid(images, torch.from_numpy(matrices)).numpy()
    assert np.abs(warp(images, matrices).numpy() - grid).max() <= 0.51


def test_identity_changes_nothing(images):
    identity = np.tile(np.eye(2, 3, dtype=np.float32), (len(images), 1, 1))
    assert torch.equal(warp(images, identity), images)
    grid = _warp_grid(images, torch.from_numpy(identity))
    assert torch.equal(grid.round().to(torch.uint8), images)


def test_the_unmirrored_copy_0_is_the_image(images, matrices):
    assert torch.equal(warp(images[:1], matrices[:1]), images[:1])


def test_mirror_is_a_flip(images):
    turned = CopyParameters(np.zeros(1), np.zeros(1), np.zeros(1), np.ones(1, bool))
    flipped = warp(images[:1], affine_matrices(turned, SIZE))
    assert torch.equal(flipped, images[:1].flip(2))


CENTRE = (SIZE - 1) / 2
# a pixel at (x, y) = (70, 40) before; rotation about the centre; y points down
MOVES = {
    "stays": ((0, 0, 0, False), (70, 40)),
    "dx moves right": ((0, 12, 0, False), (82, 40)),
    "dy moves down": ((0, 0, 9, False), (70, 49)),
    "mirror": ((0, 0, 0, True), (SIZE - 1 - 70, 40)),
    # to the right of the centre -> above it: counter-clockwise as one looks at the picture
    "90 degrees counter-clockwise": ((90, 0, 0, False), (40, SIZE - 1 - 70)),
    "rotation, then translation": ((90, 12, 9, False), (52, SIZE - 1 - 70 + 9)),
    "translation, then mirror": ((0, 12, 0, True), (SIZE - 1 - 82, 40)),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("path", ["opencv", "torch"])
def test_a_pixel_moves_where_the_parameters_say(name, path):
    (rotation, dx, dy, mirror), (x, y) = MOVES[name]
    image = torch.zeros((1, SIZE, SIZE), dtype=torch.uint8)
    image[0, 40, 70] = 255
    parameters = CopyParameters(*(np.array([value]) for value in (rotation, dx, dy, mirror)))
    matrix = affine_matrices(parameters, SIZE)
    moved = warp(image, matrix) if path == "opencv" else _warp_grid(image, torch.from_numpy(matrix))
    found = divmod(int(moved[0].flatten().argmax()), SIZE)
    assert found == (y, x)
    assert moved[0, y, x] >= 240


def test_outside_is_black(images):
    shifted = CopyParameters(np.zeros(1), np.array([30.0]), np.zeros(1), np.zeros(1, bool))
    assert not warp(images[:1], affine_matrices(shifted, SIZE))[0, :, :30].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_is_the_contracts(images, dtype):
    out = normalise(images[:5].to(dtype))
    scaled = images[:5].numpy().astype(np.float64)[:, None] / 255
    expected = (scaled - np.array(MEAN).reshape(3, 1, 1)) / np.array(STD).reshape(3, 1, 1)
    assert out.shape == (5, 3, SIZE, SIZE)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)
