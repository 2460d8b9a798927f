"""The input backends behind one call, and the order in which a split is decoded at first."""

from collections import deque
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

CHUNK = 32  # images that are handed on at once; a GPU decodes them as one batch
_DECODERS = 8  # threads that decode what one thread checks: 750 and 12,000 images/s


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


def checked_chunks(
    reader: SplitReader, start: int, stop: int, threads: int
) -> Iterator[np.ndarray]:
    """The positions from start to stop in order, those of a shard once it is checked; the next
    shards are checked meanwhile, so their bytes come from the disk once. threads: that decode."""
    ahead = 1 + threads // _DECODERS
    pool = Threads(ahead, "scan")
    shards = reader.shards_of(start, stop)
    jobs = deque(pool.submit(partial(reader.scan, number)) for number in shards[:ahead])
    try:
        for place, number in enumerate(shards):
            jobs.popleft().result()
            if place + ahead < len(shards):
                jobs.append(pool.submit(partial(reader.scan, shards[place + ahead])))
            first = max(start, int(reader.starts[number]))
            last = min(stop, int(reader.starts[number + 1]))
            for at in range(first, last, CHUNK):
                yield np.arange(at, min(at + CHUNK, last))
    finally:
        pool.close()
