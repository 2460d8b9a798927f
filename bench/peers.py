"""The peers, written as their users write them."""

import io
from collections.abc import Callable, Sequence
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
from PIL import Image
from torch import Tensor, nn

from shards.console import RunFailed
from shards.preprocess import MEAN, STD
from train.augment import EIGHT

_OPENCV_OPTIONS = {
    "jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
}


def img2dataset_shards(
    paths: Sequence[Path],
    out: Path,
    encoder: str,
    shorter_side: int,
    workers: int,
    context: BaseContext,
) -> int:
    """As img2dataset does it: each process decodes and resizes with OpenCV (or with Pillow) and
    writes a tar of its own with webdataset. encoder: one of ENCODERS. Returns the number."""
    write = partial(_write_shard, out, encoder, shorter_side)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        shares = [paths[worker::workers] for worker in range(workers)]
        return sum(pool.map(write, range(workers), shares))


def _write_shard(
    out: Path, encoder: str, shorter_side: int, worker: int, paths: Sequence[Path]
) -> int:
    cv2.setNumThreads(1)  # img2dataset does the same: the processes are the parallelism
    pattern = str(out / f"{worker:03d}-").replace("%", "%%") + "%06d.tar"
    with webdataset.ShardWriter(pattern, verbose=0) as writer:
        for path in paths:
            extension, encoded = ENCODERS[encoder](path.read_bytes(), shorter_side)
            meta = {"key": path.stem, "shorter_side": shorter_side}
            writer.write({"__key__": path.stem, extension: encoded, "json": meta})
    return len(paths)


def _opencv(extension: str, data: bytes, shorter_side: int) -> tuple[str, bytes]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise RunFailed("OpenCV does not decode one of the images")
    size = _reduced((image.shape[1], image.shape[0]), shorter_side)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return extension, cv2.imencode(f".{extension}", small, _OPENCV_OPTIONS[extension])[1].tobytes()


def _pillow(data: bytes, shorter_side: int) -> tuple[str, bytes]:
    image = Image.open(io.BytesIO(data)).convert("L")
    small = image.resize(_reduced(image.size, shorter_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95)
    return "jpg", buffer.getvalue()


def _reduced(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    scale = min(1.0, shorter_side / min(size))
    return round(size[0] * scale), round(size[1] * scale)


ENCODERS: dict[str, Callable[[bytes, int], tuple[str, bytes]]] = {
    "OpenCV to JPEG": partial(_opencv, "jpg"),
    "OpenCV to PNG": partial(_opencv, "png"),
    "Pillow to JPEG": _pillow,
}


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


def timm_epoch(
    model: nn.Module, optim: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """As timm's train.py with --amp --amp-dtype bfloat16 --channels-last; returns the mean loss."""
    loss_function = nn.BCEWithLogitsLoss()
    total = 0.0
    for images, labels in batches:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            loss = loss_function(
                model(images.contiguous(memory_format=torch.channels_last)), labels
            )
        optim.zero_grad()
        loss.backward()
        optim.step()
        total += loss.item()
    return total / len(batches)


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
