"""train.warp: OpenCV's, torch's, Triton's and Pillow's warps agree; pixels move where parameters
say; the output is the contract's in every dtype."""

from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest
import torch
from all_copies import EVERYTHING, WORDS, all_copies
from kornia.geometry.transform import remap
from PIL import Image, ImageEnhance
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import adjust_brightness, adjust_contrast

from shards.preprocess import MEAN, STD
from train.augment import SEVENTY_TWO, Varied, affine_matrices, unchanged
from train.expand import Copies, copies_from
from train.warp import (
    DTYPES,
    Warper,
    fused_warp,
    jitter_torch,
    movement,
    normalise,
    warp_grid,
    warp_slowly,
)
from train.warp_compiled import jitter

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
    return affine_matrices(all_copies(WORDS, SEVENTY_TWO, seed=3, epoch=1, size=SIZE), SIZE)


def plain_copies(matrices: np.ndarray) -> Copies:
    """Copy i of image i, with nothing but its matrix."""
    copies = copies_from(np.arange(len(matrices)), unchanged(len(matrices)), SIZE)
    return replace(copies, matrices=matrices)


def grey(output: torch.Tensor) -> torch.Tensor:
    """(K, 3, S, S) normalised -> (K, S, S) of range 0..255; the three channels say the same."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    levels = (output.float() * std + mean) * 255
    return levels[:, 0]


def warp(images: torch.Tensor, matrices: np.ndarray) -> torch.Tensor:
    """By the compiled loops: (K, S, S) uint8."""
    return grey(Warper()(images, plain_copies(matrices))).round().to(torch.uint8)


def by_grid(images: torch.Tensor, matrices: np.ndarray) -> torch.Tensor:
    """By torch: (K, S, S) float32."""
    return warp_grid(images, torch.from_numpy(matrices), torch.zeros(len(matrices), 4, 4, 2))


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
        "compiled": warp(images, matrices).numpy(),
        "torch": by_grid(images, matrices).numpy(),
        "pillow": warp_pillow(images, matrices),
    }
    inside = source_inside(matrices)
    for first, second in combinations(results, 2):
        difference = np.abs(results[first].astype(float) - results[second].astype(float))
        assert difference.mean(axis=(1, 2)).max() <= 1.0, (first, second)
        # The images' edges differ more in Pillow, which does not blend the last pixel with black.
        assert difference[inside].max() <= 1.01, (first, second)


def test_compiled_and_torch_differ_by_rounding_only(images, matrices):
    grid = by_grid(images, matrices).numpy()
    assert np.abs(warp(images, matrices).numpy() - grid).max() <= 0.51


def test_identity_changes_nothing(images):
    identity = np.tile(np.eye(2, 3, dtype=np.float32), (len(images), 1, 1))
    assert torch.equal(warp(images, identity), images)
    grid = by_grid(images, identity)
    assert torch.equal(grid.round().to(torch.uint8), images)


class NoProducts(TorchDispatchMode):
    """Fails at a matrix product, whose factors a GPU may round to TF32's 10 bits: 0.1 pixels."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "mm" not in func.__name__, func
        return func(*args, **(kwargs or {}))


def test_no_coordinate_of_the_reference_is_rounded_by_a_gpus_matrix_products(images):
    rule = Varied(2, EVERYTHING)
    copies = copies_from(np.arange(2), all_copies(WORDS, rule, seed=3, epoch=1, size=SIZE), SIZE)
    with NoProducts():
        warp_slowly(images[:2], copies)


def test_the_unmirrored_copy_0_is_the_image(images, matrices):
    assert torch.equal(warp(images[:1], matrices[:1]), images[:1])


