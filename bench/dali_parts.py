"""Decode and resize as DALI's backend of the input does them, for `doctor`. Only for those who have
nvidia.dali."""

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.clock import Clock, Part
from shards.split_reader import SplitReader
from train.decoding import CHUNK, Decoder

_CEILING = "one image again and again, in the cache"


class _Same:
    """Stands for a reader whose images are all the first one."""

    def __init__(self, reader: SplitReader) -> None:
        self.data = reader.read(0)

    def read(self, position: int) -> bytes:
        return self.data


def dali_parts(
    decode: Decoder,
    reader: SplitReader,
    images: list[np.ndarray],
    size: int,
    threads: int,
    device: torch.device,
    clock: Clock,
) -> list[Part]:
    """images: those of the reader, decoded (H, W). The backend does both in one, so that decoding
    is what it takes without the resize."""
    from train.input_dali import resize_together

    count = len(reader)
    starts = range(0, count, CHUNK)
    there = [torch.from_numpy(image).to(device) for image in images]

    def both(source: Any) -> None:
        chunks = (np.arange(at, min(at + CHUNK, count)) for at in starts)
        deque(decode(source, chunks, size, threads), maxlen=0)

    def resize(given: list[torch.Tensor]) -> None:
        for at in starts:
            resize_together(given[at : at + CHUNK], size)

    same = _Same(reader)
    whole = clock.part("decode", lambda: both(reader), lambda: both(same), count, _CEILING, device)
    resized = clock.part(
        "resize", lambda: resize(there), lambda: resize(there[:1] * count), count, _CEILING, device
    )
    decoded = replace(
        whole,
        ms=max(0.0, whole.ms - resized.ms),
        ceiling_ms=max(0.0, whole.ceiling_ms - resized.ceiling_ms),
    )
    return [decoded, resized]
