"""Scores per second: ONNX Runtime beside torch, and from an archive. Run: python -m bench score"""

import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from bench.config import BenchConfig, settle
from bench.images import RawImages, fresh_folders, network_inputs, raw_images
from bench.machine import synchronise
from bench.networks import build_pair, network_name
from bench.peers import TorchvisionLoader
from bench.result import Rates, Result, Side, interleave, rounded
from serve.export import MAX_PROBABILITY_DIFFERENCE, Scorer, to_onnx
from serve.model_info import ModelInfo
from serve.providers import create_session, probabilities, provider_of
from serve.score import ScoreConfig, score
from shards import preprocess
from shards.console import RunFailed
from shards.labels import COVID


@dataclass(frozen=True)
class ScoreBench(BenchConfig):
    """How fast a network scores: the model alone in ONNX Runtime beside torch in eager mode, both
    fp32 with the same random weights; then from a tar of raw images to scores on disk."""

    number: int = 96
    """Use at most this many images."""
    architecture: str = "densenet121"
    """The network."""
    size: int = 224
    """Side of the network's input in pixels."""
    batch: int = 8
    """Images of one pass."""


def measure(config: ScoreBench) -> Result:
    """RunFailed when the two do not give the same probabilities."""
    config = settle(config)
    torch.set_num_threads(config.workers)
    network = network_name(config.architecture, quick=config.quick)
    model, plain = build_pair(config.architecture, len(COVID), quick=config.quick)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as folder:
        work = Path(folder)
        raw = raw_images(config, work / "raw")
        loader = TorchvisionLoader(raw.paths, config.size, config.workers)
        path = work / "model.onnx"
        onnx.save(to_onnx(Scorer(model).eval(), config.size, _info(config, raw)), path)
        session = create_session(path, "auto", config.workers)
        device = torch.device("cpu" if provider_of(session) == "cpu" else "cuda")
        plain = plain.to(device).eval()
        images = network_inputs(raw, config, config.size)[:, None]
        alone = _model_alone(session, plain, images, config.batch, device)
        rates = interleave("score, model alone", alone, config.repeats)
        whole = _end_to_end(path, raw, loader, plain, device, config, work)
        end_to_end = interleave("score, from a tar", whole, config.repeats)
        what = (
            f"{network} at {config.size} x {config.size} with random weights, fp32, batch "
            f"{config.batch}, model alone, --workers {config.workers}, on {provider_of(session)}; "
            f"end to end: {raw} -> scores, ours from a tar with the start of its processes, the "
            "peer from files with its workers running"
        )
    return Result(
        name="score",
        what=what,
        peer_name="torch eager fp32; end to end: torchvision DataLoader before it",
        ours=rates["ours"],
        peer=rates["peer"],
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        extra={"architecture": network, "end_to_end": _figures(end_to_end)},
    )


def _figures(rates: dict[str, Rates]) -> dict[str, object]:
    ours, peer = rates["ours"], rates["peer"]
    return {
        "ours": round(ours.median, 3),
        "peer": round(peer.median, 3),
        "ratio": round(ours.median / peer.median, 4),
        "spread": {"ours": rounded(ours.spread), "peer": rounded(peer.spread)},
    }


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


def _model_alone(
    session: onnxruntime.InferenceSession,
    plain: nn.Module,
    images: np.ndarray,
    batch: int,
    device: torch.device,
) -> dict[str, Side]:
    """images: (N, 1, S, S) uint8, prepared; both normalise them and give probabilities."""
    scorer = Scorer(plain).to(device).eval()

    def by_onnxruntime() -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch):
            yield probabilities(session, images[start : start + batch])

    def by_torch() -> Iterator[np.ndarray]:
        with torch.inference_mode():
            for part in torch.from_numpy(images).split(batch):
                yield scorer(part.to(device))[1].cpu().numpy()

    difference = np.abs(next(by_onnxruntime()) - next(by_torch())).max()
    if difference > MAX_PROBABILITY_DIFFERENCE:
        raise RunFailed(f"ONNX Runtime and torch differ by {difference:.2g} in probability")
    return {
        "ours": lambda: sum(len(rows) for rows in by_onnxruntime()),
        "peer": lambda: sum(len(rows) for rows in by_torch()),
    }


def _end_to_end(
    model: Path,
    raw: RawImages,
    loader: TorchvisionLoader,
    plain: nn.Module,
    device: torch.device,
    config: ScoreBench,
    work: Path,
) -> dict[str, Side]:
    """Raw images -> scores: ours as `python -m serve score` runs it."""
    archive = work / "images.tar"
    with tarfile.open(archive, "w") as tar:
        for path in raw.paths:
            tar.add(path, path.name)
    folders = fresh_folders(work / "scores")

    def ours() -> int:
        out = next(folders)
        settings = ScoreConfig(
            model, out, (archive,), workers=config.workers, threads=config.workers
        )
        summary = score(settings)
        if summary.errors:
            raise RunFailed(f"{summary.errors} of {summary.rows} images were not scored")
        return summary.rows

    def peer() -> int:
        rows = 0
        with torch.inference_mode():
            for batch in loader.epoch(device):
                rows += len(torch.sigmoid(plain(batch)).cpu())
        synchronise(device)
        return rows

    return {"ours": ours, "peer": peer}
