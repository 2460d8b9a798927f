"""RUN/settings.json, environment.json and starts.jsonl: what a run is, and where it ran."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from shards.console import UserError
from shards.lock import hold
from shards.manifest import Manifest, manifest_hash
from shards.writer import write_atomic
from train.config import TrainConfig
from train.runs import read_settings

_LOCK, _SETTINGS = ".lock", "settings.json"
_BEGUN = {_LOCK, f"{_SETTINGS}.tmp"}  # what one leaves that is killed at its very first write
_PACKAGES = ("cxrstack", "torchvision", "timm", "numpy", "safetensors", "nvidia-dali-cuda130")

# What may change when a run goes on: where and how it computes, not what.
_MAY_CHANGE = (
    "config.device",
    "config.input",
    "config.start.weights_dir",
    "config.checkpoint_every_s",
    "config.keep_checkpoints",
    "config.auto_micro_batch",
    "shards",
)


def jsonable(value: Any) -> Any:
    """Dataclasses' dicts as JSON holds them: paths as text, tuples as lists."""
    return json.loads(json.dumps(value, default=str))


def identity_of(config: TrainConfig, shards: Path, manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What a run is: a checkpoint of another identity is not gone on from."""
    data = {
        manifest.dataset: {
            "manifest_hash": manifest_hash(shards / stage.dataset),
            "preprocessing_version": manifest.preprocessing_version,
        }
        for stage, manifest in zip(config.stages, manifests)
    }
    return {"config": jsonable(asdict(config)), "data": data}


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other trainings out of the run's folder, which is made where it is missing. UserError
    where one is at work there, or the folder holds other things. The lock ends with the process."""
    _make(run)
    with (run / _LOCK).open("w") as file:
        if not hold(file):
            raise UserError(
                f"another training is at work in {run}; wait for its end, or take another --run"
            )
        yield


def _make(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise UserError(f"--run {run} is no folder; take another")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run {run} cannot be made ({error.strerror}); take another") from error
    others = {path.name for path in run.iterdir()} - _BEGUN
    if others and _SETTINGS not in others:
        raise UserError(f"{run} is not empty and holds no run; take another --run folder")


def write_settings(run: Path, config: TrainConfig, shards: Path, synthetic: bool) -> None:
    """RUN/settings.json; a folder that holds a run with other settings is refused (UserError).

    Until there is a checkpoint or a finished stage nothing is lost, so corrected settings replace
    the old ones.
    """
    _make(run)
    path = run / _SETTINGS
    settings = {
        "recipe": config.recipe,
        "config": jsonable(asdict(config)),
        "shards": str(shards.resolve()),
        "synthetic": synthetic,
    }
    trained = (run / "checkpoints").is_dir() or any(run.glob("*/model.json"))
    if path.is_file() and trained:
        differing = differences(read_settings(run), settings)
        if differing:
            raise UserError(
                f"{run} holds another run (differing: {', '.join(differing[:5])}); take another "
                "--run folder, or the settings of that run"
            )
        return
    command = shlex.join(["python", "-m", "train", *sys.argv[1:]])
    write_json(path, {**settings, "command": command, "commit": commit()})
    write_json(run / "environment.json", environment())


def note_start(run: Path, taken: dict[str, Any]) -> None:
    """A line in RUN/starts.jsonl: what this start has taken where the settings say auto, and where
    it runs, which may be elsewhere than the first one did."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    names = [torch.cuda.get_device_name(number) for number in gpus]
    line = {"time": time.time(), **taken, "gpu_names": names, "environment": environment()}
    with (run / "starts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings, by their dotted names, in which a run that goes on must not differ and does."""
    found = []
    for key, value in new.items():
        name = f"{prefix}{key}"
        if name in _MAY_CHANGE or old.get(key) == value:
            continue
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            found += differences(old[key], value, f"{name}.")
        else:
            found.append(name)
    return found


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, there whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def commit() -> str | None:
    """The checkout's commit, with `-dirty` behind it when files differ; None outside a checkout,
    and on a machine without git."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=12"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def environment() -> dict[str, Any]:
    """Machine, devices and versions; processes: of the whole run."""
    there = torch.cuda.is_available()
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if there else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "gpu": torch.cuda.get_device_name() if there else None,
        "gpus": torch.cuda.device_count() if there else 0,
        "gpu_capability": capability,
        "cuda": torch.version.cuda if there else None,
        "cudnn": torch.backends.cudnn.version() if there else None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        return lines[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or "unknown"
