"""Shards -> resized uint8 images by DALI: on a GPU (nvJPEG, nvJPEG 2000) or, without one, a CPU.

DALI's webdataset reader walks the shards in order through their indexes; what one epoch would pad
is cut off again. One bad image ends a DALI pipeline, so shards hold none: ingest decoded them all.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from shards.console import RunFailed
from train.store import Decoder

BATCH = 64


def decoder_for(device: torch.device) -> Decoder:
    """A decoder that leaves its images on `device`."""
    return partial(_decode_shards, device)


@pipeline_def(batch_size=BATCH, prefetch_queue_depth=2)
def _pipeline(shards: list[str], indexes: list[str], extension: str, size: int, gpu: bool) -> Any:
    data = fn.readers.webdataset(paths=shards, index_paths=indexes, ext=[extension], name="shards")
    encoded = data[0] if isinstance(data, (list, tuple)) else data
    # GRAY, never ANY_DATA: a grey JPEG decoded with ANY_DATA crashes the process.
    image = fn.decoders.image(
        encoded, device="mixed" if gpu else "cpu", output_type=types.DALIImageType.GRAY
    )
    return fn.resize(
        image, size=[size, size], interp_type=types.DALIInterpType.INTERP_LINEAR, antialias=True
    )


def _decode_shards(
    device: torch.device,
    shards: list[Path],
    counts: list[int],
    extension: str,
    size: int,
    threads: int,
) -> Iterator[Tensor]:
    gpu = device.type == "cuda"
    pipeline = _pipeline(
        [str(path) for path in shards],
        [str(path.with_suffix(".idx")) for path in shards],
        extension,
        size,
        gpu,
        num_threads=threads,
        device_id=device.index or 0 if gpu else None,
    )
    left = sum(counts)
    try:
        pipeline.build()
        while left > 0:
            (batch,) = pipeline.run()
            images = _to_torch(batch, device)[: min(BATCH, left), :, :, 0]
            left -= len(images)
            yield images
    except RuntimeError as error:
        raise RunFailed(f"DALI: {str(error).splitlines()[0]}") from error


def _to_torch(batch: Any, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.from_numpy(batch.as_array().copy())
    dense = batch.as_tensor()
    images = torch.empty(dense.shape(), dtype=torch.uint8, device=device)
    feed_ndarray(dense, images, cuda_stream=torch.cuda.current_stream(device))
    return images
