"""The input backends behind one call, and the order in which a split is decoded at first."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shards.console import UserError, warn
from shards.split_reader import SplitReader
from train.ahead import Threads
from train.input_torch import decode_images

# Images of a task: 32 ms hide its cost, 50 us; the fewer, the shorter threads wait at the end.
CHUNK = 32


class Decoder(Protocol):
    """An input backend: for each chunk of at most CHUNK positions its images (n, S, S) uint8."""

    def __call__(
        self, reader: SplitReader, chunks: Iterable[np.ndarray], size: int, threads: int
    ) -> Iterator[Tensor]: ...


def choose_backend(backend: str, device: torch.device) -> tuple[str, Decoder]:
    """Name and decoder; auto takes DALI where a GPU is there, and where DALI is not installed, with
    a warning, torch. UserError when DALI is asked for and cannot be imported."""
    if backend == "torch" or (backend == "auto" and device.type == "cpu"):
        return "torch", decode_images
    try:
        from train.input_dali import decoder_for
    except ImportError as error:
        if backend == "auto":
            warn(f"DALI is not there ({error}): torch's threads decode on the CPU")
            return "torch", decode_images
        raise UserError(
            f"the dali input is not there ({error}); take --input.backend torch, or install "
            "nvidia-dali-cuda130"
        ) from error
    return "dali", decoder_for(device)


def scan_part(reader: SplitReader, start: int, stop: int, threads: int) -> Iterator[int]:
    """Check the shards that hold the positions from start to stop; yields each one's samples."""
    pool = Threads(threads, "scan")
    jobs = [(n, pool.submit(partial(reader.scan, n))) for n in reader.shards_of(start, stop)]
    pool.close()
    for number, job in jobs:
        job.result()
        yield int(reader.starts[number + 1] - reader.starts[number])


def checked_chunks(reader: SplitReader, start: int, stop: int) -> Iterator[np.ndarray]:
    """The positions from start to stop in order, those of a shard once it is checked; the next
    shard is checked meanwhile, so its bytes come from the disk once."""
    pool = Threads(1, "scan")
    shards = reader.shards_of(start, stop)
    jobs = [pool.submit(partial(reader.scan, number)) for number in shards[:1]]
    try:
        for place, number in enumerate(shards):
            jobs.pop().result()
            if place + 1 < len(shards):
                jobs.append(pool.submit(partial(reader.scan, shards[place + 1])))
            first = max(start, int(reader.starts[number]))
            last = min(stop, int(reader.starts[number + 1]))
            for at in range(first, last, CHUNK):
                yield np.arange(at, min(at + CHUNK, last))
    finally:
        pool.close()
