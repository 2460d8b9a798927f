"""The resident store: a split decoded and resized once, kept as uint8 for every later epoch.

112,120 images of 224 x 224 are 5.6 GB; after the first pass an epoch is a gather and a warp.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from shards.console import RunFailed, UserError, progress
from shards.manifest import Manifest, ShardInfo, shard_path
from shards.reader import read_labels


@dataclass(frozen=True)
class InputConfig:
    """backend: who decodes and resizes; auto takes DALI where a GPU is there, else torch's threads.
    threads: decoding threads of this process; 0 takes the processor's cores."""

    backend: Literal["auto", "dali", "torch"] = "auto"
    threads: int = 0

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


class Decoder(Protocol):
    """An input backend: all images of some shards, in order, as chunks (n, S, S) uint8."""

    def __call__(
        self, shards: list[Path], counts: list[int], extension: str, size: int, threads: int
    ) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Store:
    """images: (N, S, S) uint8 on the training device; labels: (N, L) int8 on the CPU; keys: N."""

    keys: tuple[str, ...]
    images: Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


def choose_backend(config: InputConfig, device: torch.device) -> Decoder:
    """The backend's decoder. UserError when DALI is asked for and cannot be imported."""
    if config.backend == "torch" or (config.backend == "auto" and device.type == "cpu"):
        from train.input_torch import decode_shards

        return decode_shards
    try:
        from train.input_dali import decoder_for
    except ImportError as error:
        raise UserError(
            f"the dali input is not there ({error}); take --input.backend torch, or install "
            "nvidia-dali-cuda130"
        ) from error
    return decoder_for(device)


def load_store(
    folder: Path,
    manifest: Manifest,
    split: str,
    *,
    size: int,
    config: InputConfig,
    device: torch.device,
    shown: bool = True,
) -> Store:
    """Decode and resize a split of the data set in `folder` onto `device`.

    Every shard's SHA-256 is compared with the manifest's first; RunFailed when one differs.
    """
    infos = manifest.of_split(split)
    for shard in infos:
        _check_hash(folder, shard)
    keys, labels = read_labels(folder, manifest, split)
    images = torch.empty((len(keys), size, size), dtype=torch.uint8, device=device)
    paths = [shard_path(folder, shard) for shard in infos]
    counts = [shard.samples for shard in infos]
    decode = choose_backend(config, device)
    done = 0
    with progress(f"decode {split}", len(keys), shown=shown) as advance:
        for chunk in decode(paths, counts, manifest.image_extension, size, config.num_threads):
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
            advance(len(chunk))
    if done != len(keys):
        raise RunFailed(f"{folder.name}/{split}: decoded {done} images, expected {len(keys)}")
    return Store(tuple(keys), images, labels)


def _check_hash(folder: Path, shard: ShardInfo) -> None:
    path = shard_path(folder, shard)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise RunFailed(
            f"{path} does not match the manifest (its SHA-256 differs); find the damage with: "
            f"python -m shards verify {folder}"
        )
