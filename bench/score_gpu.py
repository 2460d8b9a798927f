"""What the question `score` measures on a GPU besides: half precision in ONNX Runtime, TensorRT and
compiled torch; from HTJ2K shards to scores; energy."""

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from torch import nn

from bench.config import BenchConfig
from bench.images import RawImages, ingest_raw
from bench.result import Rates, Side, interleave
from bench.score_sides import Settings, ours_alone, whole_way
from serve.providers import GpuOptions, Provider
from serve.quantise import to_fp16
from shards.console import RunFailed, UserError, one_line
from train.warp import normalise

SHARD_IMAGES = 20_000  # of a repetition from shards, that the start of processes is a small part
_SECONDS = 5.0  # that energy is measured over: NVML counts it a few times a second


class _Energy(Protocol):
    def energy_j(self) -> float | None: ...


def write_fp16(fp32: Path) -> Path:
    """The same network in half precision, beside it."""
    path = fp32.with_name("fp16.onnx")
    onnx.save(to_fp16(onnx.load(fp32)), path)
    return path


def half_sides(
    fp32: Path,
    fp16: Path,
    plain: nn.Module,
    images: np.ndarray,
    settings: Settings,
    provider: Provider = "cuda",
) -> dict[str, Side]:
    """The model alone. images: (N, 1, S, S) uint8, prepared."""
    sides = {"ours, fp16": ours_alone(fp16, images, settings, provider)}
    try:
        half = GpuOptions(fp16=True, engines=fp32.with_name("engines"))
        sides["ours, TensorRT fp16"] = ours_alone(fp32, images, settings, "tensorrt", half)
    except (UserError, RunFailed) as error:  # not there, or it does not take the network
        print(f"without TensorRT: {error}")
    side = compiled(plain, images, settings)
    try:
        side()
    except RuntimeError as error:  # all that torch.compile raises, as where no C compiler is
        print(f"without torch compiled: {one_line(str(error))}")
        return sides
    return sides | {"torch compiled fp16": side}


def compiled(plain: nn.Module, images: np.ndarray, settings: Settings) -> Side:
    """torch as fast as its documentation tells: compiled, fp16, channels_last, pinned memory."""
    half = copy.deepcopy(plain).to(settings.device, torch.float16).eval()
    network = torch.compile(half.to(memory_format=torch.channels_last))
    given = torch.from_numpy(images)
    given = given.pin_memory() if settings.device.type == "cuda" else given

    def run() -> int:
        rows = 0
        with torch.inference_mode():
            for part in given.split(settings.batch):
                inputs = normalise(part[:, 0].to(settings.device, non_blocking=True))
                rows += len(torch.sigmoid(network(inputs.half()).float()).cpu())
        return rows

    return run


def from_shards(
    model: Path, raw: RawImages, config: BenchConfig, work: Path, settings: Settings, most: int
) -> Side:
    """`serve score` of the images as HTJ2K shards, which stand there as often as gives about `most`
    images."""
    (shard,) = (ingest_raw(raw, work / "sets", "htj2k", config) / "train").glob("*.tar")
    folder = work / "shards"
    folder.mkdir()
    for number in range(max(1, most // len(raw))):
        (folder / f"bench-train-{number:06d}.tar").hardlink_to(shard)
    return whole_way(model, folder, work / "scored", settings)


def joules_per_1000(side: Side, monitor: _Energy, clock: Callable[[], float]) -> float | None:
    """Of the whole GPU, for 1,000 images; None where it does not count its energy."""
    before, began, images = monitor.energy_j(), clock(), 0
    while clock() - began < _SECONDS:
        images += side()
    after = monitor.energy_j()
    if before is None or after is None:
        return None
    return round((after - before) / images * 1000, 2)


def measure_gpu(
    sides: Mapping[str, Side],
    alone: Mapping[str, Rates],
    shards: Side,
    monitor: _Energy,
    repeats: int,
) -> dict[str, Any]:
    """The figures for the JSON line. sides, alone: the model alone and its rates, by name."""
    whole = interleave("score, from shards", {"from HTJ2K shards": shards}, repeats)
    rate = whole["from HTJ2K shards"].median
    return {
        "from_htj2k_shards_img_s": round(rate, 1),
        "percent_of_model": round(100 * rate / alone["ours, fp16"].median, 1),
        "joules_per_1000_images": {
            name: joules_per_1000(side, monitor, time.monotonic) for name, side in sides.items()
        },
    }
