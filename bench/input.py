"""Images -> the network's input: the first epoch and the later ones. Run: python -m bench input"""

import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bench.config import BenchConfig, settle
from bench.images import ingest_raw, raw_images
from bench.machine import synchronise
from bench.peers import TorchvisionLoader, kornia_copies
from bench.result import Rates, Result, Side, interleave, rounded
from shards.manifest import load_manifest
from train.augment import EIGHT, Expansion
from train.batch import Expander, micro_batches
from train.dist import choose_device
from train.store import InputConfig, Store, load_store

MICRO_BATCH = 64


@dataclass(frozen=True)
class InputBench(BenchConfig):
    """How fast images become normalised batches: in the first epoch from shards, beside
    torchvision's DataLoader on the raw files; in later ones from memory with 8 augmented copies of
    each, beside Kornia."""

    size: int = 224
    """Side of the network's input in pixels."""


def measure(config: InputBench) -> Result:
    """First epoch and later epochs, each beside its peer."""
    config = settle(config)
    device = choose_device("auto", 0)
    torch.set_num_threads(config.workers)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"))
        loader = TorchvisionLoader(raw.paths, config.size, config.workers)
        folder = ingest_raw(raw, Path(work, "shards"), "htj2k", config)

        def peer() -> int:
            images = sum(len(batch) for batch in loader.epoch(device))
            synchronise(device)
            return images

        sides: dict[str, Side] = {"ours": _first_epoch(folder, config, device, "torch")}
        sides |= {"peer": peer}
        if _has_dali():
            sides["dali"] = _first_epoch(folder, config, device, "dali")
        first = interleave("input, first epoch", sides, config.repeats)
        store = _load(folder, config, device, "torch")
        later = interleave("input, later epochs", _later_epochs(store, config), config.repeats)
        what = (
            f"{raw} -> normalised float batches of {config.size} x {config.size}, first epoch; "
            f"ours from HTJ2K shards of shorter side {config.shorter_side} by torch's threads, the "
            f"peer from the raw files; --workers {config.workers}; the start of threads and "
            "processes is included in ours only"
        )
    return Result(
        name="input",
        what=what,
        peer_name="torchvision: DataLoader, Pillow RGB, Resize, ToTensor, Normalize",
        ours=first["ours"],
        peer=first["peer"],
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        extra=_further(first.get("dali"), later),
    )


def _further(dali: Rates | None, later: dict[str, Rates]) -> dict[str, Any]:
    """DALI's first epoch, and the later epochs in copies per second."""
    resident, kornia = later["resident"], later["kornia"]
    return {
        "dali_img_s": round(dali.median, 3) if dali else None,
        "resident_img_s": round(resident.median, 3),
        "resident_spread": rounded(resident.spread),
        "kornia_img_s": round(kornia.median, 3),
        "kornia_spread": rounded(kornia.spread),
        "resident_ratio": round(resident.median / kornia.median, 4),
    }


def _has_dali() -> bool:
    try:
        import train.input_dali  # noqa: F401
    except ImportError:
        return False
    return True


def _load(
    folder: Path, config: InputBench, device: torch.device, backend: Literal["torch", "dali"]
) -> Store:
    return load_store(
        folder,
        load_manifest(folder),
        "train",
        size=config.size,
        config=InputConfig(backend, config.workers),
        device=device,
        shown=False,
    )


def _first_epoch(
    folder: Path, config: InputBench, device: torch.device, backend: Literal["torch", "dali"]
) -> Side:
    """Check the shards' hashes, decode, resize, keep; then every image once, normalised."""

    def work() -> int:
        return _epoch(_load(folder, config, device, backend), config, 0, {})

    return work


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
    expander = Expander(expansions, 0.0, seed=0, size=config.size)
    copies = expander.mixed_copies(store, np.arange(len(store)), epoch)
    images = sum(len(batch.images) for batch in micro_batches(store, copies, MICRO_BATCH))
    synchronise(store.images.device)
    return images
