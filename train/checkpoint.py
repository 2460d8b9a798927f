"""Checkpoints: a folder with tensors and a small JSON state, there whole or not at all.

`RUN/checkpoints/<number>/{model,optim,ema,buffers}.safetensors, state.json`; ema only where it is
on, buffers (each process's batch norm statistics) only with several processes. state.json holds the
SHA-256 of every file, of itself too. Beside them lie the best weights that a checkpoint speaks of.
No pickle is written or read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.console import RunFailed, warn

Tensors = dict[str, Tensor]
_COUNTERS, _GROUP = {"step"}, "group-"  # the rest of a group are settings, which the phase gives
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """weights, optim, ema, buffers: tensors by name; state: what JSON holds. best_file,
    best_sha256: of the phase's best weights, in the checkpoints' folder; "" before there are any.
    number, check: of one that was read, and the hash of its state, in which all files' hashes are.
    """

    weights: Tensors
    optim: Tensors
    state: dict[str, Any]
    ema: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    best_file: str = ""
    best_sha256: str = ""
    number: int = 0
    check: str = ""


def optim_tensors(optim: torch.optim.Optimizer) -> Tensors:
    """An optimiser's state as named tensors: '<parameter position>.<name>', and what it counts for
    a group of parameters, as apex's FusedAdam its steps: 'group-<position>.<name>'."""
    saved = optim.state_dict()
    tensors = {
        f"{position}.{name}": value.detach().cpu().contiguous()
        for position, values in saved["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    for position, group in enumerate(saved["param_groups"]):
        for name in _COUNTERS & group.keys():
            tensors[f"{_GROUP}{position}.{name}"] = torch.as_tensor(group[name]).cpu().clone()
    return tensors


def load_optim(optim: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Inverse of optim_tensors, for an optimiser built anew from the same phase."""
    parameters = [p for group in optim.param_groups for p in group["params"]]
    groups = optim.state_dict()["param_groups"]
    state: dict[int, Tensors] = {}
    for full_name, value in tensors.items():
        position, name = full_name.split(".", 1)
        if position.startswith(_GROUP):
            group = groups[int(position.removeprefix(_GROUP))]
            group[name] = value.to(parameters[0].device) if value.ndim else value.item()
            continue
        parameter = parameters[int(position)]
        if value.shape == parameter.shape:
            # Fused optimisers walk parameter and state through memory side by side: a state that
            # is not channels_last where its parameter is would silently meet other weights.
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(position), {})[name] = value
    optim.load_state_dict({"state": state, "param_groups": groups})


def weights_of(model: nn.Module) -> Tensors:
    """The state dict, as safetensors takes it."""
    return {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}


def save_checkpoint(
    folder: Path, content: Checkpoint, keep: int, passed: Set[int] = frozenset()
) -> None:
    """Write the next numbered checkpoint; remove those before the last `keep`, and the best weights
    of which none that stays speaks. One that is seen to be damaged does not count. passed: numbers
    that the run passed over when it went on, damaged ones; they go too."""
    temporary = _fresh(folder)
    number = max(numbers_of(folder), default=0) + 1
    for name, tensors in (("model", content.weights), ("optim", content.optim)):
        _save(tensors, temporary / f"{name}.safetensors")
    for name, tensors in (("ema", content.ema), ("buffers", content.buffers)):
        if tensors:
            _save(tensors, temporary / f"{name}.safetensors")
    state = {
        **content.state,
        "best_file": content.best_file,
        "best_sha256": content.best_sha256,
        "sha256": {file.name: sha256_of(file) for file in sorted(temporary.iterdir())},
    }
    (temporary / "state.json").write_text(json.dumps({**state, "check": _check(state)}, indent=1))
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    temporary.replace(folder / f"{number:06d}")
    _sync(folder)
    _prune(folder, keep, passed)


def save_best(folder: Path, name: str, model: nn.Module) -> str:
    """Write a phase's best weights so far, whole or not at all; the SHA-256 of the file."""
    temporary = _fresh(folder) / name
    _save(weights_of(model), temporary)
    _sync(temporary)
    temporary.replace(folder / name)
    temporary.parent.rmdir()
    return sha256_of(folder / name)


def _fresh(folder: Path) -> Path:
    """An empty folder inside, for what is not there as a whole yet; a killed run's goes."""
    temporary = folder / "writing.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def _save(tensors: Tensors, path: Path) -> None:
    """RunFailed where it cannot be written: the disk may be full."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise RunFailed(
            f"no checkpoint can be written in {path.parent.parent} ({error}); make room there, and "
            "the same command goes on from the last one"
        ) from error


def latest_checkpoint(folder: Path, last: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that can be read, up to number `last`; a damaged one is named and
    passed over. None where there is none."""
    for number in reversed(numbers_of(folder)):
        path = folder / f"{number:06d}"
        if last is not None and number > last:
            continue
        try:
            return _read(path)
        except _DAMAGE as error:
            warn(f"checkpoint {path} is damaged ({error}); taking the one before it")
    return None


def _read(path: Path) -> Checkpoint:
    state = _state_of(path)
    check, hashes, best, best_sha256 = (
        state.pop(key) for key in ("check", "sha256", "best_file", "best_sha256")
    )
    for name, digest in hashes.items():
        _compare(path / name, digest)
    if best:
        _compare(path.parent / best, best_sha256)

    def tensors(name: str) -> Tensors:
        return load_file(path / name) if name in hashes else {}

    return Checkpoint(
        weights=load_file(path / "model.safetensors"),
        optim=load_file(path / "optim.safetensors"),
        state=state,
        ema=tensors("ema.safetensors"),
        buffers=tensors("buffers.safetensors"),
        best_file=best,
        best_sha256=best_sha256,
        number=int(path.name),
        check=check,
    )


def _state_of(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json. ValueError where it has changed."""
    state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
    if state["check"] != _check({key: state[key] for key in state if key != "check"}):
        raise ValueError("state.json is not as it was written")
    return state


def _compare(path: Path, digest: str) -> None:
    if sha256_of(path) != digest:
        raise ValueError(f"the SHA-256 of {path.name} differs")


def _prune(folder: Path, keep: int, passed: Set[int]) -> None:
    spoken_of = {
        number: best
        for number in numbers_of(folder)
        if number not in passed and (best := _seen_whole(folder / f"{number:06d}")) is not None
    }
    first = min(sorted(spoken_of)[-keep:], default=0)
    for number in numbers_of(folder):
        if number < first or number in passed:
            shutil.rmtree(folder / f"{number:06d}")
            spoken_of.pop(number, None)
    for path in folder.glob("best-*.safetensors"):
        if path.name not in spoken_of.values():
            path.unlink()


def _seen_whole(path: Path) -> str | None:
    """The best weights that a checkpoint speaks of; None where a file is missing, cut short or has
    another beginning. No weights are read, which may be gigabytes: a changed bit is found later."""
    try:
        state = _state_of(path)
        best: str = state["best_file"]
        files = [path / name for name in state["sha256"]]
        for file in [*files, path.parent / best] if best else files:
            with safe_open(file, "pt"):
                pass
    except _DAMAGE:
        return None
    return best


def _check(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def numbers_of(folder: Path) -> list[int]:
    """Of the checkpoints that lie there, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
