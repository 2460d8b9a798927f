"""A run folder's models: what `train` leaves for `serve` and for later trainings.

`RUN/<stage>/model.safetensors` and `model.json`; `RUN/settings.json` names the stages in order.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from shards.console import UserError
from shards.writer import write_atomic
from train.models import build_model, load_weights


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build the network, feed it and read its outputs.

    output: how logits become probabilities, sigmoid per label or softmax over the labels
    (train.loss.probabilities computes either). head: linear, or soares, whose flatten ties the
    network to `size`. depth: as in the data set's manifest. Every network is fed step 4 of the
    preprocessing contract: one that works on [0, 1], as soares does, undoes ImageNet's
    normalisation itself.
    """

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
    weights_sha256: str = ""
    output: str = "sigmoid"
    head: str = "linear"
    depth: int | None = None


def save_model(folder: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write model.safetensors, then model.json with its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({k: v.contiguous().cpu() for k, v in model.state_dict().items()})
    write_atomic(folder / "model.safetensors", weights)
    digest = hashlib.sha256(weights).hexdigest()
    content = {**asdict(spec), "weights_sha256": digest}
    write_atomic(folder / "model.json", (json.dumps(content, indent=1) + "\n").encode())


def read_settings(run: Path) -> dict[str, Any]:
    """RUN/settings.json. UserError when there is none."""
    path = run / "settings.json"
    if not path.is_file():
        raise UserError(f"no settings.json in {run}; it is no run folder of python -m train")
    settings = read_json(path)
    config = settings.get("config")
    if not isinstance(config, dict) or "stages" not in config:
        raise UserError(f"{path} is not of a run of python -m train")
    return settings


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run. UserError where it is damaged or missing."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, where names with values should be")
        return content
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); take another run folder") from error


def stage_names(run: Path) -> list[str]:
    """The run's stages, in order."""
    return [stage["name"] for stage in read_settings(run)["config"]["stages"]]


def load_run_model(run: Path, stage: str | None = None) -> tuple[nn.Module, ModelSpec]:
    """The network of a finished stage (default: the last), in eval mode on the CPU.

    UserError when the stage is unknown or unfinished, or when the weights do not fit, or are not
    those whose hash model.json has.
    """
    names = stage_names(run)
    name = stage or names[-1]
    if name not in names:
        raise UserError(f"no stage {name!r} in {run}; it has: {', '.join(names)}")
    spec = _read_spec(run / name)
    model = build_model(spec.architecture, len(spec.labels), head=spec.head, size=spec.size)
    path = run / name / "model.safetensors"
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != spec.weights_sha256:
            raise ValueError("its SHA-256 is not the one in model.json")
        weights = load(data)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); train again, or export elsewhere") from error
    load_weights(model, weights, str(path))
    return model.eval(), spec


def _read_spec(folder: Path) -> ModelSpec:
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(
            f"no {path}: this stage is not finished; the same train command goes on with it"
        )
    try:
        raw = json.loads(path.read_bytes())
        known = {f.name for f in fields(ModelSpec)}
        needed = known - {"output", "head", "depth"}  # older runs have none of them
        if not needed <= set(raw) <= known:
            raise ValueError(f"fields {sorted((set(raw) - known) | (needed - set(raw)))}")
        return ModelSpec(**{**raw, "labels": tuple(raw["labels"])})
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a model's description ({error})") from error
