"""Checkpoints: a folder with weights, optimiser tensors and a small JSON state, there whole or not.

`RUN/checkpoints/<number>/{model,optim}.safetensors, state.json`. No pickle is written or read.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.console import RunFailed, warn

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """weights and optimiser tensors by name; state: what JSON holds."""

    weights: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


def optim_tensors(optim: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: '<parameter position>.<name>'."""
    state = optim.state_dict()["state"]
    return {
        f"{position}.{name}": value.detach().cpu().contiguous()
        for position, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optim(optim: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of optim_tensors, for an optimiser built anew from the same phase."""
    parameters = [p for group in optim.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        position, name = full_name.split(".", 1)
        parameter = parameters[int(position)]
        if value.shape == parameter.shape:
            # Fused optimisers walk parameter and state through memory side by side: a state that
            # is not channels_last where its parameter is would silently meet other weights.
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(position), {})[name] = value
    optim.load_state_dict({"state": state, "param_groups": optim.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path, model: nn.Module, optim: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write the next numbered checkpoint and remove all but the last KEEP."""
    folder.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(folder), default=0) + 1
    temporary = folder / "writing.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, temporary / "model.safetensors")
    save_file(optim_tensors(optim), temporary / "optim.safetensors")
    hashes = {file.name: _sha256(file) for file in temporary.iterdir()}
    (temporary / "state.json").write_text(json.dumps({"position": state, "sha256": hashes}))
    for file in temporary.iterdir():
        _sync(file)
    temporary.replace(folder / f"{number:06d}")
    _sync(folder)
    for old in _numbers(folder)[:-KEEP]:
        shutil.rmtree(folder / f"{old:06d}")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; a damaged one is named and passed over.

    None where there is none at all; RunFailed where all are damaged.
    """
    numbers = _numbers(folder)
    for number in reversed(numbers):
        path = folder / f"{number:06d}"
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warn(f"checkpoint {path} is damaged ({error}); taking the one before it")
    if numbers:
        raise RunFailed(f"no checkpoint in {folder} can be read; delete the run to start again")
    return None


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_bytes())
    for name, digest in state["sha256"].items():
        if _sha256(path / Path(name).name) != digest:
            raise ValueError(f"the SHA-256 of {name} differs")
    weights = load_file(path / "model.safetensors")
    return Checkpoint(weights, load_file(path / "optim.safetensors"), state["position"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
