"""The input on a GPU: every place gives the images of the host's store, by both backends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shards.manifest import load_manifest
from train.load import load_store
from train.memory import free_memory
from train.sources import PinnedSource
from train.store import InputConfig, Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
SIZE = 64


def load(folder: Path, device: str, backend: str, store: str, cache: Path | None = None) -> Store:
    return load_store(
        folder,
        load_manifest(folder),
        "train",
        size=SIZE,
        config=InputConfig(backend, 2, store, cache),  # type: ignore[arg-type]
        device=torch.device(device),
        shown=False,
    )


@pytest.mark.parametrize("store", ["device", "host", "disk", "stream"])
@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_every_place_gives_the_same_images(tiny_shards, tmp_path, backend, store):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    folder = tiny_shards / "covid-radiography"
    expected = load(folder, "cpu", "torch", "host").images
    cache = tmp_path if store == "disk" else None
    ours = load(folder, "cuda:0", backend, store, cache)
    order = np.random.default_rng(0).permutation(len(ours))
    ours.expect(order)
    for part in np.array_split(order, 5):
        taken = ours.take(part)
        assert taken.images.device.type == "cuda"
        difference = (taken.images.cpu().float() - expected[torch.from_numpy(part)].float()).abs()
        assert difference.max() <= (0 if backend == "torch" else 2)
    assert not isinstance(ours.source, PinnedSource) or ours.source.images.is_pinned()
    ours.close()


def test_free_memory_is_the_cards():
    free = free_memory(torch.device("cuda:0")).device
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
