"""Scores per second: ONNX Runtime beside torch, and from a tar. Run: python -m bench score"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from bench.config import NetworkBench, settle
from bench.images import RawImages, network_inputs, raw_images
from bench.loaders import torchvision_loader
from bench.networks import build_pair, network_name
from bench.result import Rates, Result, Side, interleave, rounded
from bench.score_gpu import SHARD_IMAGES, from_shards, half_sides, measure_gpu, write_fp16
from bench.score_sides import (
    Settings,
    data_loader,
    decoding_alone,
    growth,
    numpy_batches,
    ours_alone,
    process_batch,
    torch_alone,
    whole_way,
    write_tar,
)
from serve.export import Scorer, to_onnx
from serve.model_info import ModelInfo
from serve.parity import TOLERANCES
from serve.providers import create_session, probabilities, provider_of
from serve.quantise import to_int8
from shards import preprocess
from shards.console import RunFailed
from shards.labels import COVID
from train.monitor import Monitor

_CALIBRATION = 32  # images that set int8's ranges
_BY_HAND = 24  # images of a repetition of the process_batch way, which takes 0.1 s for each
_TIMES = 8  # the tar holds each image so often, that the start of processes is a small part
_GROWTH = (4, 8, 16)  # the same for the archives of 1, 2 and 4 times the size


@dataclass(frozen=True)
class ScoreBench(NetworkBench):
    """How fast a network scores, with random weights on all sides: the model alone in ONNX Runtime
    beside torch; then from a tar of raw images to scores on disk, beside what is in use today; and
    what 1, 2 and 4 times the archive take in time and memory."""

    number: int = 96
    """Use at most this many images."""
    batch: int = 8
    """Images of one pass of the peers; ours takes serve score's own batches."""


def measure(config: ScoreBench) -> Result:
    """RunFailed when ONNX Runtime and torch do not give the same probabilities."""
    config = settle(config)
    torch.set_num_threads(config.workers)
    network = network_name(config.architecture, quick=config.quick)
    model, plain = build_pair(config.architecture, len(COVID), quick=config.quick)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as folder:
        work = Path(folder)
        raw = raw_images(config, work / "raw")
        loader = torchvision_loader(raw.paths, config.size, config.workers)
        images = network_inputs(raw, config, config.size)[:, None]
        fp32, int8 = _models(model, images, config, raw, work)
        session = create_session(fp32, "auto", config.workers)
        device = torch.device("cpu" if provider_of(session) == "cpu" else "cuda")
        _check_parity(session, plain.eval(), images[: config.batch])
        plain = plain.to(device)
        settings = Settings(config.batch, config.workers, config.shorter_side, config.size, device)
        models = _alone(fp32, int8, plain, images, settings)
        if device.type == "cuda":
            fp16 = write_fp16(fp32)
            models |= half_sides(fp32, fp16, plain, images, settings)
        alone = interleave("score, model alone", models, config.repeats)
        on_gpu = {}
        if device.type == "cuda":
            shards = from_shards(fp16, raw, config, work, settings, SHARD_IMAGES)
            monitor = Monitor(device)
            there = {name: side for name, side in models.items() if name != "ours, int8"}
            on_gpu = {"gpu": measure_gpu(there, alone, shards, monitor, config.repeats)}
        archive = write_tar(work / "images.tar", raw.paths, 1 if config.quick else _TIMES)
        sides: dict[str, Side] = {
            "ours": whole_way(fp32, archive, work / "fp32", settings),
            "ours, int8": whole_way(int8, archive, work / "int8", settings, "cpu"),
            "decoding alone": decoding_alone(archive, settings),
            "torchvision DataLoader, torch eager": data_loader(loader, plain, settings),
        }
        by_hand = partial(process_batch, raw.paths[:_BY_HAND], plain, settings)
        sides |= _tried("torchxrayvision's process_batch way", by_hand)
        whole = interleave("score, from a tar", sides, config.repeats)
        each = (1,) if config.quick else _GROWTH
        grown = growth(fp32, raw.paths, work, settings, each)
        what = (
            f"{network} at {config.size} x {config.size} with random weights, the peers in batches "
            f"of {config.batch}, model alone, --workers {config.workers}, on "
            f"{provider_of(session)}, int8 always on the CPU; "
            f"end to end: {raw} -> scores, ours from a tar that holds them "
            f"{1 if config.quick else _TIMES} times, with the start of its processes, the peers "
            "from files"
        )
    ours, eager = alone.pop("ours"), alone.pop("torch eager fp32")
    rates = {"ours": ours.median, "ours, int8": alone["ours, int8"].median}
    return Result(
        name="score",
        what=what,
        peer_name="torch eager fp32",
        ours=ours,
        peer=eager,
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        others=alone,
        extra={
            "architecture": network,
            "int8_ratio": round(rates["ours, int8"] / eager.median, 3),
            "end_to_end": _end_to_end(whole, rates),
            "growth": grown,
            **on_gpu,
        },
    )


