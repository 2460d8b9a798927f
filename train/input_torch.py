"""Shards -> resized uint8 images by threads of this process (imagecodecs, kornia-rs, torch).

All of these release the interpreter's lock, so threads scale; nothing here needs a GPU or DALI.
One core's time for an HTJ2K image of 512 x 512 -> 224: read and check 0.06 ms, decode 0.83 ms,
resize 0.12 ms (Pillow: 0.42 ms).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from shards.codec import BadImage, decode_grey
from shards.console import RunFailed
from shards.split_reader import SplitReader
from train.ahead import Threads

_TOGETHER = 4  # channels of the fast path of torch's resize


def decode_images(
    reader: SplitReader, chunks: Iterable[np.ndarray], size: int, threads: int
) -> Iterator[Tensor]:
    """For each chunk of positions (n,) its images (n, S, S) uint8, in order."""
    pool = Threads(threads, "decode")
    pending: deque[Future[Tensor]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(partial(_decode_chunk, reader, chunk, size)))
            if len(pending) > threads + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.close()


def _decode_chunk(reader: SplitReader, positions: np.ndarray, size: int) -> Tensor:
    return resize_all((_decode(reader, i) for i in positions.tolist()), len(positions), size)


def _decode(reader: SplitReader, position: int) -> np.ndarray:
    data = reader.read(position)
    try:
        return decode_grey(data)
    except BadImage as error:
        raise RunFailed(
            f"{reader.folder}: image {reader.keys[position]} {error}; ingest again"
        ) from error


def resize_all(images: Iterable[np.ndarray], count: int, size: int) -> Tensor:
    """`count` images (H, W) uint8 -> (count, S, S); holds four of them at a time."""
    out = np.empty((count, size, size), np.uint8)
    group: list[np.ndarray] = []
    for row, image in enumerate(images):
        if group and (len(group) == _TOGETHER or image.shape != group[0].shape):
            out[row - len(group) : row] = resize_group(group, size)
            group = []
        group.append(image)
    if group:
        out[count - len(group) :] = resize_group(group, size)
    return torch.from_numpy(out)


def resize_group(images: list[np.ndarray], size: int) -> np.ndarray:
    """1 to 4 images (H, W) uint8 of one shape -> (n, S, S): step 3 of the preprocessing contract.

    torch resizes four channels of bytes at the cost of one (AVX2), so four images go as one. An
    image's pixels do not depend on its neighbours; they are Pillow's, or, where its weights do not
    fit into 16 bits, at most 2 grey levels beside them, one for each of the two passes (no pixel of
    512 x 512 -> 224, 0.2 % of 700 x 512 -> 320).
    """
    four = [*images, *[images[-1]] * (_TOGETHER - len(images))]
    stacked = torch.from_numpy(cv2.merge(four)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        stacked, size=(size, size), mode="bilinear", antialias=True
    )
    return resized[0, : len(images)].numpy()
