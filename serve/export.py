"""A finished run -> one self-describing ONNX file, behind a parity gate on the run's own shards.

Run: python -m serve export --run RUN --out MODEL.onnx

In: images uint8 (N, 1, S, S), any N. Out: logits and probabilities float32 (N, L). Normalisation
and the repetition of the grey channel are in the graph.
"""

import contextlib
import io
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from serve.model_info import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, ModelInfo, to_metadata
from shards.codec import decode_grey
from shards.console import RunFailed, UserError, progress
from shards.manifest import load_manifest, manifest_hash
from shards.preprocess import MEAN, STD, resize
from shards.reader import read_split
from train.metrics import auroc
from train.runs import ModelSpec, load_run_model, read_settings

OPSET = 20
MAX_PROBABILITY_DIFFERENCE = 1e-4  # measured on DenseNet121: about 1e-6
MAX_AUROC_DIFFERENCE = 1e-3
PARITY_BATCH = 16
LICENCE = "the licences of the training data and of the start weights apply"
INTENDED_USE = "research on chest X-ray classification; not a medical device"


@dataclass(frozen=True)
class ExportConfig:
    """Export a finished run to ONNX. No file is written unless torch and ONNX Runtime agree."""

    run: Path
    """Run folder of python -m train."""
    out: Path
    """The ONNX file to write."""
    stage: str | None = None
    """Which stage's model; by default the run's last."""
    shards: Path | None = None
    """The folder of the data sets; by default the one the run was trained from."""
    parity_images: int = 256
    """At most this many validation images go through both for the comparison."""


@dataclass(frozen=True)
class Parity:
    """images compared; the largest difference in a probability, and in a label's AUROC."""

    images: int
    max_probability_difference: float
    max_auroc_difference: float


class Scorer(nn.Module):
    """uint8 (N, 1, S, S) -> logits, probabilities: preprocessing step 4 and the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.model = model
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, 3, 1, 1))
        self.register_buffer("shift", (mean / std).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images.float() * self.scale - self.shift)
        return logits, torch.sigmoid(logits)


def export(config: ExportConfig) -> Parity:
    """Write config.out. UserError for a run that is not there, RunFailed when parity fails."""
    model, spec = load_run_model(config.run, config.stage)
    if not config.out.absolute().parent.is_dir():
        raise UserError(f"no folder {config.out.absolute().parent} for the model; make it first")
    images, labels = _parity_images(config, spec)
    scorer = Scorer(model).eval()
    info = _info(config.run, spec)
    temporary = config.out.with_name(config.out.name + ".tmp")
    try:
        with progress("export", None) as advance:
            onnx.save(to_onnx(scorer, spec.size, info), temporary)
            advance()
        parity = compare(scorer, temporary, images, labels)
        if parity.max_probability_difference > MAX_PROBABILITY_DIFFERENCE:
            raise RunFailed(
                f"no model written: torch and ONNX Runtime differ by "
                f"{parity.max_probability_difference:.2g} in probability on {parity.images} images "
                f"(at most {MAX_PROBABILITY_DIFFERENCE:g})"
            )
        if parity.max_auroc_difference > MAX_AUROC_DIFFERENCE:
            raise RunFailed(
                f"no model written: the AUROC differs by {parity.max_auroc_difference:.2g} "
                f"(at most {MAX_AUROC_DIFFERENCE:g})"
            )
        temporary.replace(config.out)
    finally:
        temporary.unlink(missing_ok=True)
    return parity


def _parity_images(config: ExportConfig, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """(n, 1, S, S) uint8 and labels (n, L) of the validation split."""
    root = config.shards or Path(read_settings(config.run)["shards"])
    folder = root / spec.dataset
    manifest = load_manifest(folder)
    if manifest_hash(folder) != spec.manifest_hash:
        raise UserError(
            f"{folder} is not the data set that {config.run} was trained on (its manifest's hash "
            "differs); name the right one with --shards"
        )
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    with progress("parity images", None) as advance:
        for sample in read_split(folder, manifest, "val"):
            if len(images) == config.parity_images:
                break
            images.append(resize(decode_grey(sample.image), spec.size)[None])
            labels.append(sample.labels)
            advance()
    if not images:
        raise UserError(f"{folder} has no validation images to compare on")
    return np.stack(images), np.stack(labels)


def to_onnx(scorer: nn.Module, size: int, info: ModelInfo) -> onnx.ModelProto:
    """A Scorer for size x size images as an ONNX model that carries `info`."""
    example = torch.zeros((2, 1, size, size), dtype=torch.uint8)
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
    onnx.helper.set_model_props(model, to_metadata(info))
    return model


def _info(run: Path, spec: ModelSpec) -> ModelInfo:
    return ModelInfo(
        **asdict(spec),
        run=run.resolve().name,
        licence=LICENCE,
        intended_use=INTENDED_USE,
        created_by=f"cxrstack, torch {torch.__version__}",
    )


def compare(scorer: nn.Module, path: Path, images: np.ndarray, labels: np.ndarray) -> Parity:
    """The same images through torch (fp32) and through ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ours, theirs = [], []
    with torch.inference_mode(), progress("parity", len(images)) as advance:
        for start in range(0, len(images), PARITY_BATCH):
            part = images[start : start + PARITY_BATCH]
            ours.append(scorer(torch.from_numpy(part))[1].numpy())
            theirs.append(session.run([PROBABILITIES_NAME], {INPUT_NAME: part})[0])
            advance(len(part))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    pairs = [
        (auroc(labels[:, i], a[:, i]), auroc(labels[:, i], b[:, i])) for i in range(a.shape[1])
    ]
    differences = [abs(x - y) for x, y in pairs if x is not None and y is not None]
    return Parity(len(images), float(np.abs(a - b).max()), max(differences, default=0.0))