def _models(
    model: nn.Module, images: np.ndarray, config: ScoreBench, raw: RawImages, work: Path
) -> tuple[Path, Path]:
    """The same network in fp32 and, calibrated on some of the images, in int8."""
    graph = to_onnx(Scorer(model).eval(), config.size, _info(config, raw))
    fp32, int8 = work / "fp32.onnx", work / "int8.onnx"
    onnx.save(graph, fp32)
    parts = (images[n : n + 8] for n in range(0, min(len(images), _CALIBRATION), 8))
    made = to_int8(graph, parts)
    onnx.helper.set_model_props(made, {p.key: p.value for p in onnx.load(fp32).metadata_props})
    onnx.save(made, int8)
    return fp32, int8


def _check_parity(session: Any, plain: nn.Module, images: np.ndarray) -> None:
    """plain: on the CPU, as the export's gate has it; on a GPU torch convolves in TF32."""
    with torch.inference_mode():
        expected = Scorer(plain).eval()(torch.from_numpy(images))[1]
    difference = np.abs(probabilities(session, images) - expected.numpy()).max()
    allowed = TOLERANCES["fp32"].probability
    assert allowed is not None
    if difference > allowed:
        raise RunFailed(f"ONNX Runtime and torch differ by {difference:.2g} in probability")


def _alone(
    fp32: Path, int8: Path, plain: nn.Module, images: np.ndarray, settings: Settings
) -> dict[str, Side]:
    return {
        "ours": ours_alone(fp32, images, settings),
        "ours, int8": ours_alone(int8, images, settings, "cpu"),
        "torch eager fp32": torch_alone(plain, images, settings),
        "torch channels_last bf16": torch_alone(plain, images, settings, bf16=True),
        "onnxruntime with numpy batches": numpy_batches(fp32, images, settings),
    }


def _tried(name: str, make: partial[Side]) -> dict[str, Side]:
    try:
        return {name: make()}
    except ImportError as error:
        print(f"without {name}: {error}; `make peers` installs the peers")
        return {}


def _info(config: ScoreBench, raw: RawImages) -> ModelInfo:
    return ModelInfo(
        architecture=config.architecture,
        labels=COVID.names,
        exclusive=COVID.exclusive,
        size=config.size,
        shorter_side=config.shorter_side,
        preprocessing_version=preprocess.VERSION,
        dataset="bench",
        manifest_hash="",
        recipe="bench",
        stage="bench",
        synthetic=raw.synthetic,
        weights_sha256="",
        run="bench",
        licence="random weights",
        intended_use="measuring speed",
        created_by="python -m bench score",
    )


def _end_to_end(whole: dict[str, Rates], alone: dict[str, float]) -> dict[str, Any]:
    """Rates with their spreads; ours over each peer; ours in percent of the slower of decoding
    alone and the model alone. alone: our model's rates by the name of the side."""
    decoding = whole["decoding alone"].median
    peers = [name for name in whole if not name.startswith("ours") and name != "decoding alone"]
    found: dict[str, Any] = {"decoding_alone": round(decoding, 2)}
    for ours, rate in alone.items():
        median = whole[ours].median
        found[ours] = {
            "img_s": round(median, 2),
            "spread": rounded(whole[ours].spread),
            "percent_of_slower_part": round(100 * median / min(decoding, rate), 1),
            **{f"over {name}": round(median / whole[name].median, 2) for name in peers},
        }
    found |= {name: round(whole[name].median, 2) for name in peers}
    return found
