"""The input's memory over 20 epochs on images of full size, as a training on a CPU has it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from shards import malloc
from shards.codec import encode
from shards.manifest import FILE_NAME, Manifest, SplitCounts, load_manifest
from shards.order import epoch_order
from shards.sample import Sample, SampleMeta
from shards.writer import write_shard
from train.augment import EIGHT, NONE
from train.batch import micro_batches
from train.expand import Expander
from train.load import load_store
from train.store import InputConfig

CPU = torch.device("cpu")


def set_of_full_size(folder: Path, count: int) -> Path:
    """A data set of radiographs' size, 512 x 512, all of it for training."""
    rng, wave = np.random.default_rng(0), np.sin(np.mgrid[:512, :512] / 40).sum(0) * 60 + 120
    samples = [
        Sample(
            f"image{number:03d}",
            encode((wave + rng.integers(0, 9, wave.shape)).astype(np.uint8), "htj2k"),
            "jph",
            np.array([1, 0], np.int8),
            SampleMeta("test", "file", "0" * 64, 512, 512),
        )
        for number in range(count)
    ]
    shard = write_shard(folder / "train" / "full-train-000000.tar", "train", samples)
    manifest = Manifest(
        dataset="full",
        labels=("a", "b"),
        exclusive=True,
        image_extension="jph",
        preprocessing_version=1,
        shorter_side=512,
        splits={"train": SplitCounts(count, {"a": count, "b": 0})},
        excluded={},
        settings={},
        shards=(shard,),
    )
    (folder / FILE_NAME).write_bytes(manifest.to_json())
    return folder


def memory_of_epochs(folder: Path, backend: str, place: str, cache: Path | None) -> list[int]:
    """Bytes that a process has beyond its imports after each of 20 epochs, and its peak. It keeps
    what it frees in one heap, as a training on a CPU does."""
    malloc.keep_all()
    torch.set_num_threads(2)
    if backend == "dali":
        import nvidia.dali  # noqa: F401
    used = [psutil.Process().memory_info().rss]
    config = InputConfig(backend, 2, place, cache)  # type: ignore[arg-type]
    store = load_store(
        folder, load_manifest(folder), "train", size=224, config=config, device=CPU, shown=False
    )
    expander = Expander({0: EIGHT}, NONE, seed=3, size=224)
    for epoch in range(20):
        order = epoch_order(len(store), seed=0, epoch=epoch)
        batches = [np.sort(order[at : at + 8]) for at in range(0, len(order), 8)]
        store.expect(np.concatenate(batches))
        for batch in batches:
            for _ in micro_batches(store, expander.copies(store, batch, epoch), 64):
                pass
        used.append(psutil.Process().memory_info().rss)
    store.close()
    used.append(_peak())
    return [each - used[0] for each in used[1:]]


def _peak() -> int:
    """Bytes. Not getrusage's, in which the peak of the process that began this one counts."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@pytest.mark.soak
@pytest.mark.parametrize(
    ("place", "backend"),
    [
        ("host", "torch"),
        ("stream", "torch"),
        ("disk", "torch"),
        ("host", "dali"),
        ("stream", "dali"),
    ],
)
def test_full_sizes_take_little_beside_the_store_and_no_more_with_every_epoch(
    tmp_path, place, backend
):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    folder = set_of_full_size(tmp_path / "full", 64)
    cache = tmp_path if place == "disk" else None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        *used, peak = pool.submit(memory_of_epochs, folder, backend, place, cache).result(300)
    # In ten epochs two of DALI's batches, 32 x 512 x 512: its threads are new in every epoch, and
    # what they find free differs. A batch kept in each epoch would be 84 MB.
    assert used[-1] - used[9] < (17_000_000 if backend == "dali" else 5_000_000)
    assert peak < (64 * 224 * 224 if place == "host" else 0) + 300_000_000