def test_mirror_is_a_flip(images):
    flipped = warp(
        images[:1], affine_matrices(replace(unchanged(1), mirror=np.ones(1, bool)), SIZE)
    )
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
@pytest.mark.parametrize("path", ["compiled", "torch"])
def test_a_pixel_moves_where_the_parameters_say(name, path):
    (rotation, dx, dy, mirror), (x, y) = MOVES[name]
    image = torch.zeros((1, SIZE, SIZE), dtype=torch.uint8)
    image[0, 40, 70] = 255
    values = {"rotation_deg": rotation, "dx_px": dx, "dy_px": dy, "mirror": mirror}
    moves = {name: np.array([value]) for name, value in values.items()}
    matrix = affine_matrices(replace(unchanged(1), **moves), SIZE)
    moved = warp(image, matrix) if path == "compiled" else by_grid(image, matrix)
    found = divmod(int(moved[0].flatten().argmax()), SIZE)
    assert found == (y, x)
    assert moved[0, y, x] >= 240


def test_outside_is_black(images):
    shifted = replace(unchanged(1), dx_px=np.array([30.0]))
    assert not warp(images[:1], affine_matrices(shifted, SIZE))[0, :, :30].any()


def test_any_matrix_stays_inside_the_image(images):
    """Far beyond what 32 bits hold, and no number at all: black, or the reference."""
    scales = [1e-9, 1e-3, 40.0, 1e6, 1e20, 1e38]
    maps = [[[a, b, c], [d, e, f]] for a in scales for b, c, d, e, f in [(-a, a, a, -a, -a)]]
    maps += [[[a, 0, 0], [0, a, 0]] for a in scales] + [[[np.nan] * 3, [np.inf] * 3]]
    matrices = np.array(maps, np.float32)
    found = warp(images[:1].expand(len(maps), -1, -1).contiguous(), matrices).numpy()
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    with np.errstate(all="ignore"):
        sources = pixels @ matrices.astype(np.float64).transpose(0, 2, 1)
        outside = ((sources <= -1) | (sources >= SIZE)).any(axis=-1).reshape(found.shape)
    assert outside.any()
    assert not found[outside].any()
    assert (found[:3, 0, 0] == images[0, 0, 0].numpy()).any()


@pytest.mark.parametrize("size", [1, 2, 7, 33])
def test_small_images_are_the_references(images, size):
    small = images[:12, 100 : 100 + size, 100 : 100 + size].contiguous()
    maps = affine_matrices(all_copies(WORDS, SEVENTY_TWO, seed=3, epoch=1, size=size), size)[60:72]
    maps[:, :, 2] += np.random.default_rng(0).uniform(-1, 1, (12, 2))
    levels = small.numpy()
    y, x = np.mgrid[:size, :size]
    for map_, image, found in zip(maps, levels, warp(small, maps).numpy()):
        u, v = np.einsum("ij,jkl->ikl", map_, np.stack([x, y, np.ones_like(x)]))
        expected = np.zeros((size, size))
        for row, column in np.ndindex(size, size):
            near = (1 - np.abs(u - column)).clip(0) * (1 - np.abs(v - row)).clip(0)
            expected += near * image[row, column]
        assert np.abs(found - expected).max() <= 0.52


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_is_the_contracts(images, dtype):
    out = normalise(images[:5].to(dtype))
    scaled = images[:5].numpy().astype(np.float64)[:, None] / 255
    expected = (scaled - np.array(MEAN).reshape(3, 1, 1)) / np.array(STD).reshape(3, 1, 1)
    assert out.shape == (5, 3, SIZE, SIZE)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


