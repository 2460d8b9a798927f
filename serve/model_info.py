"""What an exported model says of itself: the `cxrstack.*` entries of its metadata_props.

Every value is JSON. `python -m serve export` writes them with `to_metadata`; scoring reads them.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from serve.parity import Parity, Precision
from serve.thresholds import OperatingPoint, Thresholds
from shards import preprocess
from shards.console import UserError
from shards.depth import DEPTHS

PREFIX = "cxrstack."
INPUT_NAME = "images"  # uint8 (N, 1, S, S)
LOGITS_NAME = "logits"  # float32 (N, L)
PROBABILITIES_NAME = "probabilities"  # float32 (N, L), sigmoid or softmax of the logits
MAX_SIZE = 4096
_TEXTS = {
    "architecture",
    "created_by",
    "dataset",
    "head",
    "intended_use",
    "licence",
    "manifest_hash",
    "output",
    "precision",
    "recipe",
    "run",
    "stage",
    "synthetic_images",
    "weights_sha256",
}


@dataclass(frozen=True)
class ModelInfo:
    """labels: in the order of the outputs; exclusive: exactly one of them holds; size: S of the
    input; shorter_side: pixels that the data set's images were reduced to (None: not reduced);
    depth: of 16-bit images that declare none, as in the data set's manifest (None: not known);
    synthetic: the data set has made-up radiographs; synthetic_images: how many, in words; output:
    sigmoid or softmax of the logits, which the graph computes; head: as in train.runs.ModelSpec;
    splits: images of the data set's splits; thresholds: chosen on the validation split with this
    very model; parity: the gate's result."""

    architecture: str
    labels: tuple[str, ...]
    exclusive: bool
    size: int
    shorter_side: int | None
    preprocessing_version: int
    dataset: str
    manifest_hash: str
    recipe: str
    stage: str
    synthetic: bool
    weights_sha256: str
    run: str
    licence: str
    intended_use: str
    created_by: str
    output: str = "sigmoid"
    head: str = "linear"
    synthetic_images: str = ""
    precision: Precision = "fp32"
    splits: dict[str, int] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=dict)
    parity: Parity | None = None
    depth: int | None = None


def to_metadata(info: ModelInfo) -> dict[str, str]:
    """The entries for `metadata_props`: key with PREFIX -> JSON."""
    return {PREFIX + name: json.dumps(value) for name, value in asdict(info).items()}


def from_metadata(entries: Mapping[str, str], model: str) -> ModelInfo:
    """Inverse of to_metadata; `model` names the file in messages. UserError when it is not ours."""
    names = [field.name for field in fields(ModelInfo)]
    if not any(key.startswith(PREFIX) for key in entries):
        raise UserError(
            f"{model} has no {PREFIX}* metadata, so its labels and preprocessing are not known; "
            "serve score takes them from --labels and --size, and python -m serve export writes "
            "them into a model"
        )
    optional = {
        field.name
        for field in fields(ModelInfo)
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    given = [name for name in names if PREFIX + name in entries or name not in optional]
    missing = [PREFIX + name for name in given if PREFIX + name not in entries]
    if missing:
        raise UserError(f"{model} lacks the metadata {', '.join(missing)}; export the run again")
    try:
        raw = {name: json.loads(entries[PREFIX + name]) for name in given}
        json.dumps(raw, ensure_ascii=False).encode()  # text that is none: half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise UserError(f"{model} has damaged metadata ({error}); export the run again") from error
    problem = _problem(raw)
    if problem:
        raise UserError(f"{model}: {problem}; export the run again")
    try:
        return ModelInfo(**{**raw, **_structured(raw), "labels": tuple(raw["labels"])})
    except (TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{model} has damaged metadata ({error}); export the run again") from error


def _structured(raw: dict[str, Any]) -> dict[str, Any]:
    """The values that are more than JSON's own types. TypeError or AttributeError when damaged."""
    found: dict[str, Any] = {}
    if "thresholds" in raw:
        found["thresholds"] = {
            name: {label: _point(points[label]) for label in raw["labels"]}
            for name, points in raw["thresholds"].items()
        }
    if raw.get("parity") is not None:
        found["parity"] = _parity(raw["parity"])
    return found


def _parity(raw: dict[str, Any]) -> Parity:
    parity = Parity(**raw)
    absent = {"provider"}
    if parity.auroc_torch is None and parity.auroc_onnx is None:
        absent |= {"auroc_torch", "auroc_onnx"}
    if parity.allowed_auroc_loss is None:
        absent.add("allowed_auroc_loss")
    _check_numbers({name: value for name, value in raw.items() if name not in absent})
    return parity


def _point(raw: dict[str, Any] | None) -> OperatingPoint | None:
    if raw is None:
        return None
    point = OperatingPoint(**raw)
    _check_numbers(raw)
    if not 0 <= point.threshold <= 1:
        raise TypeError(f"a threshold is from 0 to 1, found {point.threshold!r}")
    return point


def _check_numbers(raw: dict[str, Any]) -> None:
    for name, value in raw.items():
        if type(value) not in (int, float):
            raise TypeError(f"{name} is a number, found {value!r}")


def _problem(raw: dict[str, Any]) -> str | None:
    labels, size, shorter_side = raw["labels"], raw["size"], raw["shorter_side"]
    if not isinstance(labels, list) or not all(isinstance(x, str) and x for x in labels):
        return f"labels must be a list of names, found {labels!r}"
    if not labels or len(set(labels)) != len(labels):
        return f"labels must be at least one and different, found {labels!r}"
    if type(size) is not int or not 1 <= size <= MAX_SIZE:  # True is an int too
        return f"size must be 1 to {MAX_SIZE} pixels, found {size!r}"
    if shorter_side is not None and (type(shorter_side) is not int or shorter_side < 1):
        return f"shorter_side must be null or at least 1 pixel, found {shorter_side!r}"
    if raw.get("depth") not in (None, *DEPTHS):
        return f"depth must be null or one of {DEPTHS} bits, found {raw['depth']!r}"
    if raw["preprocessing_version"] != preprocess.VERSION:
        found = raw["preprocessing_version"]
        return f"preprocessing version {found!r}, this program computes {preprocess.VERSION}"
    for name in ("exclusive", "synthetic"):
        if not isinstance(raw[name], bool):
            return f"{name} must be true or false, found {raw[name]!r}"
    for name in _TEXTS & raw.keys():
        if not isinstance(raw[name], str):
            return f"{name} must be text, found {raw[name]!r}"
    if not isinstance(raw.get("splits", {}), dict):
        return f"splits must be a count for each split, found {raw['splits']!r}"
    return None
