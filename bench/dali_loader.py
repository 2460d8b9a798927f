"""DALI as its users set it up: its own reader, decoder, resize and normalise. A peer of the first
epoch. Only for those who have nvidia.dali."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from torch import Tensor

from shards.preprocess import MEAN, STD

_BATCH = 16


class DaliLoader:
    """A pipeline over WebDataset shards that lives on from epoch to epoch. It prefetches, so two
    batches of an epoch are done before its time is taken."""

    def __init__(
        self, shards: Sequence[Path], extension: str, size: int, threads: int, device: torch.device
    ) -> None:
        """shards: with DALI's indexes (.idx) beside them; extension: of the images in them."""
        gpu = device.type == "cuda"
        pipeline = _pipeline(
            shards,
            extension,
            size,
            gpu,
            batch_size=_BATCH,
            num_threads=threads,
            device_id=(device.index or 0) if gpu else None,
        )
        self.batches: Any = DALIGenericIterator(
            pipeline,
            ["images"],
            reader_name="reader",
            last_batch_policy=LastBatchPolicy.PARTIAL,
            auto_reset=True,
        )
        for _ in self.batches:
            pass  # as the others, whose workers start with the first epoch

    def epoch(self, device: torch.device) -> Iterator[Tensor]:
        """All images as normalised batches (n, 3, S, S) float32 on the device."""
        for (batch,) in self.batches:
            yield batch["images"].to(device)


@pipeline_def
def _pipeline(shards: Sequence[Path], extension: str, size: int, gpu: bool) -> Any:
    encoded = fn.readers.webdataset(
        paths=[str(path) for path in shards],
        index_paths=[str(path.with_suffix(".idx")) for path in shards],
        ext=[extension],
        name="reader",
    )
    images = fn.decoders.image(
        encoded, device="mixed" if gpu else "cpu", output_type=types.DALIImageType.RGB
    )
    resized = fn.resize(images, size=(size, size))
    return fn.crop_mirror_normalize(
        resized,
        dtype=types.DALIDataType.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
    )
