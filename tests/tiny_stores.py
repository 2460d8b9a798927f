"""Stores of small images, as most tests of the input begin with."""

import threading
import time
from pathlib import Path

import numpy as np
import torch

from shards.manifest import load_manifest
from train.load import load_store
from train.store import InputConfig, Store

SIZE = 48
CPU = torch.device("cpu")


def load(folder: Path, backend: str = "torch", **settings) -> Store:
    config = InputConfig(backend=backend, threads=2, **settings)  # type: ignore[arg-type]
    manifest = load_manifest(folder)
    return load_store(folder, manifest, "train", size=SIZE, config=config, device=CPU, shown=False)


def all_images(store: Store) -> torch.Tensor:
    return store.take(np.arange(len(store))).images


def wait_for_threads(name: str) -> None:
    end = time.monotonic() + 10
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.02)
