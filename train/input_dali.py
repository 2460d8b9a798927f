"""Shards -> resized uint8 images by DALI: on a GPU (nvJPEG, nvJPEG 2000) or, without one, a CPU.

DALI gets the bytes of each image, checked, in our order; so it decodes any part of a split, and a
damaged shard is named by us. One bad image ends a DALI pipeline, so shards hold none: ingest
decoded them all. The resize is torch's: DALI's is up to 13 grey levels off at sharp edges.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from shards.console import RunFailed
from shards.split_reader import SplitReader
from train.decoding import CHUNK, Decoder
from train.input_torch import resize_into

_TOGETHER = 16  # images resized at once: 16 of 2,500 x 2,000 take 320 MB as float32


def decoder_for(device: torch.device) -> Decoder:
    """A decoder that leaves its images on `device`."""
    return partial(_decode_images, device)


@pipeline_def(batch_size=CHUNK, prefetch_queue_depth=2)
def _pipeline(encoded: Iterator[list[np.ndarray]], gpu: bool) -> Any:
    data = fn.external_source(source=encoded, dtype=types.DALIDataType.UINT8, ndim=1, batch=True)
    # GRAY, never ANY_DATA: a grey JPEG decoded with ANY_DATA crashes the process.
    return fn.decoders.image(
        data, device="mixed" if gpu else "cpu", output_type=types.DALIImageType.GRAY
    )


def _decode_images(
    device: torch.device,
    reader: SplitReader,
    chunks: Iterable[np.ndarray],
    size: int,
    threads: int,
) -> Iterator[Tensor]:
    """For each chunk of at most CHUNK positions its images (n, S, S) uint8, in order."""
    number = device.index or 0 if device.type == "cuda" else None
    if number is not None:
        # A thread of its own (train/ahead.py) begins with GPU 0, and would make a context there.
        torch.cuda.set_device(number)
    pipeline = _pipeline(
        _encoded(reader, chunks), number is not None, num_threads=threads, device_id=number
    )
    try:
        pipeline.build()
        while True:
            try:
                (batch,) = pipeline.run()
            except StopIteration:
                return
            yield _on_cpu(batch, size) if number is None else _on_gpu(batch, size, device)
    except RuntimeError as error:
        raise RunFailed(f"DALI: {str(error).splitlines()[0]}") from error


def _encoded(reader: SplitReader, chunks: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    for chunk in chunks:
        yield [np.frombuffer(reader.read(position), np.uint8) for position in chunk.tolist()]


def _on_cpu(batch: Any, size: int) -> Tensor:
    out = np.empty((len(batch), size, size), np.uint8)
    resize_into(out, (np.array(batch.at(i))[:, :, 0] for i in range(len(batch))))
    return torch.from_numpy(out)


def _on_gpu(batch: Any, size: int, device: torch.device) -> Tensor:
    return resize_together([_image(batch[i], device) for i in range(len(batch))], size)


def resize_together(images: list[Tensor], size: int) -> Tensor:
    """(H, W) uint8 each -> (n, S, S), on their device; neighbours of one shape at once."""
    groups = (list(group) for _, group in groupby(images, key=lambda image: image.shape))
    parts = [
        torch.stack(group[at : at + _TOGETHER])
        for group in groups
        for at in range(0, len(group), _TOGETHER)
    ]
    return torch.cat([_resize(part, size) for part in parts])


def _image(decoded: Any, device: torch.device) -> Tensor:
    image = torch.empty(decoded.shape(), dtype=torch.uint8, device=device)
    feed_ndarray(decoded, image, cuda_stream=torch.cuda.current_stream(device))
    return image[:, :, 0]


def _resize(images: Tensor, size: int) -> Tensor:
    """(n, H, W) uint8 -> (n, S, S) uint8: step 3 of the preprocessing contract."""
    resized = torch.nn.functional.interpolate(
        images[:, None].float(), size=(size, size), mode="bilinear", antialias=True
    )
    return resized[:, 0].round().clamp(0, 255).byte()