@pytest.fixture(scope="module")
def many() -> Copies:
    """Copies of four images: expansions, and every kind of change."""
    expanded = all_copies(WORDS, SEVENTY_TWO, seed=3, epoch=1, size=SIZE)
    changed = all_copies(WORDS, Varied(9, EVERYTHING), seed=3, epoch=1, size=SIZE)
    parts = [
        copies_from(np.arange(72) % 4, expanded, SIZE)[np.arange(0, 72, 5)],
        copies_from(np.arange(9) % 4, changed, SIZE),
    ]
    names = ("sample", "matrices", "jitter", "elastic")
    return Copies(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def test_all_changes_at_once_are_the_references(images, many):
    expected = grey(warp_slowly(images, many))
    difference = (grey(Warper()(images, many)) - expected).abs()
    affine = ~many.elastic.any(axis=(1, 2, 3))
    assert difference[affine].max() <= 0.52  # the compiled loops round to whole levels
    # OpenCV's remap takes positions to 1/32 pixel
    assert difference.mean() <= 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_dtype_is_the_rounded_reference(images, many, dtype, threads):
    out = Warper(dtype, threads)(images, many)
    assert out.dtype == dtype
    assert out.shape == (len(many), 3, SIZE, SIZE)
    assert out.is_contiguous(memory_format=torch.channels_last)
    levels = grey(Warper(torch.float32, 1)(images, many)).round().to(torch.uint8)
    expected = normalise(levels)
    if dtype == torch.float32:
        assert (out - expected).abs().max() <= 1e-6
    else:
        assert torch.equal(out, expected.to(dtype))


def test_a_buffer_is_used_again_and_a_graph_over_it_notices(images, many):
    warper = Warper(threads=1)
    with torch.inference_mode():
        first = warper(images, many)
    second = warper(images, many[np.arange(3)])
    assert second.data_ptr() == first.data_ptr()
    weight = torch.ones((), requires_grad=True)
    loss = (second * weight).sum()
    warper(images, many[np.arange(2)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert (
        warper(images[:, :32, :32].contiguous(), plain_copies(np.eye(2, 3)[None])).shape[-1] == 32
    )


@pytest.mark.parametrize(("brightness", "contrast"), [(0.5, 1), (1.4, 1), (1, 0.6), (1.3, 1.5)])
def test_jitter_is_torchvisions_and_pillows(images, brightness, contrast):
    image = images[0].numpy()
    ours = jitter(image, brightness, contrast).astype(int)
    peer = adjust_contrast(adjust_brightness(images[:1], brightness), contrast)
    assert np.abs(ours - peer[0].numpy()).max() <= 2  # torchvision cuts after each, ours rounds
    pillow = ImageEnhance.Brightness(Image.fromarray(image)).enhance(brightness)
    pillow = ImageEnhance.Contrast(pillow).enhance(contrast)
    assert np.abs(ours - np.asarray(pillow).astype(int)).max() <= 2
    factors = torch.tensor([[brightness, contrast]])
    assert (jitter_torch(images[:1], factors)[0].int() - torch.from_numpy(ours)).abs().max() <= 1


def test_elastic_is_kornias_remap_of_the_upsampled_points(images):
    points = np.random.default_rng(0).uniform(-6, 6, (5, 4, 4, 2)).astype(np.float32)
    copies = replace(
        plain_copies(np.tile(np.eye(2, 3, dtype=np.float32), (5, 1, 1))), elastic=points
    )
    ours = grey(Warper()(images[:5], copies))
    field = movement(torch.from_numpy(points), SIZE)
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    peer = remap(
        images[:5, None].float(), x + field[..., 0], y + field[..., 1], align_corners=True
    )[:, 0]
    difference = (ours - peer).abs()
    assert difference.mean() <= 0.5
    assert difference.max() <= 4
    # 4 x 4 control points, bicubic: as OpenCV enlarges them
    enlarged = np.stack([cv2.resize(p, (224, 224), interpolation=cv2.INTER_CUBIC) for p in points])
    np.testing.assert_allclose(field.numpy(), enlarged, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fused_kernel_is_the_reference_on_a_gpu(images, many, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert fused_warp() is not None
    out = Warper(dtype)(images.cuda(), many)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = warp_slowly(images.cuda(), many).cpu()
    near = {torch.float32: 5e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert (out.cpu().float() - expected).abs().max() <= near
