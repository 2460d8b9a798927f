"""Where a training starts: random, ImageNet, CheXNet, or another run. No pickle is executed."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from shards.console import UserError
from shards.labels import CHESTXRAY14, Vocabulary
from train.models import build_model, load_weights
from train.runs import load_run_model

# The 14 findings in CheXNet's order; it has no healthy neuron.
CHEXNET = Vocabulary(CHESTXRAY14.names[:14], exclusive=False)
STARTS = ("random", "imagenet", "chexnet", "run")


@dataclass(frozen=True)
class StartConfig:
    """kind: random, imagenet (torchvision's weights), chexnet (the public CheXNet checkpoint), or
    run (the last stage of another run). path: CheXNet's file, or the run's folder, or, for
    imagenet, a folder that holds torchvision's file (for machines without internet)."""

    kind: str = "imagenet"
    path: Path | None = None


def start_model(
    config: StartConfig, architecture: str, vocabulary: Vocabulary
) -> tuple[nn.Module, Vocabulary]:
    """The network to begin with, and what its outputs mean (`vocabulary` when they are new)."""
    if config.kind == "random":
        return build_model(architecture, len(vocabulary)), vocabulary
    if config.kind == "imagenet":
        return _imagenet(architecture, config.path), IMAGENET
    if config.kind == "chexnet":
        return _chexnet(architecture, _needs_path(config)), CHEXNET
    if config.kind == "run":
        model, spec = load_run_model(_needs_path(config))
        if spec.architecture != architecture:
            raise UserError(
                f"{config.path} holds a {spec.architecture}, the recipe trains a {architecture}; "
                "start from a run of the same architecture"
            )
        return model, Vocabulary(spec.labels, spec.exclusive)
    raise UserError(f"no start {config.kind!r}; there are: {', '.join(STARTS)}")


IMAGENET = Vocabulary(tuple(f"imagenet-{i}" for i in range(1000)), exclusive=True)


def _needs_path(config: StartConfig) -> Path:
    if config.path is None:
        raise UserError(f"--start.kind {config.kind} needs --start.path")
    if not config.path.exists():
        raise UserError(f"no {config.path} (--start.path)")
    return config.path


def _imagenet(architecture: str, folder: Path | None) -> nn.Module:
    url = torchvision.models.get_model_weights(architecture).DEFAULT.url
    name = url.rsplit("/", 1)[-1]
    if folder is not None and not (folder / name).is_file():
        raise UserError(f"no {name} in {folder} (--start.path); fetch it from {url}")
    model = build_model(architecture, len(IMAGENET))
    if folder is not None:
        weights = read_tensors(folder / name)
    else:
        try:
            weights = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"could not download {name} ({error}); fetch {url} (its SHA-256 begins with the "
                "name's last part) and give its folder with --start.path, or take "
                "--start.kind random"
            ) from error
    load_weights(model, {modern_key(k): v for k, v in weights.items()}, name)
    return model


def _chexnet(architecture: str, path: Path) -> nn.Module:
    """arnoweng's CheXNet: {'state_dict': {'module.densenet121.features...': tensor}}."""
    if architecture != "densenet121":
        raise UserError(f"CheXNet is a densenet121, the recipe trains a {architecture}")
    raw = read_tensors(path)
    state = raw.get("state_dict", raw)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} is no CheXNet checkpoint: expected 'state_dict' with tensors")
    weights = {modern_key(re.sub(r"^module\.densenet121\.", "", k)): v for k, v in state.items()}
    weights = {re.sub(r"^classifier\.0\.", "classifier.", k): v for k, v in weights.items()}
    model = build_model(architecture, len(CHEXNET))
    load_weights(model, weights, str(path))
    return model


def read_tensors(path: Path) -> dict:
    """A .pth file's content through torch's weights-only loader; anything else is refused."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path} holds more than tensors or is damaged: {reason}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


def modern_key(key: str) -> str:
    """DenseNet's names of 2017 (`norm.1.weight`) as torchvision has them now (`norm1.weight`)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
