"""A finished run -> one self-describing ONNX file, behind a parity gate on the run's own shards.

Run: python -m serve export --run RUN --out MODEL.onnx

In: images uint8 (N, 1, S, S), any N. Out: logits and probabilities float32 (N, L), on request
features (N, F) and cam (N, L, h, w). Normalisation and the repetition of the grey channel are in
the graph. Beside it MODEL.md, the model card. What each precision may lose: serve/parity.py.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from serve.inspect import output_shapes
from serve.intervals import Estimate, auroc
from serve.model_card import write_card
from serve.model_info import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, ModelInfo, to_metadata
from serve.parity import Parity, Precision, judge, measure
from serve.providers import Provider, create_session, provider_of
from serve.providers import probabilities as score_batch
from serve.quantise import to_fp16, to_int8
from serve.rewrite import pool_before_conv
from serve.split_images import SplitImages
from serve.taps import add_cam, add_features
from serve.thresholds import choose
from serve.triton import check_name, write_repository
from shards.console import RunFailed, UserError, progress
from shards.labels import UNKNOWN, YES
from shards.manifest import SYNTHETIC_NOTE, load_manifest, manifest_hash
from shards.preprocess import MEAN, STD
from shards.splits import SplitName
from shards.stats import split_names
from shards.writer import write_atomic
from train.loss import probabilities
from train.runs import ModelSpec, load_run_model, read_settings

OPSET = 20
LICENCE = "the licences of the training data and of the start weights apply"
INTENDED_USE = "research on chest X-ray classification; not a medical device"


@dataclass(frozen=True)
class ExportConfig:
    """Export a finished run to ONNX, with a model card beside it. No file is written unless torch
    and ONNX Runtime agree on validation images: in fp32 probabilities within 0.0001 and a loss in
    mean AUROC of at most 0.001; in fp16 within 0.01 and 0.002; in int8 a loss of at most 0.005."""

    run: Path
    """Run folder of python -m train."""
    out: Path
    """The ONNX file to write, MODEL.onnx; the card is MODEL.md."""
    stage: str | None = None
    """Which stage's model; by default the run's last."""
    shards: Path | None = None
    """The folder of the data sets; by default the one the run was trained from."""
    precision: Precision = "fp32"
    """fp16 is for GPUs (half the size); int8 for CPUs (2 to 3 times as fast as fp32)."""
    calibration: int = 128
    """int8: this many images set the ranges of the activations."""
    calibration_split: SplitName = "val"
    """int8: the split that they are taken from, never test."""
    max_auroc_loss: float | None = None
    """Another limit for the loss in mean AUROC than the precision's own."""
    parity_images: int = 256
    """At most this many validation images go through both for the comparison."""
    features: bool = False
    """Also give the output `features`, what the last layer is given (for t-SNE, SOM)."""
    cam: bool = False
    """Also give the output `cam`, the class activation maps (networks that end in a mean)."""
    triton: Path | None = None
    """Also write a Triton model repository there; the model is called as the file is."""


@dataclass(frozen=True)
class Exported:
    """What was written. card: the Markdown beside the model; triton: the model's folder there."""

    parity: Parity
    precision: Precision
    card: Path
    triton: Path | None


class Scorer(nn.Module):
    """uint8 (N, 1, S, S) -> logits, probabilities: preprocessing step 4 and the network.

    output: sigmoid or softmax, as in ModelSpec."""

    def __init__(self, model: nn.Module, output: str = "sigmoid") -> None:
        super().__init__()
        self.output = output
        self.scale: Tensor
        self.shift: Tensor
        self.model = model
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, 3, 1, 1))
        self.register_buffer("shift", (mean / std).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images.float() * self.scale - self.shift)
        return logits, probabilities(logits, self.output)


def export(config: ExportConfig) -> Exported:
    """Write config.out. UserError for a run that is not there, RunFailed when parity fails."""
    _check(config)
    model, spec = load_run_model(config.run, config.stage)
    images = _split_images(config, spec)
    scorer = Scorer(model, spec.output).eval()
    info = _info(config, spec, images)
    temporary = config.out.with_name(config.out.name + ".tmp")
    try:
        with progress("export", None) as advance:
            graph = build_graph(scorer, info, images, config)
            onnx.save(graph, temporary)
            advance()
        session = _session(temporary, config.precision)
        measured = compare(scorer, session, images, config.parity_images)
        parity = judge(measured, config.precision, config.max_auroc_loss)
        found, targets = _score(session, images)
        thresholds = choose(found, targets, info.labels)
        info = replace(info, parity=parity, thresholds=thresholds)
        onnx.helper.set_model_props(graph, to_metadata(info))
        shapes = output_shapes(graph)
        card = config.out.with_suffix(".md")
        text = write_card(info, shapes, _validation(found, targets, info.labels), config.run)
        write_atomic(card, text.encode())
        write_atomic(config.out, graph.SerializeToString())
    finally:
        temporary.unlink(missing_ok=True)
    folder = None
    if config.triton is not None:
        folder = write_repository(config.triton, config.out.stem, config.out, info, shapes)
    return Exported(parity, config.precision, card, folder)


