"""train.store: both backends decode what the preprocessing contract says, in the shards' order."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest, shard_path
from shards.preprocess import resize
from shards.reader import read_split
from train.load import load_store
from train.store import InputConfig, Store

SIZE = 64
CPU = torch.device("cpu")
DATASETS = ["chestxray14", "covid-radiography"]
SPLITS = ["train", "val", "test"]


def load(folder: Path, split: str, backend: str) -> Store:
    manifest = load_manifest(folder)
    config = InputConfig(backend=backend, threads=2)  # type: ignore[arg-type]
    return load_store(folder, manifest, split, size=SIZE, config=config, device=CPU, shown=False)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_torch_backend_is_the_contract(tiny_shards, dataset, split):
    folder = tiny_shards / dataset
    store = load(folder, split, "torch")
    samples = list(read_split(folder, load_manifest(folder), split))
    assert store.keys == tuple(sample.key for sample in samples)
    assert len(store) == len(samples)
    assert np.array_equal(store.labels, np.stack([sample.labels for sample in samples]))
    expected = np.stack([resize(decode_grey(sample.image), SIZE) for sample in samples])
    assert store.images.dtype == torch.uint8
    assert np.array_equal(store.images.numpy(), expected)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_dali_backend_agrees_within_a_grey_level(tiny_shards, dataset, split):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    ours = load(tiny_shards / dataset, split, "torch")
    dali = load(tiny_shards / dataset, split, "dali")
    assert dali.keys == ours.keys
    assert np.array_equal(dali.labels, ours.labels)
    difference = (dali.images.float() - ours.images.float()).abs()
    assert difference.mean(dim=(1, 2)).max() <= 1.0  # of each image, so that order counts too


def test_auto_takes_torch_on_a_cpu(tiny_shards):
    folder = tiny_shards / DATASETS[1]
    auto, plain = load(folder, "val", "auto"), load(folder, "val", "torch")
    assert torch.equal(auto.images, plain.images)


def test_dali_that_is_not_there_is_named(tiny_shards, monkeypatch):
    monkeypatch.delitem(sys.modules, "train.input_dali", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"take --input.backend torch"):
        load(tiny_shards / DATASETS[1], "val", "dali")


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_a_flipped_byte_ends_the_run(tiny_shards, tmp_path, backend):
    folder = tmp_path / DATASETS[1]
    shutil.copytree(tiny_shards / DATASETS[1], folder)
    path = shard_path(folder, load_manifest(folder).of_split("train")[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFailed, match=r"does not match the manifest.*shards verify"):
        load(folder, "train", backend)
    assert len(load(folder, "val", "torch"))  # the other splits are whole


def test_threads_do_not_change_the_order(tiny_shards):
    folder = tiny_shards / DATASETS[0]
    manifest = load_manifest(folder)
    stores = [
        load_store(
            folder,
            manifest,
            "train",
            size=32,
            config=InputConfig("torch", n),
            device=CPU,
            shown=False,
        )
        for n in (1, 3)
    ]
    assert torch.equal(stores[0].images, stores[1].images)
