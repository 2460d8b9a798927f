"""bench.warp: what is timed is the same work: every peer gives our pictures."""

import cv2
import numpy as np
import pytest
import torch

from bench import warp as bench
from train.store import Store
from train.warp import Warper, normalise

SIZE = 64


@pytest.fixture(scope="module")
def store() -> Store:
    noise = np.random.default_rng(0).normal(128, 400, (SIZE, SIZE, 3)).astype(np.float32)
    smooth = np.clip(cv2.GaussianBlur(noise, (0, 0), 4), 0, 255).astype(np.uint8)
    images = torch.from_numpy(np.ascontiguousarray(smooth.transpose(2, 0, 1)))
    return bench._store(images)


@pytest.mark.parametrize("way", [bench._kornia_warp, bench._torch_grid, bench._pillow])
def test_a_peers_warp_is_ours(store, way):
    copies = next(bench._calls(store, 0))
    theirs = normalise(way(store.images[copies.sample], copies.matrices))
    ours = Warper()(store.images, copies)
    assert (ours - theirs).abs().mean() < 0.05  # Pillow does not blend the edge with black
    assert torch.quantile((ours - theirs).abs()[:, 0].flatten(), 0.95) < 0.03


def test_every_side_makes_every_copy(store):
    sides = bench._sides(store, 1)
    assert {name: side() for name, side in sides.items()} == dict.fromkeys(sides, 24)
    assert {"ours", "ours, bfloat16", "kornia, in sequence", "limit, float32"} <= set(sides)
