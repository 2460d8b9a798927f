"""The peers, written as their users write them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path

import cv2
import kornia.enhance
import kornia.geometry.transform as kornia_transform
import numpy as np
import torch
import webdataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from shards.console import RunFailed
from shards.preprocess import MEAN, STD
from train.augment import EIGHT

# Ours -> what OpenCV writes beside it, at the same quality: it has no HTJ2K.
OPENCV_ENCODINGS: dict[str, tuple[str, list[int]]] = {
    "jpeg": ("jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
    "htj2k": ("png", [cv2.IMWRITE_PNG_COMPRESSION, 1]),
}


def img2dataset_shards(
    paths: Sequence[Path],
    out: Path,
    encoding: str,
    shorter_side: int,
    workers: int,
    context: BaseContext,
) -> int:
    """As img2dataset does it: each process decodes and resizes with OpenCV and writes a tar of its
    own with webdataset. Returns the number of images."""
    write = partial(_write_shard, out, encoding, shorter_side)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        shares = [paths[worker::workers] for worker in range(workers)]
        return sum(pool.map(write, range(workers), shares))


def _write_shard(
    out: Path, encoding: str, shorter_side: int, worker: int, paths: Sequence[Path]
) -> int:
    cv2.setNumThreads(1)  # img2dataset does the same: the processes are the parallelism
    extension, options = OPENCV_ENCODINGS[encoding]
    pattern = str(out / f"{worker:03d}-").replace("%", "%%") + "%06d.tar"
    with webdataset.ShardWriter(pattern, verbose=0) as writer:
        for path in paths:
            data = np.frombuffer(path.read_bytes(), np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
            if image is None:
                raise RunFailed(f"OpenCV does not decode {path.name}")
            small = _resize_shorter(image, shorter_side)
            encoded = cv2.imencode(f".{extension}", small, options)[1].tobytes()
            meta = {"key": path.stem, "original_width": image.shape[1]}
            writer.write({"__key__": path.stem, extension: encoded, "json": meta})
    return len(paths)


def _resize_shorter(image: np.ndarray, shorter_side: int) -> np.ndarray:
    scale = shorter_side / min(image.shape)
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class _ImageFiles(Dataset[Tensor]):
    """ImageFolder without the folders: Pillow decodes to RGB, then Resize, ToTensor, Normalize."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        tensor: Tensor = self.transform(default_loader(self.paths[index]))
        return tensor


class TorchvisionLoader:
    """A DataLoader over the raw files, whose workers live on from epoch to epoch.

    Make it before anything starts threads: its workers are forks of this process, as they are by
    default.
    """

    def __init__(self, paths: Sequence[Path], size: int, workers: int, batch: int = 16) -> None:
        self.loader = DataLoader(
            _ImageFiles(paths, size),
            batch_size=batch,
            num_workers=workers,
            persistent_workers=True,
        )
        for _ in self.loader:
            pass  # the workers start with the first epoch

    def epoch(self, device: torch.device) -> Iterator[Tensor]:
        """Batches (n, 3, S, S) float32, normalised, on the device."""
        for batch in self.loader:
            yield batch.to(device)


def kornia_copies(images: Tensor) -> Tensor:
    """The 8 copies of (N, 1, S, S) float images in 0..1 -> (8 N, 3, S, S), normalised: rotated,
    then translated, then mirrored, with one interpolation for each of the first two."""
    reach = torch.tensor([EIGHT.max_dx_px, EIGHT.max_dy_px], device=images.device)
    angles = _symmetric(len(images), 1, images.device)[:, 0] * EIGHT.max_rotation_deg
    turned = torch.cat([images, kornia_transform.rotate(images, angles)])
    shifts = _symmetric(len(turned), 2, images.device) * reach * (images.shape[-1] / 224)
    moved = torch.cat([turned, kornia_transform.translate(turned, shifts)])
    copies = torch.cat([moved, kornia_transform.hflip(moved)])
    mean, std = (torch.tensor(values, device=images.device) for values in (MEAN, STD))
    normalised: Tensor = kornia.enhance.normalize(copies.expand(-1, 3, -1, -1), mean, std)
    return normalised


def _symmetric(rows: int, columns: int, device: torch.device) -> Tensor:
    return torch.rand(rows, columns, device=device) * 2 - 1


def plain_epoch(
    model: nn.Module, optim: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """torchvision users' training loop in fp32; returns the mean loss."""
    loss_function = nn.BCEWithLogitsLoss()
    total = 0.0
    for images, labels in batches:
        optim.zero_grad()
        loss = loss_function(model(images), labels)
        loss.backward()
        optim.step()
        total += loss.item()
    return total / len(batches)
