"""Peers of the first epoch: loaders with processes of their own, as their users set them up.

Make them before anything starts threads: their workers are forks of this process, by default.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from shards.manifest import load_manifest
from shards.preprocess import MEAN, STD

_BATCH = 16
_NIH_COLUMNS = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
)


class Epochs(Protocol):
    """A peer that is ready to go through all images once, again and again."""

    def epoch(self, device: torch.device) -> Iterator[Tensor]: ...


class Loader:
    """A DataLoader whose workers live on from epoch to epoch."""

    def __init__(self, data: Any, workers: int, batch: int | None = _BATCH, **more: Any) -> None:
        self.loader: Any = DataLoader(
            data, batch_size=batch, num_workers=workers, persistent_workers=True, **more
        )
        for _ in self.loader:
            pass  # the workers start with the first epoch

    def epoch(self, device: torch.device) -> Iterator[Tensor]:
        """All images as normalised batches (n, 3, S, S) float32 on the device."""
        for batch in self.loader:
            yield batch.to(device)


def _transform(size: int) -> Callable[[Image.Image], Tensor]:
    return transforms.Compose(
        [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )


class _ImageFiles(Dataset[Tensor]):
    """ImageFolder without the folders: Pillow decodes to RGB, then Resize, ToTensor, Normalize."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.transform = paths, _transform(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(default_loader(self.paths[index]))


def torchvision_loader(paths: Sequence[Path], size: int, workers: int) -> Loader:
    """torchvision's users' DataLoader over the raw files."""
    return Loader(_ImageFiles(paths, size), workers)


def xrayvision_loader(paths: Sequence[Path], folder: Path, size: int, workers: int) -> Loader:
    """torchxrayvision's NIH data set over the raw files. ImportError where it is not installed."""
    import torchxrayvision

    table = folder / "Data_Entry.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_NIH_COLUMNS.split(","))
        for number, path in enumerate(paths):
            rows.writerow([path.name, "No Finding", 0, number, 50, "F", "PA"])
    resize = transforms.Compose(
        [
            torchxrayvision.datasets.XRayCenterCrop(),
            torchxrayvision.datasets.XRayResizer(size),
        ]
    )
    data = torchxrayvision.datasets.NIH_Dataset(str(paths[0].parent), str(table), transform=resize)
    return Loader(data, workers, collate_fn=_images_only)


def _images_only(samples: Sequence[dict[str, Any]]) -> Tensor:
    return torch.from_numpy(np.stack([sample["img"] for sample in samples]))


def webdataset_loader(shards: Sequence[Path], size: int, workers: int) -> Loader:
    """webdataset's pipeline over JPEG shards: Pillow decodes, WebLoader batches."""
    data = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    data = data.decode("pilrgb").to_tuple("jpg").map_tuple(_transform(size))
    return Loader(data.batched(_BATCH).map(_first), min(workers, len(shards)), batch=None)


def _first(batch: Sequence[Tensor]) -> Tensor:
    return batch[0]


def write_streaming(images: Iterator[bytes], out: Path) -> None:
    """JPEG bytes -> MosaicML's MDS shards. ImportError where streaming is not installed."""
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"image": "bytes"}) as writer:
        for image in images:
            writer.write({"image": image})


def streaming_loader(folder: Path, size: int, workers: int) -> Loader:
    """MosaicML Streaming over local MDS shards of JPEG bytes, decoded with Pillow."""
    from streaming import StreamingDataset

    transform = _transform(size)

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return _decoded(transform, super().__getitem__(index))

    return Loader(Images(local=str(folder), shuffle=False, batch_size=_BATCH), workers)


def _decoded(transform: Callable[[Image.Image], Tensor], sample: dict[str, bytes]) -> Tensor:
    return transform(Image.open(io.BytesIO(sample["image"])).convert("RGB"))


def tried(name: str, make: Callable[[], Epochs]) -> dict[str, Epochs]:
    """{name: loader}, or nothing, said aloud, where the peer is not installed."""
    try:
        return {name: make()}
    except ImportError as error:
        print(f"without {name}: {error}; `make peers` installs the peers")
        return {}


def raw_loaders(paths: Sequence[Path], work: Path, size: int, workers: int) -> dict[str, Epochs]:
    """The peers that read the raw files, by name."""
    loaders: dict[str, Epochs] = {"torchvision": torchvision_loader(paths, size, workers)}
    make = partial(xrayvision_loader, paths, work, size, workers)
    return loaders | tried("torchxrayvision's data set, from the raw files", make)


def jpeg_loaders(shards: Sequence[Path], work: Path, size: int, workers: int) -> dict[str, Epochs]:
    """The peers that read the same pixels as JPEG, by name. shards: WebDataset tars."""

    def streaming() -> Loader:
        data = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
        write_streaming((sample["jpg"] for sample in data), work / "mds")
        return streaming_loader(work / "mds", size, workers)

    name = "webdataset, from the same pixels as JPEG"
    loaders: dict[str, Epochs] = {name: webdataset_loader(shards, size, workers)}
    return loaders | tried("MosaicML Streaming, from the same pixels as JPEG", streaming)


def dali_loaders(
    sets: Mapping[str, Path], size: int, threads: int, device: torch.device
) -> dict[str, Epochs]:
    """DALI's own pipeline over data sets of ours, by the names given."""

    def make(folder: Path) -> Epochs:
        from bench.dali_loader import DaliLoader

        extension = load_manifest(folder).image_extension
        return DaliLoader(sorted(folder.glob("train/*.tar")), extension, size, threads, device)

    found: dict[str, Epochs] = {}
    for name, folder in sets.items():
        found |= tried(name, partial(make, folder))
    return found
