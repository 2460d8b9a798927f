"""The input on a GPU: every place gives the images of the host's store, by both backends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shards.manifest import load_manifest
from train.load import load_store
from train.memory import free_memory
from train.sources import PinnedSource, upload
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


def test_an_upload_waits_for_nothing():
    device, array = torch.device("cuda:0"), np.arange(1000)
    upload(array, device)  # the first one allocates
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    found = upload(array, device)
    assert not torch.cuda.current_stream().query()
    assert found.tolist() == array.tolist()


def test_memory_that_is_pinned_already_is_a_warning_and_no_later_error(capsys):
    images = torch.arange(5 * 4096, dtype=torch.uint8).reshape(5, 64, 64)
    first = PinnedSource(images, torch.device("cuda:0"))
    second = PinnedSource(images, torch.device("cuda:0"))
    assert "cannot be pinned" in capsys.readouterr().err
    for source in (second, first):
        assert torch.equal(source.take(np.array([4, 0])).cpu(), images[[4, 0]])
        source.close()
    torch.ones(3, device="cuda:0").sum().item()
