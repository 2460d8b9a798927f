"""Shards -> resized uint8 images by threads of this process (imagecodecs, kornia-rs, Pillow).

All of these release the interpreter's lock, so threads scale; nothing here needs a GPU or DALI.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shards.codec import BadImage, decode_grey
from shards.console import RunFailed
from shards.index import Component
from shards.preprocess import resize
from shards.reader import read_component, read_index

CHUNK = 64  # images a task decodes: long enough to hide the task's cost, short enough to share out


def decode_shards(
    shards: list[Path], counts: list[int], extension: str, size: int, threads: int
) -> Iterator[Tensor]:
    """Chunks (n, S, S) uint8 in the shards' order; extension: "jph", or several, "jpg;png"."""
    extensions = extension.split(";")
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[np.ndarray]] = deque()
        for path in shards:
            index = read_index(path)
            images = [next(c for c in s if c.extension in extensions) for s in index]
            for start in range(0, len(images), CHUNK):
                part = images[start : start + CHUNK]
                pending.append(pool.submit(_decode_chunk, path, part, size))
                if len(pending) > 2 * threads:
                    yield torch.from_numpy(pending.popleft().result())
        while pending:
            yield torch.from_numpy(pending.popleft().result())


def _decode_chunk(path: Path, components: list[Component], size: int) -> np.ndarray:
    out = np.empty((len(components), size, size), np.uint8)
    with path.open("rb") as file:
        for row, component in zip(out, components):
            try:
                row[:] = resize(decode_grey(read_component(file.fileno(), component, path)), size)
            except BadImage as error:
                raise RunFailed(f"{path}: {component.name} {error}") from error
    return out
