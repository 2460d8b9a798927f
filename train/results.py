"""What a stage leaves in its folder: each phase's best weights, result.json, the final model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from shards.console import RunFailed
from train.metrics import Metrics
from train.models import load_weights
from train.phases import Phase
from train.position import Position
from train.runs import ModelSpec, save_model
from train.settings import write_json
from train.store import Store

TEST_PRECISION = "fp32"  # whatever the training's is: that of the exported model


def best_path(run: Path, stage: str, phase: int) -> Path:
    """The best-validation-loss weights of a phase (from 0)."""
    return run / stage / f"phase-{phase + 1}.safetensors"


def load_best(path: Path, model: nn.Module) -> None:
    """Go back to a phase's best weights. RunFailed when no epoch had a finite validation loss."""
    if not path.is_file():
        raise RunFailed(f"no {path}: no epoch of the phase had a finite validation loss")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise RunFailed(f"{path} is damaged ({error}); the same command goes on before it") from (
            error
        )
    load_weights(model, weights, str(path))


def phase_result(phase: Phase, at: Position, test: Metrics) -> dict[str, Any]:
    """A phase's line in result.json; epochs count through the stage."""
    before = at.epoch - at.progress.epoch
    return {
        "name": phase.name,
        "epochs": at.progress.epoch,
        "best_epoch": before + at.progress.best_epoch,
        "best_val_loss": at.progress.best_val_loss,
        "test": {**asdict(test), "auroc_mean": test.auroc_mean, "precision": TEST_PRECISION},
    }


def write_stage(
    folder: Path,
    model: nn.Module,
    spec: ModelSpec,
    stores: dict[str, Store],
    phases: list[dict[str, Any]],
) -> None:
    """result.json, then the model: when model.json is there, the stage is finished."""
    result = {
        "dataset": spec.dataset,
        "labels": spec.labels,
        "counts": {split: len(store) for split, store in stores.items()},
        "phases": phases,
    }
    write_json(folder / "result.json", result)
    save_model(folder, model, spec)