def build_graph(
    scorer: nn.Module, info: ModelInfo, images: SplitImages, config: ExportConfig
) -> onnx.ModelProto:
    """The network in the precision and with the outputs that were asked for."""
    graph = to_onnx(scorer, info.size, info)
    if config.features:
        add_features(graph)
    if config.cam:
        add_cam(graph)
    if config.precision == "int8":
        batches = images.batches(config.calibration_split, config.calibration)
        return to_int8(graph, (batch for batch, _ in batches))
    return to_fp16(graph) if config.precision == "fp16" else graph


def to_onnx(scorer: nn.Module, size: int, info: ModelInfo) -> onnx.ModelProto:
    """A Scorer for size x size images as an fp32 ONNX model that carries `info`."""
    example = torch.zeros((2, 1, size, size), dtype=torch.uint8)
    # channels_last would leave a Gather of computed strides in the graph where maps are flattened.
    scorer = copy.deepcopy(scorer).to(memory_format=torch.contiguous_format)
    # The exporter tells its progress on standard output and warns of its own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            scorer,
            (example,),
            input_names=[INPUT_NAME],
            output_names=[LOGITS_NAME, PROBABILITIES_NAME],
            opset_version=OPSET,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
        )
    assert program is not None
    model = program.model_proto
    pool_before_conv(model)
    onnx.helper.set_model_props(model, to_metadata(info))
    return model


def _check(config: ExportConfig) -> None:
    read_settings(config.run)  # that there is a run
    folder = config.out.absolute().parent
    if config.out.suffix != ".onnx" or config.out.is_dir():
        raise UserError(f"--out names the model, MODEL.onnx; found {config.out}")
    if not folder.is_dir():
        raise UserError(f"no folder {folder} for the model; make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"no permission to write into {folder}; name another --out")
    for name in ("parity_images", "calibration"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, found {getattr(config, name)}")
    if config.calibration_split == "test":
        raise UserError("calibration_split test: no setting may know the test split; take val")
    if config.max_auroc_loss is not None and not 0 <= config.max_auroc_loss <= 1:
        raise UserError(f"max_auroc_loss is from 0 to 1, found {config.max_auroc_loss}")
    if config.triton is not None:
        check_name(config.out.stem)
        if config.triton.exists() and not config.triton.is_dir():
            raise UserError(f"--triton {config.triton} is a file; name a folder")


def _split_images(config: ExportConfig, spec: ModelSpec) -> SplitImages:
    """The data set of the run. UserError when it is another one, or lacks the images needed."""
    root = config.shards or Path(read_settings(config.run)["shards"])
    folder = root / spec.dataset
    images = SplitImages(folder, load_manifest(folder), spec.size, spec.labels)
    if manifest_hash(folder) != spec.manifest_hash:
        raise UserError(
            f"{folder} is not the data set that {config.run} was trained on (its manifest's hash "
            "differs); name the right one with --shards"
        )
    images.count("val")
    if config.precision == "int8":
        images.count(config.calibration_split)
    return images


def _info(config: ExportConfig, spec: ModelSpec, images: SplitImages) -> ModelInfo:
    splits = images.manifest.splits
    return ModelInfo(
        **asdict(spec),
        run=config.run.resolve().name,
        licence=LICENCE,
        intended_use=INTENDED_USE,
        created_by=f"cxrstack, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        synthetic_images=images.manifest.synthetic_note.removeprefix(SYNTHETIC_NOTE),
        precision=config.precision,
        splits={name: splits[name].samples for name in split_names(images.manifest)},
    )


def _session(path: Path, precision: Precision) -> onnxruntime.InferenceSession:
    """fp16 is judged on a GPU where CUDA works: a CPU computes it in fp32 with rounded weights."""
    provider: Provider = "auto" if precision == "fp16" else "cpu"
    return create_session(path, provider, len(os.sched_getaffinity(0)))


def compare(
    scorer: nn.Module,
    session: onnxruntime.InferenceSession,
    images: SplitImages,
    at_most: int,
) -> Parity:
    """The same validation images through torch (fp32, CPU) and through ONNX Runtime."""
    ours, theirs, targets = [], [], []
    with torch.inference_mode(), progress("parity", images.count("val", at_most)) as advance:
        for batch, labels in images.batches("val", at_most):
            ours.append(scorer(torch.from_numpy(batch))[1].numpy())
            theirs.append(score_batch(session, batch))
            targets.append(labels)
            advance(len(batch))
    a, b, truth = (np.concatenate(part) for part in (ours, theirs, targets))
    return measure(a, b, truth, provider_of(session))


def _score(
    session: onnxruntime.InferenceSession, images: SplitImages
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, L) and labels (N, L) of the whole validation split."""

    def scored() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with progress("thresholds", images.count("val")) as advance:
            for batch, labels in images.batches("val"):
                yield score_batch(session, batch), labels
                advance(len(batch))

    found, targets = (np.concatenate(part) for part in zip(*scored()))
    if not np.isfinite(found).all():
        raise RunFailed("no model written: a probability of a validation image is not finite")
    return found, targets


def _validation(
    found: np.ndarray, targets: np.ndarray, labels: tuple[str, ...]
) -> dict[str, Estimate | None]:
    """Each label's AUROC with its interval."""
    known = targets != UNKNOWN
    return {
        label: auroc(found[known[:, i], i], targets[known[:, i], i] == YES)
        for i, label in enumerate(labels)
    }
