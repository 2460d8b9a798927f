"""What the question `score` measures: the model alone, decoding alone, and the whole way."""

import copy
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from bench.images import fresh_folders
from bench.loaders import Loader
from bench.machine import synchronise
from bench.memory import peak_mb
from bench.result import Side
from serve.archives import Archive
from serve.decode import DecodePool, Task
from serve.network import Network, open_sessions
from serve.providers import GpuOptions, Provider, probabilities
from serve.score import ScoreConfig, score
from serve.units import archive_chunks
from shards.console import RunFailed
from shards.preprocess import MEAN, STD
from train.warp import normalise

_GRAPH = GpuOptions(graph=True)


@dataclass(frozen=True)
class Settings:
    """Of every side. shorter_side, size: of the preparation."""

    batch: int
    workers: int
    shorter_side: int
    size: int
    device: torch.device


def ours_alone(
    path: Path,
    images: np.ndarray,
    settings: Settings,
    provider: Provider = "auto",
    gpu: GpuOptions = _GRAPH,
) -> Side:
    """As serve score runs it: batches of its own size, on the CPU as many at a time as there are
    threads, and without CUDA graphs where they do not run. images: (N, 1, S, S) uint8, prepared."""
    network = Network(open_sessions(path, provider, gpu), str(path), threads=settings.workers)
    try:
        network.try_out()
    except RunFailed as error:
        if not gpu.graph or network.provider == "cpu":
            raise
        print(f"{path.name} without CUDA graphs: {error}")
        return ours_alone(path, images, settings, provider, replace(gpu, graph=False))
    parts = [list(part[:, 0]) for part in _parts(images, network.batch)]

    def run() -> int:
        batches = [network.submit(part) for part in parts]
        return sum(len(batch.result()) for batch in batches)

    return run


def numpy_batches(path: Path, images: np.ndarray, settings: Settings) -> Side:
    """ONNX Runtime as people call it: its defaults, a new array in and out, batch by batch."""
    gpu = ["CUDAExecutionProvider"] if settings.device.type == "cuda" else []
    session = onnxruntime.InferenceSession(str(path), providers=[*gpu, "CPUExecutionProvider"])
    return lambda: sum(len(probabilities(session, part)) for part in _parts(images, settings.batch))


def torch_alone(
    plain: nn.Module, images: np.ndarray, settings: Settings, *, bf16: bool = False
) -> Side:
    """Eager mode in fp32 as people write it; bf16: channels_last and autocast."""
    # A copy: channels_last would change the memory of the other sides' network, too.
    network = copy.deepcopy(plain).to(settings.device).eval()
    half: AbstractContextManager[Any] = nullcontext()
    if bf16:
        network = network.to(memory_format=torch.channels_last)
        half = torch.autocast(settings.device.type, dtype=torch.bfloat16)

    def work() -> int:
        rows = 0
        with torch.inference_mode(), half:
            for part in torch.from_numpy(images).split(settings.batch):
                inputs = normalise(part[:, 0].to(settings.device))  # channels_last
                logits = network(inputs if bf16 else inputs.contiguous())
                rows += len(torch.sigmoid(logits.float()).cpu().numpy())
        return rows

    return work


def _parts(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    return (images[start : start + batch] for start in range(0, len(images), batch))


def write_tar(path: Path, images: Sequence[Path], times: int) -> Path:
    """Each image `times` times, under different names."""
    with tarfile.open(path, "w") as tar:
        for turn in range(times):
            for image in images:
                tar.add(image, f"{turn}-{image.name}")
    return path


def whole_way(
    model: Path, archive: Path, work: Path, settings: Settings, provider: Provider = "auto"
) -> Side:
    """`python -m serve score` in this process, with the start of its own processes; on one GPU and
    in as many sessions there as the model alone has."""
    folders = fresh_folders(work)
    asked = ScoreConfig(model, work, (archive,), provider, workers=settings.workers)
    if settings.device.type == "cuda" and provider != "cpu":
        asked = replace(asked, gpus=1)
    else:
        asked = replace(asked, threads=settings.workers)

    def run() -> int:
        summary: Any = score(replace(asked, out=next(folders)))
        if summary.errors:
            raise RunFailed(f"{summary.errors} of {summary.rows} images were not scored")
        return int(summary.rows)

    return run


def decoding_alone(archive: Path, settings: Settings) -> Side:
    """The same tar and workers, without a network."""

    def run() -> int:
        chunks = archive_chunks(Archive(archive, "tar"), lambda unit: False, None, in_place=True)
        tasks = (Task(None, chunk.images()) for chunk in chunks)
        with DecodePool(settings.workers, settings.shorter_side, settings.size) as pool:
            return sum(len(found.errors) for _, found in pool.run(tasks))

    return run


def data_loader(loader: Loader, plain: nn.Module, settings: Settings) -> Side:
    """torchvision users' DataLoader over the raw files, its workers running, torch eager."""

    def run() -> int:
        rows = 0
        with torch.inference_mode():
            for batch in loader.epoch(settings.device):
                rows += len(torch.sigmoid(plain(batch)).cpu())
        synchronise(settings.device)
        return rows

    return run


def process_batch(paths: Sequence[Path], plain: nn.Module, settings: Settings) -> Side:
    """As torchxrayvision's scripts/process_batch.py: its load_image, one image after the other, and
    the resize that its networks begin with, torch eager; with our network. It leaves out what is
    not square; here its crop stands before. ImportError where it is not installed."""
    import torchxrayvision as xrv

    crop = xrv.datasets.XRayCenterCrop()
    mean, std = (torch.tensor(v, device=settings.device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def run() -> int:
        rows = []
        for path in paths:
            with torch.no_grad():
                image = torch.from_numpy(crop(xrv.utils.load_image(str(path)))).unsqueeze(0)
                image = xrv.utils.fix_resolution(image.to(settings.device), settings.size, plain)
                unit = (image + 1024) / 2048  # our network was trained on another range
                output = torch.sigmoid(plain((unit - mean) / std)).cpu()
            rows.append(output.detach().numpy()[0])
        return len(rows)

    return run


def growth(
    model: Path, images: Sequence[Path], work: Path, settings: Settings, each: Sequence[int]
) -> list[dict[str, float]]:
    """So many times the archive: seconds and memory of the command and its processes."""
    found = []
    folders = fresh_folders(work / "growth")
    for times in each:
        archive = write_tar(work / f"{times}.tar", images, times)
        arguments = ["score", "--model", model, "--out", next(folders), archive]
        arguments += ["--workers", settings.workers]
        if settings.device.type == "cpu":  # on a GPU they are sessions, of which two are enough
            arguments += ["--threads", settings.workers]
        began = time.perf_counter()
        memory = peak_mb("serve", [str(argument) for argument in arguments])
        seconds = time.perf_counter() - began
        count = len(images) * times
        found.append({"images": count, "s": round(seconds, 2), "peak_mb": round(memory)})
        archive.unlink()
    return found
