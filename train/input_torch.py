"""Shards -> resized uint8 images by threads of this process (imagecodecs, kornia-rs, torch).

All of these release the interpreter's lock, so threads scale; nothing here needs a GPU or DALI.
One core's time for an HTJ2K image of 512 x 512 -> 224: read and check 0.06 ms, decode 0.83 ms,
resize 0.07 ms (Pillow: 0.42 ms).
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

_TASK = 8  # images: 8 ms hide a task's cost, 50 us; the fewer, the shorter threads wait at the end
_TOGETHER = 4  # channels of the fast path of torch's resize


def decode_images(
    reader: SplitReader, chunks: Iterable[np.ndarray], size: int, threads: int
) -> Iterator[Tensor]:
    """For each chunk of positions (n,) its images (n, S, S) uint8, in order."""
    cv2.setNumThreads(1)  # its own threads would wait in a loop for each other, beside these
    pool = Threads(threads, "decode")
    pending: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
    try:
        for chunk in chunks:
            out = np.empty((len(chunk), size, size), np.uint8)
            parts = [slice(at, at + _TASK) for at in range(0, len(chunk), _TASK)]
            work = (partial(_decode_into, out[part], reader, chunk[part]) for part in parts)
            pending.append((out, [pool.submit(job) for job in work]))
            if len(pending) > threads + 1:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        pool.close()


def _finished(out: np.ndarray, jobs: list[Future[None]]) -> Tensor:
    for job in jobs:
        job.result()
    return torch.from_numpy(out)


def _decode_into(out: np.ndarray, reader: SplitReader, positions: np.ndarray) -> None:
    resize_into(out, (_decode(reader, i) for i in positions.tolist()))


def _decode(reader: SplitReader, position: int) -> np.ndarray:
    data = reader.read(position)
    try:
        return decode_grey(data)
    except BadImage as error:
        raise RunFailed(
            f"{reader.folder}: image {reader.keys[position]} {error}; ingest again"
        ) from error


def resize_into(out: np.ndarray, images: Iterable[np.ndarray]) -> None:
    """As many images (H, W) uint8 as out (n, S, S) uint8 has room for; holds four at a time."""
    group: list[np.ndarray] = []
    row = 0
    for image in images:
        if group and (len(group) == _TOGETHER or image.shape != group[0].shape):
            out[row : row + len(group)] = resize_group(group, out.shape[1])
            row, group = row + len(group), []
        group.append(image)
    if group:
        out[row:] = resize_group(group, out.shape[1])


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
