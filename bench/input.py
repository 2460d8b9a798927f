"""Images -> the network's input: the first epoch and the later ones. Run: python -m bench input"""

import multiprocessing
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config import BenchConfig, settle
from bench.images import RawImages, ingest_raw, raw_images
from bench.loaders import Epochs, dali_loaders, jpeg_loaders, raw_loaders
from bench.machine import synchronise
from bench.memory import peak_above_start_mb
from bench.peers import img2dataset_shards, kornia_copies
from bench.result import Rates, Result, Side, interleave, rounded
from shards.manifest import load_manifest
from train.augment import EIGHT, NONE, Expansion
from train.batch import micro_batches
from train.device import choose_device
from train.expand import Expander
from train.load import load_store
from train.store import InputConfig, Store

MICRO_BATCH = 64
_DALI, _DALI_JPEG = "DALI, from the same shards", "DALI, from JPEG shards"


@dataclass(frozen=True)
class InputBench(BenchConfig):
    """How fast images become normalised batches: in the first epoch from shards, beside the
    loaders of torchvision and torchxrayvision on the raw files, and of webdataset and MosaicML
    Streaming on JPEG; in later ones from memory with 8 augmented copies of each, beside Kornia."""

    size: int = 224
    """Side of the network's input in pixels."""
    times: int = 4
    """Each image goes in so many times: as it is, turned and mirrored (at most 8)."""


def measure(config: InputBench) -> Result:
    """First epoch and later epochs, each beside its peer."""
    config = settle(config)
    device = choose_device("auto", 0)
    torch.set_num_threads(config.workers)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"), config.times)
        peers = raw_loaders(raw.paths, Path(work), config.size, config.workers)
        peers |= jpeg_loaders(
            _jpeg_tars(raw, work, config), Path(work), config.size, config.workers
        )
        # Several shards, as every real set has: the next one is checked while one is decoded.
        folder = ingest_raw(raw, Path(work, "shards"), "htj2k", config, shard_mb=8)
        jpegs = ingest_raw(raw, Path(work, "jpeg"), "jpeg", config, shard_mb=8)
        peers |= dali_loaders(
            {_DALI: folder, _DALI_JPEG: jpegs}, config.size, config.workers, device
        )
        sides: dict[str, Side] = {"ours": _first_epoch(folder, config, device)}
        sides |= {name: partial(_peer_epoch, loader, device) for name, loader in peers.items()}
        sides["ours, from JPEG"] = _first_epoch(jpegs, config, device)
        first = interleave("input, first epoch", sides, config.repeats)
        jpeg = _from_jpeg(first)
        memory = peak_above_start_mb(_two_epochs, folder, config, device)
        store = _load(folder, config, device)
        store_mb = store.images.numel() / 1e6  # of uint8
        beside = memory - (store_mb if device.type == "cpu" else 0)
        later = interleave("input, later epochs", _later_epochs(store, config), config.repeats)
        what = (
            f"{raw} -> normalised float batches of {config.size} x {config.size}, first epoch; "
            f"ours from HTJ2K shards of shorter side {config.shorter_side}, the "
            f"peer from the raw files; --workers {config.workers}; the start of threads and "
            "processes is included in ours only; "
            f"{config.times - 1} of {config.times} images are turned or mirrored copies"
        )
    return Result(
        name="input",
        what=what,
        peer_name="torchvision: DataLoader, Pillow RGB, Resize, ToTensor, Normalize",
        ours=first.pop("ours"),
        peer=first.pop("torchvision"),
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        others=first,
        extra=_further(later)
        | jpeg
        | {"store_mb": round(store_mb, 1), "peak_mb_beside_store": round(beside, 1)},
    )


def _jpeg_tars(raw: RawImages, work: str, config: InputBench) -> list[Path]:
    """The raw images as JPEG in a tar per worker, for the peers: none shares a tar."""
    (out := Path(work, "tars")).mkdir()
    context = multiprocessing.get_context("forkserver")
    side, workers = config.shorter_side, config.workers
    img2dataset_shards(raw.paths, out, "OpenCV to JPEG", side, workers, context)
    return sorted(out.glob("*.tar"))


def _peer_epoch(loader: Epochs, device: torch.device) -> int:
    images = sum(len(batch) for batch in loader.epoch(device))
    synchronise(device)
    return images


def _further(later: dict[str, Rates]) -> dict[str, Any]:
    """The later epochs in copies per second."""
    resident, kornia = later["resident"], later["kornia"]
    return {
        "resident_img_s": round(resident.median, 3),
        "resident_spread": rounded(resident.spread),
        "kornia_img_s": round(kornia.median, 3),
        "kornia_spread": rounded(kornia.spread),
        "resident_ratio": round(resident.median / kornia.median, 4),
    }


def _from_jpeg(first: dict[str, Rates]) -> dict[str, Any]:
    """Taken out of `first`, since only JPEG can be held against JPEG."""
    ours, dali = first.pop("ours, from JPEG"), first.pop(_DALI_JPEG, None)
    found = {"jpeg_img_s": round(ours.median, 3), "jpeg_spread": rounded(ours.spread)}
    if dali:
        found |= {
            "dali_jpeg_img_s": round(dali.median, 3),
            "dali_jpeg_spread": rounded(dali.spread),
        }
        found["jpeg_ratio_to_dali"] = round(ours.median / dali.median, 4)
    return found


def _load(folder: Path, config: InputBench, device: torch.device) -> Store:
    return load_store(
        folder,
        load_manifest(folder),
        "train",
        size=config.size,
        config=InputConfig("auto", config.workers),
        device=device,
        shown=False,
    )


def _first_epoch(folder: Path, config: InputBench, device: torch.device) -> Side:
    """Check the shards' hashes, decode, resize, keep; then every image once, normalised."""

    def work() -> int:
        return _epoch(_load(folder, config, device), config, 0, {})

    return work


def _two_epochs(folder: Path, config: InputBench, device: torch.device) -> None:
    """The first epoch and a later one, in a process of its own."""
    torch.set_num_threads(config.workers)
    store = _load(folder, config, device)
    for epoch, expansions in enumerate(({}, {0: EIGHT})):
        _epoch(store, config, epoch, expansions)


def _later_epochs(store: Store, config: InputBench) -> dict[str, Side]:
    epochs = count(1)
    per_batch = MICRO_BATCH // EIGHT.factor
    device = store.images.device

    def resident() -> int:
        return _epoch(store, config, next(epochs), {0: EIGHT})

    def kornia() -> int:
        copies = 0
        for part in store.images.split(per_batch):
            copies += len(kornia_copies(part[:, None].float() / 255))
        synchronise(device)
        return copies

    return {"resident": resident, "kornia": kornia}


def _epoch(store: Store, config: InputBench, epoch: int, expansions: dict[int, Expansion]) -> int:
    """Every copy of every image as a normalised float batch, as a training step takes them."""
    expander = Expander(expansions, NONE, seed=0, size=config.size)
    copies = expander.mixed_copies(store, np.arange(len(store)), epoch)
    images = sum(len(batch.images) for batch in micro_batches(store, copies, MICRO_BATCH))
    synchronise(store.images.device)
    return images
